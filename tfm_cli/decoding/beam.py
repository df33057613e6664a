"""Beam search; greedy search is a beam of 1."""

# B segments still open, K beam, R = B * K rows, V vocabulary, C candidates, t pieces written

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tfm_cli.decoding.constraints import (
    REPEATED_PIECES,
    Constraints,
    forced_pieces,
    is_loop,
    only_forced,
    padded_prefixes,
)
from tfm_cli.decoding.interface import (
    Hypothesis,
    NonFiniteScoresError,
    StateT,
    StepModel,
    refuse_non_finite,
)
from tfm_cli.decoding.length import length_norm
from tfm_cli.decoding.utf8 import Spelling, Utf8


def beam_search(
    model: StepModel[StateT],
    source: Tensor,
    source_keep: Tensor | None,
    *,
    limits: Sequence[int],
    start_id: int,
    eos_id: int,
    banned_ids: Sequence[int] = (),
    beam_size: int = 4,
    length_penalty: float = 1.0,
    norm_kind: str = "power",
    early_stopping: bool = False,
    renormalize: bool = False,
    no_repeat_ngram_size: int = 0,
    repetition_penalty: float = 1.0,
    prefixes: Sequence[Sequence[int]] = (),
    utf8: Utf8 | None = None,
    piece_scores: bool = False,
    stops_loops: bool = False,
) -> list[list[Hypothesis]]:
    """Up to `beam_size` hypotheses for each segment, best first; at least one.

    A hypothesis is finished when </s> is among the `beam_size` best continuations of its segment.
    A segment is finished, and leaves the batch, when it has `beam_size` finished hypotheses and,
    without `early_stopping`, none of those still growing scores above the worst of them.

    Args:
        model: what is searched.
        source: (B, S) ids.
        source_keep: (B, 1, 1, S), False at padding; None if there is none.
        limits: most pieces of each segment's translation, without </s>, which is then forced.
        start_id: what every translation is a continuation of.
        eos_id: ends a translation.
        banned_ids: never written.
        beam_size: hypotheses that are followed at a time.
        length_penalty: exponent of the length normalisation.
        norm_kind: what is raised to it, see `length_norm`.
        early_stopping: stop at the count, as fairseq and CTranslate2 do. The other way is that of
            `generate` of Hugging Face: a few poor short hypotheses cannot keep out a good one that
            ends later. Measured with a beam of 4 on Multi30k: 0.14 BLEU more in the same time.
        renormalize: the probabilities of what may be written sum to 1; else the mass of
            `banned_ids` counts, and of what `no_repeat_ngram_size` forbids.
        no_repeat_ngram_size: no run of this many pieces is written twice; 0 for any.
        repetition_penalty: divides the positive logits of pieces already written and multiplies
            the negative ones (Keskar et al. 2019, arXiv:1909.05858).
        prefixes: pieces that the translation of each segment begins with, scored like any other,
            at most as many as its limit; empty for none. One that ends inside a character is
            continued to its end, beyond the limit if need be.
        utf8: lets byte pieces spell nothing but valid UTF-8: a hypothesis neither ends nor goes on
            with another piece inside a character, and begins none that the limit would cut off.
            `no_repeat_ngram_size` gives way where a character could not be ended otherwise. None
            for no such constraint. Scores are the model's in either case.
        piece_scores: note the log-probability of each piece of a hypothesis.
        stops_loops: end a hypothesis that repeats the same few pieces, as if at its limit.

    Raises:
        NonFiniteScoresError: the model gives scores that are not finite numbers.
    """
    device = source.device
    finished: list[list[Hypothesis]] = [[] for _ in limits]
    open_segments = list(range(len(limits)))  # indices of the segments still open
    spelling = None
    if utf8 is not None:
        limits, spelling = utf8.limits(limits, prefixes), Spelling(utf8, len(limits))
    limit = torch.tensor(limits, device=device)  # (B,)
    constraints = Constraints(
        torch.tensor(list(banned_ids), dtype=torch.long, device=device),
        eos_id,
        no_repeat_ngram_size=no_repeat_ngram_size,
        repetition_penalty=repetition_penalty,
    )
    prefix = padded_prefixes(prefixes, device)  # (B, P)
    state = model.start(source, source_keep)

    beam = 1  # all hypotheses are the same before the first piece, so one is enough
    scores = torch.zeros(len(limits), 1, device=device)  # (B, K) log-probabilities
    pieces = torch.full((len(limits), 1, 1), start_id, device=device)  # (B, K, t)
    gains = torch.zeros_like(scores)[:, :, None]  # (B, K, t) log-probabilities of the pieces
    while open_segments:
        segments = len(open_segments)
        logits = model.step(pieces[:, :, -1].reshape(-1), state)  # (R, V)
        room = limit - (pieces.shape[2] - 1)  # (B,) pieces that may still be written
        loops = None
        if stops_loops and pieces.shape[2] > REPEATED_PIECES:
            rows = pieces[:, :, 1:].flatten(0, 1).tolist()
            loops = torch.tensor([is_loop(row) for row in rows], device=device)  # (R,)
        log_probs, candidates = _continuations(
            logits, 2 * beam_size, constraints=constraints, room=room, renormalize=renormalize,
            written=pieces[:, :, 1:].flatten(0, 1),
            forced=forced_pieces(prefix, pieces.shape[2] - 1, beam), spelling=spelling, loops=loops,
        )  # fmt: skip  # (R, C) each
        totals = scores.view(-1, 1) + log_probs  # (R, C)
        totals = totals.view(segments, -1)  # (B, K * C)
        best, place = totals.topk(min(2 * beam_size, totals.shape[1]), dim=1)  # (B, C')
        origin = place // candidates.shape[1]  # (B, C') the row within the segment
        piece = candidates.view(segments, -1).gather(1, place)  # (B, C')
        if piece_scores:
            gain = log_probs.view(segments, -1).gather(1, place)  # (B, C')

        ends = piece == eos_id  # (B, C')
        at_end = ends & (best > -math.inf)
        at_end[:, beam_size:] = False
        norm = length_norm(pieces.shape[2], length_penalty, norm_kind)
        for row, column in at_end.nonzero().tolist():
            ids = pieces[row, origin[row, column], 1:].tolist()
            total = float(best[row, column])
            each: tuple[float, ...] = ()
            if piece_scores:
                earlier = gains[row, origin[row, column], 1:].tolist()
                each = (*earlier, float(gain[row, column]))
            finished[open_segments[row]].append(Hypothesis(tuple(ids), total, total / norm, each))

        # The best that go on; a stable sort by "ends" keeps them in order of their scores.
        going_on = ends.to(torch.int8).argsort(dim=1, stable=True)[:, :beam_size]  # (B, K)
        scores = best.masked_fill(ends, -math.inf).gather(1, going_on)  # (B, K)
        origin, piece = origin.gather(1, going_on), piece.gather(1, going_on)  # (B, K)
        if piece_scores:
            gains = _extended(gains, origin, gain.gather(1, going_on))  # (B, K, t + 1)

        if spelling is not None:
            spelling.grow(origin, piece)
        hopes = scores.max(dim=1).values / norm  # (B,)
        staying = [
            row
            for row, (segment, hope) in enumerate(zip(open_segments, hopes.tolist(), strict=True))
            if hope > -math.inf
            and not _is_decided(finished[segment], beam_size, hope, early_stopping=early_stopping)
        ]
        if len(staying) < segments:
            open_segments = [open_segments[row] for row in staying]
            if not open_segments:
                break
            kept = torch.tensor(staying, device=device)
            state.keep(kept)
            origin, piece, scores = origin[kept], piece[kept], scores[kept]
            pieces, limit = pieces[kept], limit[kept]
            prefix = None if prefix is None else prefix[kept]
            gains = gains[kept]
            if spelling is not None:
                spelling.keep(kept)
        pieces = _extended(pieces, origin, piece)  # (B, K, t + 1)
        if beam_size > 1:
            state.reorder(origin)
        beam = origin.shape[1]
    if not all(finished):  # each hypothesis had a sum of scores that overflowed
        raise NonFiniteScoresError
    return [sorted(found, key=lambda h: -h.score)[:beam_size] for found in finished]


