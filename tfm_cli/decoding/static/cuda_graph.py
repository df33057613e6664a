"""CUDA graphs: a step is recorded once and replayed with one launch, not one per operator."""

import logging
from collections.abc import Callable, Sequence
from weakref import WeakSet

import torch

logger = logging.getLogger(__name__)

_WARM_UP_CALLS = 2  # in which libraries allocate memory and choose kernels


class Recorder:
    """A recorder of the CUDA graphs of one device, which must not run concurrently.

    The graphs share memory for intermediate results, none of which outlives a step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.can_record = True  # until a recording fails
        self._stream: torch.cuda.Stream | None = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Call a function on the stream where it will be recorded, so that libraries initialize."""
        with torch.cuda.device(self.device):
            side, main = self._side_stream(), torch.cuda.current_stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                function()
            main.wait_stream(side)

    def record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Return the graph of the operators that a function launches, without running them."""
        with torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            # The memory pool is shared with any graph that still exists.
            other = next(iter(self._graphs), None)
            pool = None if other is None else other.pool()
            # In this mode, operations of other threads do not invalidate the recording.
            with torch.cuda.graph(
                graph, pool=pool, stream=self._side_stream(), capture_error_mode="thread_local"
            ):
                function()
        self._graphs.add(graph)
        return graph

    def _side_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            # The constructor of `Stream` has no type annotations.
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return self._stream


class StepGraph:
    """A function that reads and writes the same tensors in each call, recorded as a CUDA graph.

    On a GPU the first calls run the function directly, the next one records it, and later calls
    replay the graph. On other devices every call runs the function.

    Args:
        function: launches the same operators on the same tensors whatever their values, and never
            waits for the device. It writes its results to existing tensors.
        recorder: of the device of the tensors.
    """

    def __init__(self, function: Callable[[], None], recorder: Recorder) -> None:
        self._function = function
        self._recorder = recorder
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Run or replay the function."""
        if self._recorder.device.type != "cuda":
            self._function()
            return
        if self._graph is None and self._calls >= _WARM_UP_CALLS and self._recorder.can_record:
            self._record()
        if self._graph is not None:
            self._graph.replay()
            return
        self._recorder.warm_up(self._function)
        self._calls += 1

    def _record(self) -> None:
        try:
            self._graph = self._recorder.record(self._function)
        except RuntimeError as error:  # no operator of the step has run
            self._recorder.can_record = False
            logger.warning(
                "%s cannot record decoding steps, which makes decoding slower: %s",
                self._recorder.device, str(error).strip().split("\n")[0],
            )  # fmt: skip


class ReadBack:
    """An asynchronous copy of a tensor from the device to the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._copy.copy_(tensor, non_blocking=True)
        self._arrival: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._arrival = torch.cuda.current_stream(tensor.device).record_event()

    def wait(self) -> torch.Tensor:
        """Return the values that the tensor had when the copy was started."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copy


def to_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return integers on a device, copied asynchronously but before later operators there."""
    host = torch.tensor(numbers, dtype=torch.long, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
