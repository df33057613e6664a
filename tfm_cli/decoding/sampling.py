"""Sampling: each next piece is drawn by its probability, among the likeliest if so asked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tfm_cli.decoding.constraints import Constraints, forced_pieces, only_forced, padded_prefixes
from tfm_cli.decoding.interface import Hypothesis, StateT, StepModel, refuse_non_finite
from tfm_cli.decoding.length import length_norm
from tfm_cli.decoding.utf8 import Spelling, Utf8

# Random numbers by counter: each is a function of a seed and a step, and there is no state.
#
# What is drawn at a step depends on nothing that was drawn before, so it is the same in a batch of
# any size and order, after a restart, and in any language that has integers of 64 bits.

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15  # the golden ratio, 2**64 / 1.618…, made odd


def mixed(number: int) -> int:
    """Return 64 bits that each depend on all bits of a number of 64 bits.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
    doi:10.1145/2660193.2660195, figure 16, with the constants of variant 13 of Stafford.
    """
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31


def random_bits(seed: int, step: int) -> int:
    """Return output number `step`, from 0, of the generator SplitMix64 with a seed, as 64 bits."""
    return mixed(seed + (step + 1) * _GAMMA & _MASK)


def uniform(seed: int, step: int) -> float:
    """Return a number in [0, 1), one of the 2**53 multiples of 2**-53 there."""
    return (random_bits(seed, step) >> 11) * 2.0**-53


# B segments still open, V vocabulary, C pieces that are left to draw from, t pieces written


_COLDEST = 1e-6  # no draw is left by then, and a difference of logits divided by it is finite


def sample(
    model: StepModel[StateT],
    source: Tensor,
    source_keep: Tensor | None,
    *,
    limits: Sequence[int],
    seeds: Sequence[int],
    start_id: int,
    eos_id: int,
    banned_ids: Sequence[int] = (),
    length_penalty: float = 1.0,
    norm_kind: str = "power",
    renormalize: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    no_repeat_ngram_size: int = 0,
    repetition_penalty: float = 1.0,
    prefixes: Sequence[Sequence[int]] = (),
    utf8: Utf8 | None = None,
    piece_scores: bool = False,
) -> list[Hypothesis]:
    """One drawn hypothesis for each segment; its probabilities are the model's own.

    Args:
        model: what is drawn from.
        source: (B, S) ids.
        source_keep: (B, 1, 1, S), False at padding; None if there is none.
        limits: most pieces of each segment's translation, without </s>, which is then forced.
        seeds: one for each segment, of 64 bits. Its draw at a step is a function of the seed and
            the number of the step, so that it does not depend on its neighbours.
        start_id: what every translation is a continuation of.
        eos_id: ends a translation.
        banned_ids: never drawn.
        length_penalty: exponent of the length normalisation of the score.
        norm_kind: what is raised to it, see `length_norm`.
        renormalize: see `beam_search`.
        temperature: divides the logits; below 1 the likely becomes likelier.
        top_k: draw among this many likeliest pieces; 0 for all.
        top_p: then among the fewest likeliest pieces whose mass reaches this share (Holtzman et
            al. 2020, arXiv:1904.09751).
        no_repeat_ngram_size: see `beam_search`.
        repetition_penalty: see `beam_search`.
        prefixes: see `beam_search`.
        utf8: see `beam_search`.
        piece_scores: see `beam_search`.

    Raises:
        NonFiniteScoresError: the model gives scores that are not finite numbers.
    """
    device = source.device
    spelling = None
    if utf8 is not None:
        limits, spelling = utf8.limits(limits, prefixes), Spelling(utf8, len(limits))
    open_segments = list(range(len(limits)))
    written: list[list[int]] = [[] for _ in limits]
    gains: list[list[float]] = [[] for _ in limits]  # log-probabilities of the pieces
    constraints = Constraints(
        torch.tensor(list(banned_ids), dtype=torch.long, device=device),
        eos_id,
        no_repeat_ngram_size=no_repeat_ngram_size,
        repetition_penalty=repetition_penalty,
    )
    prefix = padded_prefixes(prefixes, device)  # (B, P)
    pieces = torch.full((len(limits), 1), start_id, device=device)  # (B, t)
    state = model.start(source, source_keep)
    while open_segments:
        logits = model.step(pieces[:, -1], state)  # (B, V)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        forced = forced_pieces(prefix, pieces.shape[1] - 1, 1)
        logits, allowed = constraints.weigh(logits, pieces[:, 1:], forced)  # (B, V) each
        refuse_non_finite(logits.amax(dim=1))
        log_probs = (allowed if renormalize else logits).log_softmax(dim=1)  # (B, V)
        if forced is not None:
            allowed = only_forced(allowed, forced)
        steps = [len(written[segment]) for segment in open_segments]
        if spelling is not None:
            ends = [limits[segment] for segment in open_segments]
            room = torch.tensor(ends, device=device) - (pieces.shape[1] - 1)  # (B,)
            allowed = allowed.clone() if allowed is logits else allowed
            stuck = spelling.forbid_(allowed, logits, room, forced)
            if renormalize and len(stuck):
                log_probs[stuck] = logits[stuck].log_softmax(dim=1)
        chances = [
            uniform(seeds[segment], step)
            for segment, step in zip(open_segments, steps, strict=True)
        ]
        piece = _drawn(allowed, chances, temperature=temperature, top_k=top_k, top_p=top_p)
        piece = piece.to(device)  # (B, 1)
        for row, (segment, step) in enumerate(zip(open_segments, steps, strict=True)):
            if step >= limits[segment]:
                piece[row] = eos_id
        gain = log_probs.gather(1, piece)[:, 0]  # (B,)
        refuse_non_finite(gain)
        gained = gain.tolist()
        staying = []
        for row, (segment, new) in enumerate(zip(open_segments, piece[:, 0].tolist(), strict=True)):
            gains[segment].append(gained[row])
            if new != eos_id:
                written[segment].append(new)
                staying.append(row)
        pieces = torch.cat((pieces, piece), dim=1)  # (B, t + 1)
        if spelling is not None:
            spelling.grow(torch.zeros_like(piece), piece)
        if len(staying) < len(open_segments):
            open_segments = [open_segments[row] for row in staying]
            if open_segments:
                kept = torch.tensor(staying, device=device)
                pieces = pieces[kept]
                prefix = None if prefix is None else prefix[kept]
                state.keep(kept)
                if spelling is not None:
                    spelling.keep(kept)
    drawn_hypotheses = []
    for ids, each in zip(written, gains, strict=True):
        total = sum(each)
        score = total / length_norm(len(ids) + 1, length_penalty, norm_kind)
        scores = tuple(each) if piece_scores else ()
        drawn_hypotheses.append(Hypothesis(tuple(ids), total, score, scores))
    return drawn_hypotheses


def _drawn(
    logits: Tensor, chances: Sequence[float], *, temperature: float, top_k: int, top_p: float
) -> Tensor:
    """Return the piece of each row that is drawn by a number in [0, 1), (B, 1).

    The pieces that are left stand in the order of their ids, each as wide as it is likely, and the
    number says how far along them to go. In this order, unlike that of their probabilities, another
    way of rounding the logits moves the borders between pieces a little and swaps none of them.
    """
    if logits.device.type == "mps":
        logits = logits.cpu()  # an MPS device has no double precision
    logits = logits.double()  # (B, V)
    # Relative to the likeliest, whose 0 stays 0 however cold it gets.
    weights = ((logits - logits.amax(dim=1, keepdim=True)) / max(temperature, _COLDEST)).exp()
    if top_k or top_p < 1:
        # The lower id first where two are equally likely.
        pieces = logits.sort(dim=1, descending=True, stable=True).indices  # (B, V)
        pieces = pieces[:, : top_k or None]  # (B, C)
        kept = weights.gather(1, pieces)  # (B, C)
        mass = kept.cumsum(dim=1)  # (B, C)
        # The mass of the likelier ones, 0 for the first, decides.
        kept[:, 1:].masked_fill_(mass[:, :-1] >= top_p * mass[:, -1:], 0.0)
        weights = torch.zeros_like(weights).scatter_(1, pieces, kept)  # (B, V)
    ends = weights.cumsum(dim=1)  # (B, V)
    whole = ends[:, -1:].contiguous()  # (B, 1)
    chance = torch.tensor(chances, dtype=torch.float64, device=logits.device)[:, None]  # (B, 1)
    place = torch.searchsorted(ends, whole * chance, right=True)  # (B, 1)
    # A product that is rounded up to the whole mass belongs to the last piece that has any.
    return place.minimum(torch.searchsorted(ends, whole))  # (B, 1)
