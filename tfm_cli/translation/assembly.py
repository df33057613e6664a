"""Assembly of the translation of each line from the hypotheses of its segments."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.text.scripts import join_texts
from tfm_cli.text.sentences import count_marks, sentence_ends
from tfm_cli.translation.segments import Segment

if TYPE_CHECKING:
    from tfm_cli.tokenizer.tokenizer import Tokenizer
    from tfm_cli.translation.alignment import Aligner


logger = logging.getLogger(__name__)

_MAX_CHOICES = 16  # combinations that are tried for each candidate of a line of several segments

_MIN_SENTENCES = 3  # of a source whose translation can lack sentences
_MIN_TOKENS = 16  # of a source whose translation can lack tokens
_MAX_TOKEN_RATIO = 4  # a translation may lack text if it has this many times fewer tokens


@dataclass(frozen=True, slots=True)
class Candidate:
    """One translation of a line.

    Attributes:
        text: the translation.
        score: length-normalized log-probability; 0 for a blank line.
        log_probability: sum over all tokens.
        pieces: the pieces of the text, with </s> after each segment; empty unless requested.
        word_scores: log-probability of each token.
        alignment: for each word of the text, its attention to each word of the line; empty unless
            requested. A row sums to at most 1.
    """

    text: str
    score: float
    log_probability: float
    pieces: tuple[str, ...] = ()
    word_scores: tuple[float, ...] = ()
    alignment: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Translation:
    """The translation of one line."""

    source: str
    candidates: tuple[Candidate, ...]  # best first, at least one
    num_tokens: int  # tokens of the best candidate, </s> included

    @property
    def text(self) -> str:
        """Return the best translation; "" for a blank line."""
        return self.candidates[0].text


class UndertranslationCheck:
    """A check for translations that may lack text of their source; it warns only once."""

    def __init__(self) -> None:
        self._has_warned = False

    def __call__(
        self, number: int, source: str, text: str, *, source_tokens: int, target_tokens: int
    ) -> None:
        """Warn if a translation has far fewer sentences or tokens than its source.

        Args:
            number: number of the line.
            source: the line.
            text: its translation.
            source_tokens: tokens of the line.
            target_tokens: tokens of the translation, without </s>.
        """
        if self._has_warned:
            return
        # With byte fallback, an unknown character has one token for each of its bytes.
        tokens = min(source_tokens, len(source))
        sentences = _lost_sentences(source, text, is_shorter=target_tokens * 2 < tokens)
        if sentences is not None:
            reason = f"{sentences[0]} sentences became {sentences[1]}"
        elif tokens >= _MIN_TOKENS and target_tokens * _MAX_TOKEN_RATIO < tokens:
            reason = f"{tokens} tokens became {target_tokens}"
        else:
            return
        self._has_warned = True
        logger.warning(
            "line %d: %s, so its translation may lack text; a model trained on single sentences "
            "needs each sentence on a line of its own; other such lines are not reported",
            number, reason,
        )  # fmt: skip


def _lost_sentences(source: str, text: str, *, is_shorter: bool) -> tuple[int, int] | None:
    """Return the numbers of sentences on both sides if more than half of them are lost.

    Args:
        source: the line.
        text: its translation. If it has no sentence marks, as in Thai, its sentences cannot be
            counted.
        is_shorter: the translation has few tokens as well.
    """
    if count_marks(source) < _MIN_SENTENCES - 1:  # a fast path that is taken for most lines
        return None
    before = len(sentence_ends(source)) + 1
    after = len(sentence_ends(text)) + 1
    if before < _MIN_SENTENCES or after * 2 >= before or not (is_shorter or count_marks(text)):
        return None
    return before, after


Parts = list[list[Hypothesis]]  # hypotheses of each segment of a line, best first


class Assembler(NamedTuple):
    """A callable that returns the translation of each line, given hypotheses of its segments.

    The candidates of a line have different texts, and may be fewer than `n_best`; samples may be
    equal. A blank line has `n_best` blank candidates.

    Args:
        target: tokenizer that decodes the hypotheses.
        n_best: candidates of a line.
        word_scores: record the tokens and their log-probabilities.
        are_samples: the hypotheses were sampled, so they keep their order and may have equal texts.
        aligner: aligns the words of source and translation; None for no alignments.
        undertranslation_check: warns of translations that are far too short; None for no warnings.
    """

    target: "Tokenizer"
    n_best: int
    word_scores: bool = False
    are_samples: bool = False
    aligner: "Aligner | None" = None
    undertranslation_check: UndertranslationCheck | None = None

    def __call__(
        self,
        lines: Sequence[str],
        batches: Iterable[Sequence[Segment]],
        hypotheses: Iterable[Sequence[list[Hypothesis]]],
    ) -> list[Translation]:
        """Return the translation of each line.

        Args:
            lines: a window.
            batches: its segments.
            hypotheses: the hypotheses of each segment of each batch.
        """
        segments, parts = _by_line(batches, hypotheses)
        blank = Translation("", (Candidate("", 0.0, 0.0),) * self.n_best, 0)
        chosen: dict[int, list[list[Hypothesis]]] = {}  # by line, then by candidate and segment
        translations = []
        for index, line in enumerate(lines):
            if index not in parts:
                translations.append(_blank_line(blank, line) if line else blank)
                continue
            chosen[index], candidates = self._candidates(line, segments[index], parts[index])
            num_tokens = sum(len(hypothesis.ids) + 1 for hypothesis in chosen[index][0])
            translations.append(Translation(line, tuple(candidates), num_tokens))
        if self.undertranslation_check is not None:
            for index in sorted(chosen):
                self.undertranslation_check(
                    segments[index][0].number,
                    lines[index],
                    translations[index].text,
                    source_tokens=sum(len(segment.ids) for segment in segments[index]),
                    target_tokens=sum(len(hypothesis.ids) for hypothesis in chosen[index][0]),
                )
        if self.aligner is None:
            return translations
        no_hypotheses = [list[Hypothesis]()] * self.n_best
        return self.aligner.aligned(
            translations,
            [segments.get(index, []) for index in range(len(lines))],
            [chosen.get(index, no_hypotheses) for index in range(len(lines))],
        )

    def _candidates(
        self, line: str, segments: Sequence[Segment], parts: Parts
    ) -> tuple[list[list[Hypothesis]], list[Candidate]]:
        """Return the candidates of a line, best first, and the hypotheses of each.

        For a line of several segments, the i-th best hypotheses of all segments are combined first,
        and then others if there are too few distinct texts.
        """
        if len(parts) == 1 or self.n_best == 1 or self.are_samples:
            combinations = list(islice(_rank_by_rank(parts), self.n_best))
            return combinations, [self._candidate(line, segments, each) for each in combinations]
        by_text: dict[str, tuple[list[Hypothesis], Candidate]] = {}
        others = islice(_best_first(parts), _MAX_CHOICES * self.n_best)
        for combination in chain(_rank_by_rank(parts), others):
            if len(by_text) == self.n_best:
                break
            candidate = self._candidate(line, segments, combination)
            by_text.setdefault(" ".join(candidate.text.split()), (combination, candidate))
        ordered = sorted(by_text.values(), key=lambda both: -both[1].score)
        return [combination for combination, _ in ordered], [each for _, each in ordered]

    def _candidate(
        self, line: str, segments: Sequence[Segment], chosen: Sequence[Hypothesis]
    ) -> Candidate:
        """Return the candidate made of one hypothesis of each segment of a line."""
        texts = self.target.decode([list(hypothesis.ids) for hypothesis in chosen])
        score = sum(hypothesis.score for hypothesis in chosen) / len(chosen)
        log_probability = sum(hypothesis.log_probability for hypothesis in chosen)
        pieces: list[str] = []
        if self.word_scores:
            ids = [i for hypothesis in chosen for i in (*hypothesis.ids, self.target.eos_id)]
            pieces = [self.target.pieces[i] for i in ids]
        token_log_probs = tuple(
            each for hypothesis in chosen for each in hypothesis.token_log_probs
        )
        by_line: list[list[tuple[str, bool]]] = [[] for _ in range(line.count("\n") + 1)]
        for segment, text in zip(segments, texts, strict=True):
            by_line[segment.text_line].append((text, segment.continues_word))
        text = "\n".join(
            join_texts([text for text, _ in parts], [continues for _, continues in parts])
            for parts in by_line
        )
        return Candidate(text, score, log_probability, tuple(pieces), token_log_probs)


def _by_line(
    batches: Iterable[Sequence[Segment]], hypotheses: Iterable[Sequence[list[Hypothesis]]]
) -> tuple[dict[int, list[Segment]], dict[int, Parts]]:
    """Return segments and hypotheses by line, both in order of segments; without blank lines."""
    by_line: dict[int, list[tuple[Segment, list[Hypothesis]]]] = {}
    for batch, of_batch in zip(batches, hypotheses, strict=True):
        for segment, of_segment in zip(batch, of_batch, strict=True):
            by_line.setdefault(segment.line, []).append((segment, of_segment))
    for both in by_line.values():
        both.sort(key=lambda each: each[0].part)
    return (
        {line: [segment for segment, _ in both] for line, both in by_line.items()},
        {line: [of_segment for _, of_segment in both] for line, both in by_line.items()},
    )


def _rank_by_rank(parts: Parts) -> Iterator[list[Hypothesis]]:
    """Yield the i-th best hypothesis of each segment; the last of a shorter list is repeated."""
    for rank in range(max(map(len, parts))):
        yield [part[min(rank, len(part) - 1)] for part in parts]


def _best_first(parts: Parts) -> Iterator[list[Hypothesis]]:
    """Yield all combinations of one hypothesis of each segment, by the sum of their scores."""
    first = (0,) * len(parts)
    heap, seen = [(-sum(part[0].score for part in parts), first)], {first}
    while heap:
        total, ranks = heappop(heap)
        yield [part[rank] for part, rank in zip(parts, ranks, strict=True)]
        for index, (part, rank) in enumerate(zip(parts, ranks, strict=True)):
            after = (*ranks[:index], rank + 1, *ranks[index + 1 :])
            if rank + 1 < len(part) and after not in seen:
                seen.add(after)
                heappush(heap, (total + part[rank].score - part[rank + 1].score, after))


def _blank_line(blank: Translation, line: str) -> Translation:
    """Return the translation of a text without words: only the line feeds of the text."""
    text = "\n" * line.count("\n")
    candidates = tuple(replace(candidate, text=text) for candidate in blank.candidates)
    return replace(blank, source=line, candidates=candidates)
