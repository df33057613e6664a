"""Search for GPUs: steps on tensors of fixed shapes and addresses.

Such a step can be recorded as a CUDA graph and replayed, since no operator that it launches depends
on the position of the search: the position is a tensor as well. Steps are launched before the
results of earlier ones are known.
"""

# B segments, K beams of each, R = B * K rows, S source tokens, n steps of capacity, V vocabulary

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError
from tfm_cli.decoding.static.cuda_graph import ReadBack, Recorder, StepGraph, to_device


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the tensors of a step."""

    segments: int  # B
    beams: int  # K
    source_tokens: int  # S
    capacity: int  # n


class StaticState(Protocol):
    """The data that a model stores between steps, in tensors that are reused for each batch."""

    @property
    def num_bytes(self) -> int:
        """Return the memory of the tensors."""

    def copy_from(self, other: Self, segments: Tensor) -> None:
        """Copy these segments (B,) from a state with the same beams and at most this capacity.

        B is the number of segments of this state; a segment may occur several times.
        """


StaticStateT = TypeVar("StaticStateT", bound=StaticState)


class StaticStepModel(Protocol[StaticStateT]):
    """A model that predicts one token at a time, in steps of fixed shapes."""

    def state(self, shape: Shape) -> StaticStateT:
        """Return an empty state."""

    def encode(self, source: Tensor, source_keep: Tensor | None, state: StaticStateT) -> None:
        """Reset the state and encode the sources of its first segments, at most (B, S) ids.

        The other segments may hold any values that lead to finite logits.
        """

    def step(
        self, tokens: Tensor, position: Tensor, beam_ancestors: Tensor, state: StaticStateT
    ) -> Tensor:
        """Return scores (R, V) of the next token of each row, up to a constant.

        The caller may overwrite them. Operators may depend on the position of the search only
        through tensors, and none may wait for a value from the device.

        Args:
            tokens: (R,) last tokens, the K of the first segment, then of the second …
            position: (1,) number of steps before this one, less than n.
            beam_ancestors: (B, K, n), the beam of its segment that each row was at each step up to
                `position`, inclusive; -1 after that.
            state: as `encode` and the earlier steps left it.
        """


class SearchState(Protocol):
    """The state of a search over B segments, in tensors that are reused, and its step."""

    done: Tensor  # (B,) True for segments that need no more steps

    def reset(self, limits: Sequence[int]) -> None:
        """Reset for a new batch of segments with these limits; unused rows are ignored."""

    def copy_from(self, other: Self, segments: Tensor) -> None:
        """Copy these segments (B,) from a search with at most this capacity."""

    def step(self, model: StaticStepModel[StaticStateT], state: StaticStateT) -> None:
        """Append a token to each hypothesis."""

    def results(self, segments: Sequence[int]) -> Callable[[], list[list[Hypothesis]]]:
        """Start a copy of the results to the host; the returned function waits for it.

        That function returns the hypotheses of these segments, best first.
        """


SearchStateT = TypeVar("SearchStateT", bound=SearchState)

_SOURCE_BLOCK = 16  # tokens; attention on GPUs is faster with aligned masks
CAPACITY_BLOCK = 32  # steps
_CHECK_INTERVAL = 4  # steps between reads of the segments that are done
_READ_DELAY = 2  # steps between the start of such a read and its use, which keep the device busy
_FEW_SEGMENTS = 8  # smaller batches are hardly faster
_MAX_STAGES = 32
_MAX_BYTES = 2 << 30  # of all stages; the current one alone may be larger


def bucket_size(count: int) -> int:
    """Return the smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24 … that is at least `count`.

    With few sizes, a recorded step can be replayed for many batches.
    """
    power = 1 << (count - 1).bit_length()  # the smallest power of two that is at least `count`
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def source_capacity(length: int) -> int:
    """Return the number of source tokens, rounded up to a multiple of `_SOURCE_BLOCK`."""
    return -(-length // _SOURCE_BLOCK) * _SOURCE_BLOCK


@dataclass(frozen=True, slots=True)
class _Stage(Generic[StaticStateT, SearchStateT]):
    """The tensors of a search in one shape, and the step on them."""

    shape: Shape
    model_state: StaticStateT
    search_state: SearchStateT
    step: StepGraph


class StaticSearch(Generic[StaticStateT, SearchStateT]):
    """A search in steps of fixed shapes, whose tensors are reused by batches of similar shapes.

    Args:
        model: the model that is searched.
        make_search_state: returns the state of a search, given its number of segments and its
            capacity in steps.
        beams: rows of each segment.
        device: the device of the model.
    """

    def __init__(
        self,
        model: StaticStepModel[StaticStateT],
        make_search_state: Callable[[int, int], SearchStateT],
        *,
        beams: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._make_search_state = make_search_state
        self._beams = beams
        self._device = device
        self._recorder = Recorder(device)
        self._stages: OrderedDict[Shape, _Stage[StaticStateT, SearchStateT]] = OrderedDict()

    def __call__(
        self, source: Tensor, source_keep: Tensor | None, *, limits: Sequence[int]
    ) -> list[list[Hypothesis]]:
        """Return hypotheses of each segment, best first.

        Args:
            source: (B, S) ids.
            source_keep: (B, 1, 1, S), False at padding; None if there is none.
            limits: maximum number of tokens of each segment's translation, without </s>.

        Raises:
            NonFiniteScoresError: the model computes scores that are not finite numbers.
        """
        try:
            found = self._search(source, source_keep, limits)
        except torch.OutOfMemoryError:
            self._stages.clear()  # a smaller batch needs their memory
            raise
        if not all(found):  # a segment without a finite score has no hypothesis
            raise NonFiniteScoresError
        return found

    def _search(
        self, source: Tensor, source_keep: Tensor | None, limits: Sequence[int]
    ) -> list[list[Hypothesis]]:
        size, length = bucket_size(len(limits)), source_capacity(source.shape[1])
        stage = self._stage(Shape(size, self._beams, length, CAPACITY_BLOCK))
        self._model.encode(source, source_keep, stage.model_state)
        stage.search_state.reset(limits)
        segments = list(range(len(limits)))  # of the first rows of the stage; other rows are unused
        results = []
        for step in range(max(limits) + 1):
            if step == stage.shape.capacity:
                larger = replace(stage.shape, capacity=step + CAPACITY_BLOCK)
                stage = self._moved(stage, range(len(segments)), larger)
            stage.step()
            if step % _CHECK_INTERVAL == 0:
                answer = ReadBack(stage.search_state.done)
            elif step % _CHECK_INTERVAL == _READ_DELAY:
                done = answer.wait().tolist()[: len(segments)]
                if all(done):
                    break
                size = max(_FEW_SEGMENTS, bucket_size(done.count(False)))
                if 2 * size <= stage.shape.segments:
                    leaving = [row for row, is_done in enumerate(done) if is_done]
                    staying = [row for row, is_done in enumerate(done) if not is_done]
                    those = [segments[row] for row in leaving]
                    results.append((those, stage.search_state.results(leaving)))
                    stage = self._moved(stage, staying, replace(stage.shape, segments=size))
                    segments = [segments[row] for row in staying]
        results.append((segments, stage.search_state.results(range(len(segments)))))
        found: list[list[Hypothesis]] = [[] for _ in limits]
        for those, hypotheses in results:
            for segment, each in zip(those, hypotheses(), strict=True):
                found[segment] = each
        return found

    def _moved(
        self, stage: _Stage[StaticStateT, SearchStateT], rows: Sequence[int], shape: Shape
    ) -> _Stage[StaticStateT, SearchStateT]:
        """Return a stage of another shape to which the segments of these rows were copied."""
        moved = self._stage(shape)
        num_unused = shape.segments - len(rows)
        selected = to_device([*rows, *[rows[0]] * num_unused], self._device)  # (B,)
        moved.model_state.copy_from(stage.model_state, selected)
        moved.search_state.copy_from(stage.search_state, selected)
        return moved

    def _stage(self, shape: Shape) -> _Stage[StaticStateT, SearchStateT]:
        """Return the stage of a shape, which may still hold the data of an earlier batch."""
        stage = self._stages.get(shape)
        if stage is None:
            model_state = self._model.state(shape)
            search_state = self._make_search_state(shape.segments, shape.capacity)
            step = StepGraph(partial(search_state.step, self._model, model_state), self._recorder)
            stage = self._stages[shape] = _Stage(shape, model_state, search_state, step)
        self._stages.move_to_end(shape)
        self._drop_old_stages()
        return stage

    def _drop_old_stages(self) -> None:
        """Drop the least recently used stages until the others are few and small enough."""
        total = sum(stage.model_state.num_bytes for stage in self._stages.values())
        while len(self._stages) > 1 and (len(self._stages) > _MAX_STAGES or total > _MAX_BYTES):
            _, oldest = self._stages.popitem(last=False)
            total -= oldest.model_state.num_bytes
