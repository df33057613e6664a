"""Sampling: each token is drawn from the model's distribution, optionally truncated."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding.constraints import (
    Constraints,
    forced_tokens,
    only_forced,
    padded_prefixes,
    single_precision,
)
from tfm_cli.decoding.interface import (
    DEFAULT_OPTIONS,
    DecodingOptions,
    Hypothesis,
    StateT,
    StepModel,
    TargetVocabulary,
    length_norm,
    refuse_non_finite,
)
from tfm_cli.decoding.utf8 import Utf8States

# Counter-based random numbers: each is a function of a seed and a step, without state.
#
# A draw does not depend on earlier draws, so it is the same in a batch of any size and order, after
# a restart, and in any language with 64-bit integers.

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15  # the golden ratio, 2**64 / 1.618…, rounded to an odd number


def mixed(number: int) -> int:
    """Return 64 bits that each depend on all bits of a 64-bit number.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
    doi:10.1145/2660193.2660195, figure 16, with the constants of variant 13 of Stafford.
    """
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31


def random_bits(seed: int, step: int) -> int:
    """Return the 64 bits of output `step`, from 0, of the generator SplitMix64 with a seed."""
    return mixed(seed + (step + 1) * _GAMMA & _MASK)


def uniform(seed: int, step: int) -> float:
    """Return a uniformly distributed multiple of 2**-53 in [0, 1)."""
    return (random_bits(seed, step) >> 11) * 2.0**-53


# B segments still open, V vocabulary, C tokens that may be drawn, t tokens generated

_MIN_TEMPERATURE = 1e-6  # in effect deterministic, and quotients of logits stay finite


def sample(
    model: StepModel[StateT],
    source: Tensor,
    source_keep: Tensor | None,
    *,
    limits: Sequence[int],
    seeds: Sequence[int],
    vocabulary: TargetVocabulary,
    options: DecodingOptions = DEFAULT_OPTIONS,
    prefixes: Sequence[Sequence[int]] = (),
) -> list[Hypothesis]:
    """Return one sampled hypothesis for each segment, scored with the model's own distribution.

    Args:
        model: the model that is sampled.
        source: (B, S) ids.
        source_keep: (B, 1, 1, S), False at padding; None if there is none.
        limits: maximum number of tokens of each segment's translation, without </s>; at the limit
            </s> is forced.
        seeds: one for each segment, of 64 bits. The draw at a step is a function of the seed and
            the number of the step, so that it does not depend on other segments.
        vocabulary: the special tokens.
        options: options of beam search, such as `stops_loops`, are ignored.
        prefixes: see `beam_search`.

    Raises:
        NonFiniteScoresError: the model computes scores that are not finite numbers.
    """
    samples = _Samples(limits, seeds, prefixes, vocabulary, options, source.device)
    state = model.start(source, source_keep)
    while samples.open_segments:
        logits = model.step(samples.last_tokens(), state)  # (B, V)
        kept = samples.append_drawn(logits)
        if kept is not None and samples.open_segments:
            state.select(kept)
    return samples.hypotheses()


class _Samples:
    """The translations that are sampled for a batch, one for each segment."""

    def __init__(
        self,
        limits: Sequence[int],
        seeds: Sequence[int],
        prefixes: Sequence[Sequence[int]],
        vocabulary: TargetVocabulary,
        options: DecodingOptions,
        device: torch.device,
    ) -> None:
        self.open_segments = list(range(len(limits)))  # indices of the B segments
        self._utf8_states: Utf8States | None = None
        if vocabulary.utf8 is not None:
            limits = vocabulary.utf8.limits(limits, prefixes)
            self._utf8_states = Utf8States(vocabulary.utf8, len(limits))
        self._options, self._settings = options, options.settings
        self._constraints = Constraints.of(vocabulary, options.settings, device)
        self._limits, self._seeds = limits, seeds
        self._prefix = padded_prefixes(prefixes, device)  # (B, P)
        self._tokens = torch.full((len(limits), 1), vocabulary.start_id, device=device)  # (B, 1+t)
        self._generated: list[list[int]] = [[] for _ in limits]  # of all segments, without </s>
        self._token_log_probs: list[list[float]] = [[] for _ in limits]

    def last_tokens(self) -> Tensor:
        """Return the last token of each open segment, (B,)."""
        return self._tokens[:, -1]

    def append_drawn(self, logits: Tensor) -> Tensor | None:
        """Draw the next token of each open segment, given logits (B, V).

        Return the segments (B',) that remain open; None if all do.
        """
        log_probs, allowed = self._distributions(logits)  # (B, V) each
        step = self._tokens.shape[1] - 1
        numbers = [uniform(self._seeds[segment], step) for segment in self.open_segments]
        tokens = _drawn(allowed, numbers, self._settings).to(logits.device)  # (B, 1)
        for row, segment in enumerate(self.open_segments):
            if step >= self._limits[segment]:
                tokens[row] = self._constraints.eos_id
        token_log_probs = log_probs.gather(1, tokens)[:, 0]  # (B,)
        refuse_non_finite(token_log_probs)
        for segment, log_prob in zip(self.open_segments, token_log_probs.tolist(), strict=True):
            self._token_log_probs[segment].append(log_prob)
        open_rows = []
        for row, token in enumerate(tokens[:, 0].tolist()):
            if token != self._constraints.eos_id:
                self._generated[self.open_segments[row]].append(token)
                open_rows.append(row)
        self._tokens = torch.cat((self._tokens, tokens), dim=1)  # (B, t + 1)
        if self._utf8_states is not None:
            self._utf8_states.append(torch.zeros_like(tokens), tokens)
        if len(open_rows) == len(self.open_segments):
            return None
        self.open_segments = [self.open_segments[row] for row in open_rows]
        kept = torch.tensor(open_rows, dtype=torch.long, device=tokens.device)
        self._select(kept)
        return kept

    def _distributions(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's log-probabilities and the logits of permitted tokens, (B, V) each."""
        step, renormalize = self._tokens.shape[1] - 1, self._settings.renormalize
        forced = forced_tokens(self._prefix, step, 1)
        logits, allowed = self._constraints.apply(
            single_precision(logits), self._tokens[:, 1:], forced
        )
        refuse_non_finite(logits.amax(dim=1))
        log_probs = (allowed if renormalize else logits).log_softmax(dim=1)  # (B, V)
        if forced is not None:
            allowed = only_forced(allowed, forced)
        if self._utf8_states is not None:
            limit = torch.tensor([self._limits[segment] for segment in self.open_segments])
            remaining = limit.to(logits.device) - step  # (B,)
            allowed = allowed.clone() if allowed is logits else allowed
            stuck = self._utf8_states.forbid_(allowed, logits, remaining, forced)
            if renormalize and len(stuck):
                log_probs[stuck] = logits[stuck].log_softmax(dim=1)
        return log_probs, allowed

    def _select(self, segments: Tensor) -> None:
        """Keep only these open segments."""
        self._tokens = self._tokens[segments]
        self._prefix = None if self._prefix is None else self._prefix[segments]
        if self._utf8_states is not None:
            self._utf8_states.select(segments)

    def hypotheses(self) -> list[Hypothesis]:
        """Return the sampled hypothesis of each segment."""
        settings, found = self._settings, []
        for ids, log_probs in zip(self._generated, self._token_log_probs, strict=True):
            total = sum(log_probs)
            score = total / length_norm(len(ids) + 1, settings.length_penalty, settings.length_norm)
            stored = tuple(log_probs) if self._options.token_log_probs else ()
            found.append(Hypothesis(tuple(ids), total, score, stored))
        return found


def _drawn(logits: Tensor, numbers: Sequence[float], settings: SearchConfig) -> Tensor:
    """Return the token of each row that a number in [0, 1) selects, (B, 1).

    `top_p` truncates the distribution as in Holtzman et al. 2020, arXiv:1904.09751, after `top_k`.
    The number is an argument of the inverse of the cumulative distribution, in which tokens are in
    the order of their ids. A different rounding of the logits then moves the borders between
    tokens slightly; in the order of their probabilities, it could swap tokens.
    """
    if logits.device.type == "mps":
        logits = logits.cpu()  # an MPS device has no double precision
    logits = logits.double()  # (B, V)
    # Relative to the likeliest token, whose weight is 1 at any temperature.
    temperature = max(settings.temperature, _MIN_TEMPERATURE)
    weights = ((logits - logits.amax(dim=1, keepdim=True)) / temperature).exp()
    if settings.top_k or settings.top_p < 1:
        # Of equally likely tokens, the one with the lower id is first.
        tokens = logits.sort(dim=1, descending=True, stable=True).indices  # (B, V)
        tokens = tokens[:, : settings.top_k or None]  # (B, C)
        kept = weights.gather(1, tokens)  # (B, C)
        mass = kept.cumsum(dim=1)  # (B, C)
        # A token is dropped if the likelier ones reach `top_p`; the first is always kept.
        kept[:, 1:].masked_fill_(mass[:, :-1] >= settings.top_p * mass[:, -1:], 0.0)
        weights = torch.zeros_like(weights).scatter_(1, tokens, kept)  # (B, V)
    ends = weights.cumsum(dim=1)  # (B, V)
    whole = ends[:, -1:].contiguous()  # (B, 1)
    number = torch.tensor(numbers, dtype=torch.float64, device=logits.device)[:, None]  # (B, 1)
    token = torch.searchsorted(ends, whole * number, right=True)  # (B, 1)
    # If the product is rounded up to the whole mass, select the last token with any mass.
    return token.minimum(torch.searchsorted(ends, whole))  # (B, 1)
