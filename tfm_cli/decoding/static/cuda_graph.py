"""A step that a GPU records once and replays: one launch instead of one for each operator."""

import logging
from collections.abc import Callable, Sequence
from weakref import WeakSet

import torch

logger = logging.getLogger(__name__)

_WARM_UP = 2  # calls; libraries allocate and choose what they need in them


class Recorder:
    """Records the graphs of one device, of which one runs at a time.

    They share the memory for what a step computes in between, since nothing of it outlives a step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_able = True  # until a recording fails
        self._stream: torch.cuda.Stream | None = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Call it where it will be recorded, so that libraries are ready there."""
        with torch.cuda.device(self.device):
            side, main = self._side_stream(), torch.cuda.current_stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                function()
            main.wait_stream(side)

    def record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The graph of what it launches; nothing of that runs yet."""
        with torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            # Memory is that of a graph that still lives; without one, it is new.
            fellow = next(iter(self._graphs), None)
            pool = None if fellow is None else fellow.pool()
            # What other threads do meanwhile is none of its business.
            with torch.cuda.graph(
                graph, pool=pool, stream=self._side_stream(), capture_error_mode="thread_local"
            ):
                function()
        self._graphs.add(graph)
        return graph

    def _side_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            # Its constructor has no annotations.
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return self._stream


class StepGraph:
    """A function that reads and writes the same tensors, where they are, each time it is called.

    On a GPU its first calls run as they are, on the next it is recorded, and from then on it is
    replayed. On other devices it is called.

    Args:
        function: launches the same operators on the same tensors whatever they hold, and never
            waits for the device. What it leaves for later stands in tensors made before.
        recorder: of the device where the tensors are.
    """

    def __init__(self, function: Callable[[], None], recorder: Recorder) -> None:
        self._function = function
        self._recorder = recorder
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do what the function does."""
        if self._recorder.device.type != "cuda":
            self._function()
            return
        if self._graph is None and self._calls >= _WARM_UP and self._recorder.is_able:
            self._record()
        if self._graph is not None:
            self._graph.replay()
            return
        self._recorder.warm_up(self._function)
        self._calls += 1

    def _record(self) -> None:
        try:
            self._graph = self._recorder.record(self._function)
        except RuntimeError as error:  # nothing of the step has run
            self._recorder.is_able = False
            logger.warning(
                "%s could not record a step of decoding, which is slower without: %s",
                self._recorder.device, str(error).strip().split("\n")[0],
            )  # fmt: skip


class ReadBack:
    """A tensor on its way from the device, which meanwhile goes on."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._copy.copy_(tensor, non_blocking=True)
        self._arrival: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._arrival = torch.cuda.current_stream(tensor.device).record_event()

    def wait(self) -> torch.Tensor:
        """What the tensor held when this was made."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copy


def sent(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Integers on their way to a device, where what is launched from now on finds them."""
    here = torch.tensor(numbers, dtype=torch.long, pin_memory=device.type == "cuda")
    return here.to(device, non_blocking=True)
