"""The step of greedy search on tensors that are reused for each batch.

The results are those of `greedy_search`, without probabilities.
"""

# B segments, one row each, n steps of capacity, V vocabulary

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tfm_cli.decoding.interface import Hypothesis, TargetVocabulary
from tfm_cli.decoding.static.cuda_graph import ReadBack, sent
from tfm_cli.decoding.static.interface import StaticStateT, StaticStepModel
from tfm_cli.decoding.utf8 import StaticSpelling


class StaticGreedy:
    """The state of greedy search over B segments.

    Args:
        segments: B.
        capacity: n.
        vocabulary: the special tokens.
        device: the device of the tensors.
    """

    def __init__(
        self, segments: int, capacity: int, vocabulary: TargetVocabulary, device: torch.device
    ) -> None:
        self._vocabulary = vocabulary
        self._banned = sent(vocabulary.banned_ids, device)
        utf8 = vocabulary.utf8
        self._spelling = None if utf8 is None else StaticSpelling(utf8, segments, 1)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self._position = integers(1)  # steps taken
        self._newest = integers(segments)  # (B,)
        self._tokens = integers(segments, capacity)
        self._beam_ancestors = integers(segments, 1, capacity)  # 0 for past steps, -1 after them
        self._origin = integers(segments, 1)  # each row continues itself
        self._limit = integers(segments)
        self._lengths = integers(segments)  # tokens written before </s> or the limit
        self._is_finite = torch.ones(segments, dtype=torch.bool, device=device)
        self.done = torch.zeros(segments, dtype=torch.bool, device=device)

    def reset(self, limits: Sequence[int]) -> None:
        """Reset for a new batch of segments with these limits; unused rows are ignored."""
        self._position.zero_()
        self._newest.fill_(self._vocabulary.start_id)
        self._beam_ancestors.fill_(-1)
        self._lengths.zero_()
        self._is_finite.fill_(True)
        self._limit[: len(limits)] = sent(limits, self._limit.device)
        torch.eq(self._limit, 0, out=self.done)
        if self._spelling is not None:
            self._spelling.reset()

    def copy_from(self, other: "StaticGreedy", segments: Tensor) -> None:
        """Copy these segments (B,) from a search with at most this capacity."""
        capacity = other._tokens.shape[1]
        self._position.copy_(other._position)
        for own, others in (
            (self._newest, other._newest),
            (self._limit, other._limit),
            (self._lengths, other._lengths),
            (self._is_finite, other._is_finite),
            (self.done, other.done),
            (self._tokens[:, :capacity], other._tokens),
            (self._beam_ancestors[:, :, :capacity], other._beam_ancestors),
        ):
            own.copy_(others.index_select(0, segments))
        self._beam_ancestors[:, :, capacity:] = -1
        if self._spelling is not None and other._spelling is not None:
            self._spelling.copy_from(other._spelling, segments)

    def step(self, model: StaticStepModel[StaticStateT], state: StaticStateT) -> None:
        """Append a token to each segment that is not done."""
        self._beam_ancestors.index_fill_(2, self._position, 0)
        logits = model.step(self._newest, self._position, self._beam_ancestors, state)  # (B, V)
        logits = logits.index_fill_(1, self._banned, -math.inf)
        if self._spelling is not None:
            logits = self._spelling.forbid_(logits, self._limit - self._position)
        best, token = logits.max(dim=1)  # (B,) each
        self._is_finite.logical_and_(best.isfinite() | self.done)
        if self._spelling is not None:
            self._spelling.append(self._origin, token[:, None])
        self._newest.copy_(token)
        self._tokens.index_copy_(1, self._position, token[:, None])
        self._position.add_(1)
        self.done.logical_or_(token == self._vocabulary.eos_id)
        # Segments that are done keep their length, which excludes </s>.
        self._lengths.add_(~self.done)
        self.done.logical_or_(self._lengths >= self._limit)

    def results(self, segments: Sequence[int]) -> Callable[[], list[list[Hypothesis]]]:
        """Start a copy of the results to the host; the returned function waits for it.

        That function returns one hypothesis without scores for each of these segments, and none for
        a segment whose logits were not finite.
        """
        selected = sent(segments, self.done.device)
        copies = [
            ReadBack(each.index_select(0, selected))
            for each in (self._lengths, self._tokens, self._is_finite)
        ]
        nan = float("nan")

        def hypotheses() -> list[list[Hypothesis]]:
            values = zip(*(each.wait().tolist() for each in copies), strict=True)
            return [
                [Hypothesis(tuple(ids[:length]), nan, nan)] if is_finite else []
                for length, ids, is_finite in values
            ]

        return hypotheses
