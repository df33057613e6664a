"""Beam search; greedy search is a beam of 1."""

# B segments still open, K beam, R = B * K rows, V vocabulary, C candidates, t tokens generated

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfm_cli.decoding.constraints import (
    REPEATED_TOKENS,
    Constraints,
    forced_tokens,
    is_loop,
    only_forced,
    padded_prefixes,
    single_precision,
)
from tfm_cli.decoding.interface import (
    DEFAULT_OPTIONS,
    DecodingOptions,
    Hypothesis,
    NonFiniteScoresError,
    StateT,
    StepModel,
    TargetVocabulary,
    length_norm,
    refuse_non_finite,
)
from tfm_cli.decoding.utf8 import Utf8States


@dataclass(frozen=True, slots=True)
class SearchStep:
    """The candidates of one step, best first, of the segments that are still open.

    Attributes:
        segments: indices of the B segments.
        parents: the beam that each candidate continues, (B, C).
        tokens: its last token, (B, C).
        token_log_probs: log-probability of that token, (B, C).
        log_probs: log-probability of the whole hypothesis, (B, C).
        scores: the same after length normalization, (B, C).
        finished: True for the candidates that are finished hypotheses from now on, (B, C).
        beams: the beam that a candidate becomes, -1 for none, (B, C).
    """

    segments: tuple[int, ...]
    parents: Tensor
    tokens: Tensor
    token_log_probs: Tensor
    log_probs: Tensor
    scores: Tensor
    finished: Tensor
    beams: Tensor


