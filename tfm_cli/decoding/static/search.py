"""Search for GPUs: steps of fixed shapes, launched before the results of earlier ones are known."""

# B segments, S source tokens

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic

import torch
from torch import Tensor

from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError
from tfm_cli.decoding.static.cuda_graph import ReadBack, Recorder, StepGraph, sent
from tfm_cli.decoding.static.interface import (
    CAPACITY_BLOCK,
    SearchStateT,
    Shape,
    StaticStateT,
    StaticStepModel,
    bucket_size,
    source_capacity,
)

_CHECK_INTERVAL = 4  # steps between reads of the segments that are done
_READ_DELAY = 2  # steps between the start of such a read and its use, which keep the device busy
_FEW_SEGMENTS = 8  # smaller batches are hardly faster
_MAX_STAGES = 32
_MAX_BYTES = 2 << 30  # of all stages; the current one alone may be larger


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
        self._model.read(source, source_keep, stage.model_state)
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
        selected = sent([*rows, *[rows[0]] * num_unused], self._device)  # (B,)
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
