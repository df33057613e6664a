"""The step of greedy search in tensors alone, all of which stay where they are.

It finds what `greedy_search` finds, without the probabilities, which nobody asked for.
"""

# B segments, one row each, n steps there is room for, V vocabulary

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.decoding.static.cuda_graph import ReadBack, sent
from tfm_cli.decoding.static.interface import FixedStepModel, FixedT
from tfm_cli.decoding.utf8 import FixedSpelling, Utf8


@dataclass(frozen=True, slots=True)
class GreedyRules:
    """How greedy search goes; the names are those of `greedy_search`."""

    start_id: int
    eos_id: int
    banned_ids: Sequence[int] = ()
    utf8: Utf8 | None = None


class FixedGreedy:
    """What was written for B segments, and the step from one piece to the next.

    Args:
        segments: B.
        room: n.
        rules: of the search.
        device: where the tensors are.
    """

    def __init__(self, segments: int, room: int, rules: GreedyRules, device: torch.device) -> None:
        self._rules = rules
        self._banned = sent(rules.banned_ids, device)
        self._spelling = None if rules.utf8 is None else FixedSpelling(rules.utf8, segments, 1)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self._position = integers(1)  # steps taken
        self._newest = integers(segments)  # (B,)
        self._pieces = integers(segments, room)
        self._lineage = integers(segments, 1, room)  # 0 for the steps taken, -1 behind
        self._origin = integers(segments, 1)  # one row each, which continues itself
        self._limit = integers(segments)
        self._lengths = integers(segments)  # pieces written before </s> or the limit
        self._is_finite = torch.ones(segments, dtype=torch.bool, device=device)
        self.done = torch.zeros(segments, dtype=torch.bool, device=device)

    def begin(self, limits: Sequence[int]) -> None:
        """Begin anew with segments of these limits; what becomes of those behind is all one."""
        self._position.zero_()
        self._newest.fill_(self._rules.start_id)
        self._lineage.fill_(-1)
        self._lengths.zero_()
        self._is_finite.fill_(True)
        self._limit[: len(limits)] = sent(limits, self._limit.device)
        torch.eq(self._limit, 0, out=self.done)
        if self._spelling is not None:
            self._spelling.begin()

    def take(self, other: "FixedGreedy", segments: Tensor) -> None:
        """Become what these segments (B,) of a search with no more room are."""
        room = other._pieces.shape[1]
        self._position.copy_(other._position)
        for mine, theirs in (
            (self._newest, other._newest),
            (self._limit, other._limit),
            (self._lengths, other._lengths),
            (self._is_finite, other._is_finite),
            (self.done, other.done),
            (self._pieces[:, :room], other._pieces),
            (self._lineage[:, :, :room], other._lineage),
        ):
            mine.copy_(theirs.index_select(0, segments))
        self._lineage[:, :, room:] = -1
        if self._spelling is not None and other._spelling is not None:
            self._spelling.take(other._spelling, segments)

    def step(self, model: FixedStepModel[FixedT], state: FixedT) -> None:
        """Write one more piece for each segment that needs one."""
        self._lineage.index_fill_(2, self._position, 0)
        logits = model.fixed_step(self._newest, self._position, self._lineage, state)  # (B, V)
        logits = logits.index_fill_(1, self._banned, -math.inf)
        if self._spelling is not None:
            logits = self._spelling.forbid_(logits, self._limit - self._position)
        best, piece = logits.max(dim=1)  # (B,) each
        self._is_finite.logical_and_(best.isfinite() | self.done)
        if self._spelling is not None:
            self._spelling.grow(self._origin, piece[:, None])
        self._newest.copy_(piece)
        self._pieces.index_copy_(1, self._position, piece[:, None])
        self._position.add_(1)
        self.done.logical_or_(piece == self._rules.eos_id)
        # What is done keeps its length, since </s> is no piece of it.
        self._lengths.add_(~self.done)
        self.done.logical_or_(self._lengths >= self._limit)

    def results(self, segments: Sequence[int]) -> Callable[[], list[list[Hypothesis]]]:
        """Gives what was written for these segments, without scores, when it has come.

        A segment whose logits were not finite has no hypothesis.
        """
        chosen = sent(segments, self.done.device)
        coming = [
            ReadBack(each.index_select(0, chosen))
            for each in (self._lengths, self._pieces, self._is_finite)
        ]
        nothing = float("nan")

        def hypotheses() -> list[list[Hypothesis]]:
            of_segments = zip(*(each.wait().tolist() for each in coming), strict=True)
            return [
                [Hypothesis(tuple(ids[:length]), nothing, nothing)] if is_finite else []
                for length, ids, is_finite in of_segments
            ]

        return hypotheses