def beam_search(
    model: StepModel[StateT],
    source: Tensor,
    source_keep: Tensor | None,
    *,
    limits: Sequence[int],
    vocabulary: TargetVocabulary,
    options: DecodingOptions = DEFAULT_OPTIONS,
    prefixes: Sequence[Sequence[int]] = (),
    observer: Callable[[SearchStep], None] | None = None,
) -> list[list[Hypothesis]]:
    """Return up to `beam_size` hypotheses for each segment, best first; at least one.

    A hypothesis is finished when </s> is among the `beam_size` best continuations of its segment.
    A segment is finished, and leaves the batch, when it has `beam_size` finished hypotheses and,
    without `early_stopping`, no active hypothesis scores above the worst of them.

    Args:
        model: the model that is searched.
        source: (B, S) ids.
        source_keep: (B, 1, 1, S), False at padding; None if there is none.
        limits: maximum number of tokens of each segment's translation, without </s>; at the limit
            </s> is forced.
        vocabulary: the special tokens.
        options: options of sampling are ignored.
        prefixes: tokens that the translation of each segment begins with, scored like any other,
            at most as many as its limit; empty for none. A prefix that ends inside a character is
            continued to the end of the character, beyond the limit if necessary.
        observer: called with each step; None for none.

    Raises:
        NonFiniteScoresError: the model computes scores that are not finite numbers.
    """
    beams = _Beams(limits, prefixes, vocabulary, options, source.device)
    state = model.start(source, source_keep)
    while beams.open_segments:
        candidates = beams.candidates(model.step(beams.last_tokens(), state))
        beams.collect_finished(candidates)
        active = candidates.active(options.settings.beam_size, vocabulary.eos_id)  # (B, K)
        if observer is not None:
            observer(beams.observed(candidates))
        if beams.utf8_states is not None:
            beams.utf8_states.append(active.parents, active.tokens)
        open_rows = beams.open_rows(active)
        if not open_rows:
            break
        if len(open_rows) < len(beams.open_segments):
            kept = torch.tensor(open_rows, device=source.device)
            beams.open_segments = [beams.open_segments[row] for row in open_rows]
            beams.select(kept)
            active = active.select(kept)
            state.select(kept)
        beams.append(active)
        if options.settings.beam_size > 1:
            state.reorder(active.parents)
    if not all(beams.finished):  # the scores of all its hypotheses overflowed
        raise NonFiniteScoresError
    return [
        sorted(hypotheses, key=lambda h: -h.score)[: options.settings.beam_size]
        for hypotheses in beams.finished
    ]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Continuations of the hypotheses of each segment, best first, (B, C) each."""

    scores: Tensor  # log-probabilities of the whole hypotheses
    parents: Tensor  # the beams that are continued
    tokens: Tensor
    token_log_probs: Tensor

    def active(self, beam_size: int, eos_id: int) -> "_Candidates":
        """Return the K best that do not end, padded with ended ones at a score of -inf."""
        ends, order = self._active_order(beam_size, eos_id)  # (B, C), (B, K)
        return _Candidates(
            self.scores.masked_fill(ends, -math.inf).gather(1, order),
            self.parents.gather(1, order),
            self.tokens.gather(1, order),
            self.token_log_probs.gather(1, order),
        )

    def beams(self, beam_size: int, eos_id: int) -> Tensor:
        """Return the beam that each candidate becomes, -1 for none, (B, C)."""
        ends, order = self._active_order(beam_size, eos_id)  # (B, C), (B, K)
        indices = torch.arange(order.shape[1], device=order.device).expand_as(order)
        beams = torch.full_like(self.tokens, -1).scatter(1, order, indices)
        return beams.masked_fill(ends | (self.scores == -math.inf), -1)

    def _active_order(self, beam_size: int, eos_id: int) -> tuple[Tensor, Tensor]:
        """Return True for each candidate that ends, (B, C), and the indices of the best K, (B, K).

        Those that do not end come first; ended ones fill the rest.
        """
        ends = self.tokens == eos_id
        # A stable sort by "ends" leaves them in order of their scores.
        return ends, ends.to(torch.int8).argsort(dim=1, stable=True)[:, :beam_size]

    def select(self, segments: Tensor) -> "_Candidates":
        """Return the candidates of only these segments."""
        return _Candidates(
            self.scores[segments],
            self.parents[segments],
            self.tokens[segments],
            self.token_log_probs[segments],
        )


class _Beams:
    """The active and the finished hypotheses of a batch."""

    def __init__(
        self,
        limits: Sequence[int],
        prefixes: Sequence[Sequence[int]],
        vocabulary: TargetVocabulary,
        options: DecodingOptions,
        device: torch.device,
    ) -> None:
        self.finished: list[list[Hypothesis]] = [[] for _ in limits]  # of all segments
        self.open_segments = list(range(len(limits)))  # indices of the B segments
        self.utf8_states: Utf8States | None = None
        if vocabulary.utf8 is not None:
            limits = vocabulary.utf8.limits(limits, prefixes)
            self.utf8_states = Utf8States(vocabulary.utf8, len(limits))
        self._options, self._settings = options, options.settings
        self._constraints = Constraints.of(vocabulary, options.settings, device)
        self._limit = torch.tensor(limits, device=device)  # (B,)
        self._prefix = padded_prefixes(prefixes, device)  # (B, P)
        # All hypotheses are the same before the first token, so one is enough: K is 1.
        self._scores = torch.zeros(len(limits), 1, device=device)  # (B, K) log-probabilities
        self._tokens = torch.full((len(limits), 1, 1), vocabulary.start_id, device=device)
        self._token_log_probs = torch.zeros_like(self._scores)[:, :, None]  # (B, K, 1 + t)

    def last_tokens(self) -> Tensor:
        """Return the last token of each row, (R,)."""
        return self._tokens[:, :, -1].reshape(-1)

    def candidates(self, logits: Tensor) -> _Candidates:
        """Return the 2K best continuations of each segment, given logits (R, V)."""
        num_segments, count = len(self.open_segments), 2 * self._settings.beam_size
        log_probs, tokens = self._continuations(logits, count)  # (R, C) each
        totals = self._scores.view(-1, 1) + log_probs  # (R, C)
        totals = totals.view(num_segments, -1)  # (B, K * C)
        best, index = totals.topk(min(count, totals.shape[1]), dim=1)  # (B, C') each
        return _Candidates(
            best,
            index // tokens.shape[1],
            tokens.view(num_segments, -1).gather(1, index),
            log_probs.view(num_segments, -1).gather(1, index),
        )

    def _continuations(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and ids of the likeliest next tokens of each row, (R, C) each.

        Only these few are normalized: the log-softmax of all V logits is never materialized.
        """
        logits, eos_id = single_precision(logits), self._constraints.eos_id
        generated = self._tokens[:, :, 1:].flatten(0, 1)  # (R, t)
        remaining = self._limit - generated.shape[1]  # (B,) tokens that may still be generated
        forced = forced_tokens(self._prefix, generated.shape[1], self._tokens.shape[1])
        eos = logits[:, eos_id].clone()
        logits, allowed = self._constraints.apply(logits, generated, forced)  # (R, V) each
        total = (allowed if self._settings.renormalize else logits).logsumexp(dim=1, keepdim=True)
        refuse_non_finite(total)
        plain, logits = logits, allowed if forced is None else only_forced(allowed, forced)
        must_end = self._must_end(generated, remaining)  # (R,)
        if bool(must_end.any()):
            otherwise = logits[:, eos_id]
            logits = logits.masked_fill(must_end[:, None], -math.inf)
            logits[:, eos_id] = torch.where(must_end, eos, otherwise)
        count = min(count, logits.shape[1])
        best, tokens = logits.topk(count, dim=1)  # (R, C) each
        if self.utf8_states is not None:
            rows = self.utf8_states.wrong_rows(best, tokens, remaining, forced)  # (r,)
            if rows is not None:
                restricted, stuck = self.utf8_states.restricted(logits, plain, rows, remaining)
                best[rows], tokens[rows] = restricted.topk(count, dim=1)
                if self._settings.renormalize and len(stuck):
                    total[stuck] = plain[stuck].logsumexp(dim=1, keepdim=True)
        return best - total, tokens

    def _must_end(self, generated: Tensor, remaining: Tensor) -> Tensor:
        """Return True for rows that are at their limit or in a loop, (R,)."""
        must_end = (remaining < 1).repeat_interleave(len(generated) // len(remaining))
        if self._options.stops_loops and generated.shape[1] >= REPEATED_TOKENS:
            loops = [is_loop(row) for row in generated.tolist()]
            must_end |= torch.tensor(loops, device=generated.device)
        return must_end

    def collect_finished(self, candidates: _Candidates) -> None:
        """Store the hypotheses that end now: </s> among the K best candidates of a segment."""
        norm = self._norm()
        for row, column in self._finished_now(candidates).nonzero().tolist():
            parent = candidates.parents[row, column]
            ids = self._tokens[row, parent, 1:].tolist()
            total = float(candidates.scores[row, column])
            log_probs: tuple[float, ...] = ()
            if self._options.token_log_probs:
                earlier = self._token_log_probs[row, parent, 1:].tolist()
                log_probs = (*earlier, float(candidates.token_log_probs[row, column]))
            self.finished[self.open_segments[row]].append(
                Hypothesis(tuple(ids), total, total / norm, log_probs)
            )

    def _finished_now(self, candidates: _Candidates) -> Tensor:
        """Return True for </s> among the K best candidates of a segment, (B, C)."""
        at_end = (candidates.tokens == self._constraints.eos_id) & (candidates.scores > -math.inf)
        at_end[:, self._settings.beam_size :] = False
        return at_end

    def observed(self, candidates: _Candidates) -> SearchStep:
        """Return the step that has these candidates."""
        return SearchStep(
            segments=tuple(self.open_segments),
            parents=candidates.parents,
            tokens=candidates.tokens,
            token_log_probs=candidates.token_log_probs,
            log_probs=candidates.scores,
            scores=candidates.scores / self._norm(),
            finished=self._finished_now(candidates),
            beams=candidates.beams(self._settings.beam_size, self._constraints.eos_id),
        )

    def open_rows(self, active: _Candidates) -> list[int]:
        """Return the rows, of B, of segments that an active hypothesis may still improve."""
        best = (active.scores.max(dim=1).values / self._norm()).tolist()  # B
        return [
            row
            for row, (segment, score) in enumerate(zip(self.open_segments, best, strict=True))
            if score > -math.inf and not self._is_decided(self.finished[segment], score)
        ]

    def _is_decided(self, finished: Sequence[Hypothesis], best_active: float) -> bool:
        """Return True if a segment needs no more steps, given the best active score.

        With `early_stopping`, as in fairseq and CTranslate2, a segment needs only `beam_size`
        finished hypotheses. Without it, as in `generate` of Hugging Face, a few poor short
        hypotheses cannot exclude a good one that ends later. Measured with a beam of 4 on
        Multi30k: 0.14 BLEU more in the same time.
        """
        beam_size = self._settings.beam_size
        if len(finished) < beam_size:
            return False
        # Greedy search follows one hypothesis, and that has ended.
        if self._settings.early_stopping or beam_size == 1:
            return True
        scores = sorted((hypothesis.score for hypothesis in finished), reverse=True)
        return scores[beam_size - 1] >= best_active

    def _norm(self) -> float:
        """Return the length normalization of a hypothesis with one more token."""
        settings = self._settings
        return length_norm(self._tokens.shape[2], settings.length_penalty, settings.length_norm)

    def select(self, segments: Tensor) -> None:
        """Keep the active hypotheses of only these segments."""
        self._tokens, self._limit = self._tokens[segments], self._limit[segments]
        self._prefix = None if self._prefix is None else self._prefix[segments]
        self._token_log_probs = self._token_log_probs[segments]
        if self.utf8_states is not None:
            self.utf8_states.select(segments)

    def append(self, active: _Candidates) -> None:
        """Replace the hypotheses with these continuations, (B, K)."""
        self._scores = active.scores
        self._tokens = _appended(self._tokens, active.parents, active.tokens)  # (B, K, t + 1)
        if self._options.token_log_probs:
            self._token_log_probs = _appended(
                self._token_log_probs, active.parents, active.token_log_probs
            )


def _appended(history: Tensor, parents: Tensor, entries: Tensor) -> Tensor:
    """Return the history (B, K, t) of the beams `parents` (B, K), with one more entry each."""
    earlier = history.gather(1, parents[:, :, None].expand(-1, -1, history.shape[2]))
    return torch.cat((earlier, entries[:, :, None]), dim=2)
