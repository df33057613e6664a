"""Search that keeps a GPU busy: steps of fixed shapes, launched ahead of what they find."""

# B segments, S source pieces

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
    ROOM_BLOCK,
    FixedStepModel,
    FixedT,
    RowsT,
    Shape,
    few_sizes,
    source_room,
)

_ASK_EVERY = 4  # steps after which the device is asked what is done
_READ_AFTER = 2  # steps, which keep it busy until its answer is read
_FEW_SEGMENTS = 8  # fewer are hardly faster
_MOST_STAGES = 32
_MOST_BYTES = 2 << 30  # of all stages; the one in use may be larger by itself


@dataclass(frozen=True, slots=True)
class _Stage(Generic[FixedT, RowsT]):
    """The tensors of a search in one shape, and the step that works on them."""

    shape: Shape
    state: FixedT
    rows: RowsT
    step: StepGraph


class FixedSearch(Generic[FixedT, RowsT]):
    """Searches in steps of fixed shapes; a class because batches of like shapes share them.

    Args:
        model: what is searched.
        rows_of: makes what a search of so many segments with room for so many steps keeps.
        beams: rows of each segment.
        device: where the model is.
    """

    def __init__(
        self,
        model: FixedStepModel[FixedT],
        rows_of: Callable[[int, int], RowsT],
        *,
        beams: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._rows_of = rows_of
        self._beams = beams
        self._device = device
        self._recorder = Recorder(device)
        self._stages: OrderedDict[Shape, _Stage[FixedT, RowsT]] = OrderedDict()

    def __call__(
        self, source: Tensor, source_keep: Tensor | None, *, limits: Sequence[int]
    ) -> list[list[Hypothesis]]:
        """Hypotheses of each segment, best first.

        Args:
            source: (B, S) ids.
            source_keep: (B, 1, 1, S), False at padding; None if there is none.
            limits: most pieces of each segment's translation, without </s>.

        Raises:
            NonFiniteScoresError: the model gives scores that are not finite numbers.
        """
        try:
            found = self._search(source, source_keep, limits)
        except torch.OutOfMemoryError:
            self._stages.clear()  # a smaller batch needs their memory
            raise
        if not all(found):  # what has no finite score is no hypothesis
            raise NonFiniteScoresError
        return found

    def _search(
        self, source: Tensor, source_keep: Tensor | None, limits: Sequence[int]
    ) -> list[list[Hypothesis]]:
        size, length = few_sizes(len(limits)), source_room(source.shape[1])
        stage = self._stage(Shape(size, self._beams, length, ROOM_BLOCK))
        self._model.read(source, source_keep, stage.state)
        stage.rows.begin(limits)
        segments = list(range(len(limits)))  # which the rows of the stage are; the rest is spare
        results = []
        for step in range(max(limits) + 1):
            if step == stage.shape.room:
                larger = replace(stage.shape, room=step + ROOM_BLOCK)
                stage = self._moved(stage, range(len(segments)), larger)
            stage.step()
            if step % _ASK_EVERY == 0:
                answer = ReadBack(stage.rows.done)
            elif step % _ASK_EVERY == _READ_AFTER:
                done = answer.wait().tolist()[: len(segments)]
                if all(done):
                    break
                size = max(_FEW_SEGMENTS, few_sizes(done.count(False)))
                if 2 * size <= stage.shape.segments:
                    leaving = [row for row, is_done in enumerate(done) if is_done]
                    staying = [row for row, is_done in enumerate(done) if not is_done]
                    those = [segments[row] for row in leaving]
                    results.append((those, stage.rows.results(leaving)))
                    stage = self._moved(stage, staying, replace(stage.shape, segments=size))
                    segments = [segments[row] for row in staying]
        results.append((segments, stage.rows.results(range(len(segments)))))
        found: list[list[Hypothesis]] = [[] for _ in limits]
        for those, hypotheses in results:
            for segment, each in zip(those, hypotheses(), strict=True):
                found[segment] = each
        return found

    def _moved(
        self, stage: _Stage[FixedT, RowsT], rows: Sequence[int], shape: Shape
    ) -> _Stage[FixedT, RowsT]:
        """The search of these rows' segments, where it was, in another shape."""
        moved = self._stage(shape)
        spare = shape.segments - len(rows)
        chosen = sent([*rows, *[rows[0]] * spare], self._device)  # (B,)
        moved.state.take(stage.state, chosen)
        moved.rows.take(stage.rows, chosen)
        return moved

    def _stage(self, shape: Shape) -> _Stage[FixedT, RowsT]:
        """The stage of a shape, which may hold another batch."""
        stage = self._stages.get(shape)
        if stage is None:
            state, rows = self._model.state(shape), self._rows_of(shape.segments, shape.room)
            step = StepGraph(partial(rows.step, self._model, state), self._recorder)
            stage = self._stages[shape] = _Stage(shape, state, rows, step)
        self._stages.move_to_end(shape)
        self._forget_old_stages()
        return stage

    def _forget_old_stages(self) -> None:
        """Forget those that were used longest ago, until the others are few and small enough."""
        taken = sum(stage.state.num_bytes for stage in self._stages.values())
        while len(self._stages) > 1 and (len(self._stages) > _MOST_STAGES or taken > _MOST_BYTES):
            _, oldest = self._stages.popitem(last=False)
            taken -= oldest.state.num_bytes
