"""The step of beam search in tensors alone, all of which stay where they are.

It finds what `beam_search` finds. Nothing here waits for what a tensor holds, so a GPU can be
given steps ahead and replay them.
"""

# B segments, K beams of each, R = B * K rows, n steps there is room for, V vocabulary,
# C = min(2K, V) candidates of a row, c = min(2K, K * C) of a segment

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.decoding.length import length_norm
from tfm_cli.decoding.static.cuda_graph import ReadBack, sent
from tfm_cli.decoding.static.interface import FixedStepModel, FixedT
from tfm_cli.decoding.utf8 import FixedSpelling, Utf8


@dataclass(frozen=True, slots=True)
class BeamRules:
    """How beam search goes; the names are those of `beam_search`."""

    start_id: int
    eos_id: int  # never banned
    banned_ids: Sequence[int] = ()
    beam_size: int = 4
    length_penalty: float = 1.0
    norm_kind: str = "power"
    early_stopping: bool = False
    renormalize: bool = False
    utf8: Utf8 | None = None


class FixedBeams:
    """Growing and finished hypotheses of B segments, and the step from one piece to the next.

    Args:
        segments: B.
        room: n.
        rules: of the search.
        device: where the tensors are.
    """

    def __init__(self, segments: int, room: int, rules: BeamRules, device: torch.device) -> None:
        beams = rules.beam_size
        self._rules = rules
        self._banned = sent(rules.banned_ids, device)
        norms = [length_norm(t + 1, rules.length_penalty, rules.norm_kind) for t in range(room)]
        self._norms = torch.tensor(norms, dtype=torch.float64, device=device)  # (n,)
        self._slots = torch.arange(beams, device=device)  # (K,)
        utf8 = rules.utf8
        self._spelling = None if utf8 is None else FixedSpelling(utf8, segments, beams)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self._position = integers(1)  # pieces written
        self._newest = integers(segments * beams)  # (R,)
        self._scores = torch.zeros(segments, beams, device=device)  # log-probabilities
        self._pieces = integers(segments, beams, room)
        self._lineage = integers(segments, beams, room)  # which beam each was at each step
        self._limit = integers(segments)
        self.done = torch.zeros(segments, dtype=torch.bool, device=device)
        # The K best finished hypotheses of each segment, best first; a score of -inf for none.
        self._ends = integers(segments, beams)  # pieces without </s>
        self._end_totals = torch.zeros(segments, beams, device=device)
        self._end_scores = self._end_totals.double()
        self._end_pieces = integers(segments, beams, room)

    def begin(self, limits: Sequence[int]) -> None:
        """Begin anew with segments of these limits; what becomes of those behind is all one."""
        self._position.zero_()
        self._newest.fill_(self._rules.start_id)
        # All beams of a segment are the same before the first piece, so one of them counts.
        self._scores.fill_(-math.inf)
        self._scores[:, 0] = 0
        self._pieces.zero_()
        self._lineage.fill_(-1)
        self._limit[: len(limits)] = sent(limits, self._limit.device)
        self.done.fill_(False)
        if self._spelling is not None:
            self._spelling.begin()
        self._end_scores.fill_(-math.inf)

    def take(self, other: "FixedBeams", segments: Tensor) -> None:
        """Become what these segments (B,) of a search with no more room are."""
        room = other._pieces.shape[2]
        self._position.copy_(other._position)
        newest = other._newest.view(len(other.done), -1).index_select(0, segments)  # (B, K)
        self._newest.copy_(newest.flatten())
        for mine, theirs in (
            (self._scores, other._scores),
            (self._limit, other._limit),
            (self.done, other.done),
            (self._ends, other._ends),
            (self._end_totals, other._end_totals),
            (self._end_scores, other._end_scores),
            (self._pieces[:, :, :room], other._pieces),
            (self._lineage[:, :, :room], other._lineage),
            (self._end_pieces[:, :, :room], other._end_pieces),
        ):
            mine.copy_(theirs.index_select(0, segments))
        self._lineage[:, :, room:] = -1
        if self._spelling is not None and other._spelling is not None:
            self._spelling.take(other._spelling, segments)

    def step(self, model: FixedStepModel[FixedT], state: FixedT) -> None:
        """Write one more piece of each hypothesis, and note those that have ended."""
        beams = self._rules.beam_size
        own = self._slots[None, :, None].expand(len(self.done), -1, 1)  # (B, K, 1)
        self._lineage.index_copy_(2, self._position, own)
        logits = model.fixed_step(self._newest, self._position, self._lineage, state)  # (R, V)
        log_probs, candidates = self._continuations(logits)  # (R, C) each
        totals = self._scores.view(-1, 1) + log_probs  # (R, C)
        totals = totals.view(len(self.done), -1)  # (B, K * C)
        best, place = totals.topk(min(2 * beams, totals.shape[1]), dim=1)  # (B, c) each
        origin = place.div(candidates.shape[1], rounding_mode="floor")  # (B, c)
        piece = candidates.view(len(self.done), -1).gather(1, place)  # (B, c)
        norm = self._norms.index_select(0, self._position)  # (1,)
        ends = piece == self._rules.eos_id  # (B, c)
        self._note_ends(best[:, :beams], ends[:, :beams], origin[:, :beams], norm)

        # The best that go on; a stable sort by "ends" keeps them in order of their scores.
        going_on = ends.to(torch.int8).argsort(dim=1, stable=True)[:, :beams]  # (B, K)
        scores = best.masked_fill(ends, -math.inf).gather(1, going_on)  # (B, K)
        self._note_done(scores.amax(dim=1) / norm.to(scores.dtype))
        self._scores.copy_(scores)
        self._grow(origin.gather(1, going_on), piece.gather(1, going_on))

    def _continuations(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the likeliest next pieces of each row, and their ids, (R, C) each.

        Of a row at its limit only </s> is likely. Unlike `beam_search` this writes all V
        log-probabilities out, which a GPU does at once and in single precision.
        """
        eos_id, count = self._rules.eos_id, 2 * self._rules.beam_size
        if self._rules.renormalize:
            logits = logits.index_fill_(1, self._banned, -math.inf)
        log_probs = logits.log_softmax(dim=1, dtype=torch.float32)  # (R, V)
        eos = log_probs[:, eos_id].clone()  # (R,)
        if not self._rules.renormalize:
            log_probs.index_fill_(1, self._banned, -math.inf)
        if self._spelling is not None:
            log_probs = self._spelling.forbid_(log_probs, self._limit - self._position)
        best, pieces = log_probs.topk(min(count, log_probs.shape[1]), dim=1)  # (R, C) each
        at_limit = (self._limit <= self._position)[:, None]  # (B, 1)
        at_limit = at_limit.expand(-1, self._rules.beam_size).reshape(-1)  # (R,)
        first = torch.where(at_limit, eos, best[:, 0])  # (R,)
        best.masked_fill_(at_limit[:, None], -math.inf)
        best[:, 0] = first
        pieces[:, 0].masked_fill_(at_limit, eos_id)
        return best, pieces

    def _note_ends(self, totals: Tensor, ends: Tensor, origin: Tensor, norm: Tensor) -> None:
        """Keep the best of the finished hypotheses and of those that end now, (B, K) each."""
        beams = self._rules.beam_size
        is_end = ends & (totals > -math.inf) & ~self.done[:, None]  # (B, K)
        scores = (totals / norm).masked_fill(~is_end, -math.inf)  # (B, K), in double
        scores = torch.cat((self._end_scores, scores), dim=1)  # (B, 2K)
        # Of equal ones the earlier is first.
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :beams]  # (B, K)
        self._end_scores.copy_(scores.gather(1, order))
        totals = torch.cat((self._end_totals, totals), dim=1)  # (B, 2K)
        self._end_totals.copy_(totals.gather(1, order))
        lengths = torch.cat((self._ends, self._position.expand_as(self._ends)), dim=1)  # (B, 2K)
        self._ends.copy_(lengths.gather(1, order))
        pieces = torch.cat((self._end_pieces, _of_beams(self._pieces, origin)), dim=1)
        self._end_pieces.copy_(_of_beams(pieces, order))  # (B, K, n)

    def _note_done(self, hope: Tensor) -> None:
        """Which segments need no more steps, when the best that grows scores `hope` (B,)."""
        worst = self._end_scores[:, -1]  # (B,)
        is_decided = worst > -math.inf
        if not self._rules.early_stopping and self._rules.beam_size > 1:
            is_decided = is_decided & (worst >= hope)
        # Where nothing can grow the best is -inf, or no number.
        self.done.logical_or_(is_decided | ~(hope > -math.inf))

    def _grow(self, origin: Tensor, piece: Tensor) -> None:
        """Let beam k of each segment be what beam `origin[:, k]` was, and a new piece behind."""
        if self._spelling is not None:
            self._spelling.grow(origin, piece)
        self._lineage.copy_(_of_beams(self._lineage, origin))
        self._pieces.copy_(_of_beams(self._pieces, origin))
        self._pieces.index_copy_(2, self._position, piece[:, :, None])
        self._newest.copy_(piece.flatten())
        self._position.add_(1)

    def results(self, segments: Sequence[int]) -> Callable[[], list[list[Hypothesis]]]:
        """Gives the finished hypotheses of these segments, best first, when they have come."""
        chosen = sent(segments, self.done.device)
        coming = [
            ReadBack(each.index_select(0, chosen))
            for each in (self._ends, self._end_pieces, self._end_totals, self._end_scores)
        ]

        def hypotheses() -> list[list[Hypothesis]]:
            of_segments = zip(*(each.wait().tolist() for each in coming), strict=True)
            return [
                [
                    Hypothesis(tuple(ids[:length]), total, score)
                    for length, ids, total, score in zip(*of_segment, strict=True)
                    if score > -math.inf
                ]
                for of_segment in of_segments
            ]

        return hypotheses


def _of_beams(history: Tensor, beams: Tensor) -> Tensor:
    """What these beams (B, K) of their segments have, of (B, any, n): (B, K, n)."""
    return history.gather(1, beams[:, :, None].expand(-1, -1, history.shape[2]))
