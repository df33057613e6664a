"""The steps of beam search and of greedy search on tensors that are reused for each batch.

The results are those of `beam_search` and `greedy_search`. No step waits for a value from the
device, so a GPU can queue steps ahead and replay them.
"""

# B segments, K beams of each, R = B * K rows, n steps of capacity, V vocabulary,
# C = min(2K, V) candidates of a row, c = min(2K, K * C) of a segment

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding.interface import Hypothesis, TargetVocabulary, length_norm
from tfm_cli.decoding.static.cuda_graph import ReadBack, to_device
from tfm_cli.decoding.static.search import StaticStateT, StaticStepModel
from tfm_cli.decoding.utf8 import StaticUtf8States


class StaticBeams:
    """The active and the finished hypotheses of B segments.

    Args:
        segments: B.
        capacity: n.
        vocabulary: the special tokens.
        settings: of the search; those of sampling and against repetition are ignored.
        device: the device of the tensors.
    """

    def __init__(
        self,
        segments: int,
        capacity: int,
        vocabulary: TargetVocabulary,
        settings: SearchConfig,
        device: torch.device,
    ) -> None:
        beams = settings.beam_size
        self._vocabulary, self._settings = vocabulary, settings
        self._banned = to_device(vocabulary.banned_ids, device)
        norms = [
            length_norm(t, settings.length_penalty, settings.length_norm)
            for t in range(1, capacity + 1)
        ]
        self._norms = torch.tensor(norms, dtype=torch.float64, device=device)  # (n,)
        self._slots = torch.arange(beams, device=device)  # (K,)
        utf8 = vocabulary.utf8
        self._utf8_states = None if utf8 is None else StaticUtf8States(utf8, segments, beams)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self._position = integers(1)  # tokens generated
        self._last_tokens = integers(segments * beams)  # (R,)
        self._scores = torch.zeros(segments, beams, device=device)  # log-probabilities
        self._tokens = integers(segments, beams, capacity)
        # The beam of the ancestor of each hypothesis at each step.
        self._beam_ancestors = integers(segments, beams, capacity)
        self._limit = integers(segments)
        self.done = torch.zeros(segments, dtype=torch.bool, device=device)
        # The K best finished hypotheses of each segment, best first; a score of -inf for none.
        self._ends = integers(segments, beams)  # tokens without </s>
        self._end_totals = torch.zeros(segments, beams, device=device)
        self._end_scores = self._end_totals.double()
        self._end_tokens = integers(segments, beams, capacity)

    def reset(self, limits: Sequence[int]) -> None:
        """Reset for a new batch of segments with these limits; unused rows are ignored."""
        self._position.zero_()
        self._last_tokens.fill_(self._vocabulary.start_id)
        # All beams of a segment are the same before the first token, so only one may continue.
        self._scores.fill_(-math.inf)
        self._scores[:, 0] = 0
        self._tokens.zero_()
        self._beam_ancestors.fill_(-1)
        self._limit[: len(limits)] = to_device(limits, self._limit.device)
        self.done.fill_(False)
        if self._utf8_states is not None:
            self._utf8_states.reset()
        self._end_scores.fill_(-math.inf)

    def copy_from(self, other: "StaticBeams", segments: Tensor) -> None:
        """Copy these segments (B,) from a search with at most this capacity."""
        capacity = other._tokens.shape[2]
        self._position.copy_(other._position)
        last = other._last_tokens.view(len(other.done), -1).index_select(0, segments)  # (B, K)
        self._last_tokens.copy_(last.flatten())
        for own, others in (
            (self._scores, other._scores),
            (self._limit, other._limit),
            (self.done, other.done),
            (self._ends, other._ends),
            (self._end_totals, other._end_totals),
            (self._end_scores, other._end_scores),
            (self._tokens[:, :, :capacity], other._tokens),
            (self._beam_ancestors[:, :, :capacity], other._beam_ancestors),
            (self._end_tokens[:, :, :capacity], other._end_tokens),
        ):
            own.copy_(others.index_select(0, segments))
        self._beam_ancestors[:, :, capacity:] = -1
        if self._utf8_states is not None and other._utf8_states is not None:
            self._utf8_states.copy_from(other._utf8_states, segments)

    def step(self, model: StaticStepModel[StaticStateT], state: StaticStateT) -> None:
        """Append a token to each hypothesis, and store those that have ended."""
        beams = self._settings.beam_size
        own = self._slots[None, :, None].expand(len(self.done), -1, 1)  # (B, K, 1)
        self._beam_ancestors.index_copy_(2, self._position, own)
        logits = model.step(
            self._last_tokens, self._position, self._beam_ancestors, state
        )  # (R, V)
        log_probs, candidates = self._continuations(logits)  # (R, C) each
        totals = self._scores.view(-1, 1) + log_probs  # (R, C)
        totals = totals.view(len(self.done), -1)  # (B, K * C)
        best, index = totals.topk(min(2 * beams, totals.shape[1]), dim=1)  # (B, c) each
        parents = index.div(candidates.shape[1], rounding_mode="floor")  # (B, c)
        token = candidates.view(len(self.done), -1).gather(1, index)  # (B, c)
        norm = self._norms.index_select(0, self._position)  # (1,)
        ends = token == self._vocabulary.eos_id  # (B, c)
        self._store_ends(best[:, :beams], ends[:, :beams], parents[:, :beams], norm)

        # The best that do not end; a stable sort by "ends" leaves them in order of their scores.
        active = ends.to(torch.int8).argsort(dim=1, stable=True)[:, :beams]  # (B, K)
        scores = best.masked_fill(ends, -math.inf).gather(1, active)  # (B, K)
        self._update_done(scores.amax(dim=1) / norm.to(scores.dtype))
        self._scores.copy_(scores)
        self._reorder_and_append(parents.gather(1, active), token.gather(1, active))

    def _continuations(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and ids of the likeliest next tokens of each row, (R, C) each.

        A row at its limit can only continue with </s>. Unlike `beam_search`, this writes out all V
        log-probabilities, which a GPU computes in one pass and in single precision.
        """
        eos_id, count = self._vocabulary.eos_id, 2 * self._settings.beam_size
        if self._settings.renormalize:
            logits = logits.index_fill_(1, self._banned, -math.inf)
        log_probs = logits.log_softmax(dim=1, dtype=torch.float32)  # (R, V)
        eos = log_probs[:, eos_id].clone()  # (R,)
        if not self._settings.renormalize:
            log_probs.index_fill_(1, self._banned, -math.inf)
        if self._utf8_states is not None:
            log_probs = self._utf8_states.forbid_(log_probs, self._limit - self._position)
        best, tokens = log_probs.topk(min(count, log_probs.shape[1]), dim=1)  # (R, C) each
        at_limit = (self._limit <= self._position)[:, None]  # (B, 1)
        at_limit = at_limit.expand(-1, self._settings.beam_size).reshape(-1)  # (R,)
        first = torch.where(at_limit, eos, best[:, 0])  # (R,)
        best.masked_fill_(at_limit[:, None], -math.inf)
        best[:, 0] = first
        tokens[:, 0].masked_fill_(at_limit, eos_id)
        return best, tokens

    def _store_ends(self, totals: Tensor, ends: Tensor, parents: Tensor, norm: Tensor) -> None:
        """Store the best of the finished hypotheses and of those that end now, (B, K) each."""
        beams = self._settings.beam_size
        is_end = ends & (totals > -math.inf) & ~self.done[:, None]  # (B, K)
        scores = (totals / norm).masked_fill(~is_end, -math.inf)  # (B, K), in double
        scores = torch.cat((self._end_scores, scores), dim=1)  # (B, 2K)
        # Of hypotheses with equal scores, the earlier is first.
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :beams]  # (B, K)
        self._end_scores.copy_(scores.gather(1, order))
        totals = torch.cat((self._end_totals, totals), dim=1)  # (B, 2K)
        self._end_totals.copy_(totals.gather(1, order))
        lengths = torch.cat((self._ends, self._position.expand_as(self._ends)), dim=1)  # (B, 2K)
        self._ends.copy_(lengths.gather(1, order))
        tokens = torch.cat((self._end_tokens, _reordered(self._tokens, parents)), dim=1)
        self._end_tokens.copy_(_reordered(tokens, order))  # (B, K, n)

    def _update_done(self, best_active: Tensor) -> None:
        """Mark the segments that need no more steps, given the best active scores (B,)."""
        worst = self._end_scores[:, -1]  # (B,)
        is_decided = worst > -math.inf
        if not self._settings.early_stopping and self._settings.beam_size > 1:
            is_decided = is_decided & (worst >= best_active)
        # The best score is -inf, or NaN, where no hypothesis can grow.
        self.done.logical_or_(is_decided | ~(best_active > -math.inf))

    def _reorder_and_append(self, parents: Tensor, tokens: Tensor) -> None:
        """Replace beam k of each segment with its beam `parents[:, k]` plus a token, (B, K) each.

        The model's caches stay where they are: attention follows the reordered `beam_ancestors`.
        """
        if self._utf8_states is not None:
            self._utf8_states.append(parents, tokens)
        self._beam_ancestors.copy_(_reordered(self._beam_ancestors, parents))
        self._tokens.copy_(_reordered(self._tokens, parents))
        self._tokens.index_copy_(2, self._position, tokens[:, :, None])
        self._last_tokens.copy_(tokens.flatten())
        self._position.add_(1)

    def results(self, segments: Sequence[int]) -> Callable[[], list[list[Hypothesis]]]:
        """Start a copy of finished hypotheses to the host; the returned function waits for it."""
        selected = to_device(segments, self.done.device)
        copies = [
            ReadBack(each.index_select(0, selected))
            for each in (self._ends, self._end_tokens, self._end_totals, self._end_scores)
        ]

        def hypotheses() -> list[list[Hypothesis]]:
            values = zip(*(each.wait().tolist() for each in copies), strict=True)
            return [
                [
                    Hypothesis(tuple(ids[:length]), total, score)
                    for length, ids, total, score in zip(*of_segment, strict=True)
                    if score > -math.inf
                ]
                for of_segment in values
            ]

        return hypotheses


def _reordered(history: Tensor, beams: Tensor) -> Tensor:
    """Return the history (B, K, n) of these beams (B, K), given one of (B, any, n)."""
    return history.gather(1, beams[:, :, None].expand(-1, -1, history.shape[2]))


class StaticGreedy:
    """The state of greedy search over B segments, one row each, without probabilities.

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
        self._banned = to_device(vocabulary.banned_ids, device)
        utf8 = vocabulary.utf8
        self._utf8_states = None if utf8 is None else StaticUtf8States(utf8, segments, 1)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self._position = integers(1)  # steps taken
        self._last_tokens = integers(segments)  # (B,)
        self._tokens = integers(segments, capacity)
        self._beam_ancestors = integers(segments, 1, capacity)  # 0 for past steps, -1 after them
        self._parents = integers(segments, 1)  # each row continues itself
        self._limit = integers(segments)
        self._lengths = integers(segments)  # tokens generated before </s> or the limit
        self._is_finite = torch.ones(segments, dtype=torch.bool, device=device)
        self.done = torch.zeros(segments, dtype=torch.bool, device=device)

    def reset(self, limits: Sequence[int]) -> None:
        """Reset for a new batch of segments with these limits; unused rows are ignored."""
        self._position.zero_()
        self._last_tokens.fill_(self._vocabulary.start_id)
        self._beam_ancestors.fill_(-1)
        self._lengths.zero_()
        self._is_finite.fill_(True)
        self._limit[: len(limits)] = to_device(limits, self._limit.device)
        torch.eq(self._limit, 0, out=self.done)
        if self._utf8_states is not None:
            self._utf8_states.reset()

    def copy_from(self, other: "StaticGreedy", segments: Tensor) -> None:
        """Copy these segments (B,) from a search with at most this capacity."""
        capacity = other._tokens.shape[1]
        self._position.copy_(other._position)
        for own, others in (
            (self._last_tokens, other._last_tokens),
            (self._limit, other._limit),
            (self._lengths, other._lengths),
            (self._is_finite, other._is_finite),
            (self.done, other.done),
            (self._tokens[:, :capacity], other._tokens),
            (self._beam_ancestors[:, :, :capacity], other._beam_ancestors),
        ):
            own.copy_(others.index_select(0, segments))
        self._beam_ancestors[:, :, capacity:] = -1
        if self._utf8_states is not None and other._utf8_states is not None:
            self._utf8_states.copy_from(other._utf8_states, segments)

    def step(self, model: StaticStepModel[StaticStateT], state: StaticStateT) -> None:
        """Append a token to each segment that is not done."""
        self._beam_ancestors.index_fill_(2, self._position, 0)
        logits = model.step(
            self._last_tokens, self._position, self._beam_ancestors, state
        )  # (B, V)
        logits = logits.index_fill_(1, self._banned, -math.inf)
        if self._utf8_states is not None:
            logits = self._utf8_states.forbid_(logits, self._limit - self._position)
        best, token = logits.max(dim=1)  # (B,) each
        self._is_finite.logical_and_(best.isfinite() | self.done)
        if self._utf8_states is not None:
            self._utf8_states.append(self._parents, token[:, None])
        self._last_tokens.copy_(token)
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
        selected = to_device(segments, self.done.device)
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