def _extended(history: Tensor, origin: Tensor, newest: Tensor) -> Tensor:
    """What the rows `origin` (B, K) of each segment have, (B, K, t), and something new behind."""
    earlier = history.gather(1, origin[:, :, None].expand(-1, -1, history.shape[2]))
    return torch.cat((earlier, newest[:, :, None]), dim=2)


def _is_decided(
    finished: Sequence[Hypothesis], beam_size: int, hope: float, *, early_stopping: bool
) -> bool:
    """Whether a segment needs no more steps, when the best growing hypothesis now scores `hope`."""
    if len(finished) < beam_size:
        return False
    # Greedy search follows one hypothesis, and that has ended.
    if early_stopping or beam_size == 1:
        return True
    scores = sorted((hypothesis.score for hypothesis in finished), reverse=True)
    return scores[beam_size - 1] >= hope


def _continuations(
    logits: Tensor,
    count: int,
    *,
    constraints: Constraints,
    room: Tensor,
    renormalize: bool,
    written: Tensor,
    forced: Tensor | None,
    spelling: Spelling | None,
    loops: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The likeliest next pieces of each row and their log-probabilities, (R, C) each.

    Only these few are normalised: the log-softmax of all V logits is never written out.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    eos_id = constraints.eos_id
    eos = logits[:, eos_id].clone()
    logits, allowed = constraints.weigh(logits, written, forced)  # (R, V) each
    total = (allowed if renormalize else logits).logsumexp(dim=1, keepdim=True)  # (R, 1)
    refuse_non_finite(total)
    plain, logits = logits, allowed if forced is None else only_forced(allowed, forced)
    at_limit = (room < 1).repeat_interleave(len(logits) // len(room))  # (R,)
    if loops is not None:
        at_limit |= loops
    if bool(at_limit.any()):
        possible = logits[:, eos_id]
        logits = logits.masked_fill(at_limit[:, None], -math.inf)
        logits[:, eos_id] = torch.where(at_limit, eos, possible)
    count = min(count, logits.shape[1])
    best, pieces = logits.topk(count, dim=1)  # (R, C) each
    if spelling is not None:
        rows = spelling.wrong_rows(best, pieces, room, forced)  # (r,)
        if rows is not None:
            restricted, stuck = spelling.restricted(logits, plain, rows, room)
            best[rows], pieces[rows] = restricted.topk(count, dim=1)
            if renormalize and len(stuck):
                total[stuck] = plain[stuck].logsumexp(dim=1, keepdim=True)
    return best - total, pieces
