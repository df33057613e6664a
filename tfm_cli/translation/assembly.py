"""What was found for the segments of lines becomes a translation of each line."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from heapq import heappop, heappush
from itertools import chain, islice

from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.text.scripts import join_texts
from tfm_cli.text.sentences import count_marks, sentence_ends
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.translation.alignment import Aligner
from tfm_cli.translation.result import Candidate, Translation
from tfm_cli.translation.segments import Segment

logger = logging.getLogger(__name__)


# A warning of translations that have far fewer sentences or tokens than their source.

_FEWEST_SENTENCES = 3  # of a source that can lose too many of them
_FEWEST_TOKENS = 16  # likewise
_FEWER = 4  # a translation with fewer than one token for so many of its source has lost some


class ShortfallWatch:
    """Warns of the first translation that may have left text out; a class because it warns once."""

    def __init__(self) -> None:
        self._has_warned = False

    def look(
        self, number: int, source: str, text: str, *, source_tokens: int, target_tokens: int
    ) -> None:
        """Look at a translation.

        Args:
            number: of the line.
            source: the line.
            text: its translation.
            source_tokens: of the line.
            target_tokens: of its translation, without the end of a segment.
        """
        if self._has_warned:
            return
        # Characters that the tokenizer does not know have a token for each byte.
        tokens = min(source_tokens, len(source))
        sentences = _lost_sentences(source, text, is_shorter=target_tokens * 2 < tokens)
        if sentences is not None:
            found = f"{sentences[0]} sentences became {sentences[1]}"
        elif tokens >= _FEWEST_TOKENS and target_tokens * _FEWER < tokens:
            found = f"{tokens} tokens became {target_tokens}"
        else:
            return
        self._has_warned = True
        logger.warning(
            "line %d: %s, so its translation may lack text; a model that learned from single "
            "sentences needs each sentence on a line of its own; other such lines are not told",
            number, found,
        )  # fmt: skip


def _lost_sentences(source: str, text: str, *, is_shorter: bool) -> tuple[int, int] | None:
    """Return the numbers of sentences if a translation has less than half of its source's.

    Args:
        source: the line.
        text: its translation. Where it has no marks that end sentences, as in Thai, its sentences
            cannot be counted.
        is_shorter: whether it has few tokens as well.
    """
    if count_marks(source) < _FEWEST_SENTENCES - 1:  # most lines; looking closely takes longer
        return None
    before = len(sentence_ends(source)) + 1
    after = len(sentence_ends(text)) + 1
    if before < _FEWEST_SENTENCES or after * 2 >= before or not (is_shorter or count_marks(text)):
        return None
    return before, after


_MOST_CHOICES = 16  # for each candidate, that are tried for a line of several parts


def joined(
    lines: Sequence[str],
    batches: Iterable[Sequence[Segment]],
    found: Iterable[Sequence[list[Hypothesis]]],
    target: Tokenizer,
    *,
    n_best: int,
    word_scores: bool,
    are_samples: bool = False,
    aligner: Aligner | None = None,
    watch: ShortfallWatch | None = None,
) -> list[Translation]:
    """The translation of each line.

    The candidates of a line have different texts, and may be fewer than `n_best`; samples may be
    equal. A blank line has `n_best` blank ones.

    Args:
        lines: a window.
        batches: its segments.
        found: the hypotheses of each segment of each batch.
        target: turns pieces into text.
        n_best: translations of a line.
        word_scores: note the pieces and their log-probabilities.
        are_samples: the hypotheses were drawn, so that equal texts count, and keep their order.
        aligner: says which words became which; None to leave it.
        watch: warns of translations that are far too short; None to leave it.
    """
    parts: dict[int, dict[int, list[Hypothesis]]] = {}  # by line, then by part; none of blank lines
    sources: dict[int, dict[int, Segment]] = {}
    for batch, hypotheses in zip(batches, found, strict=True):
        for segment, of_segment in zip(batch, hypotheses, strict=True):
            parts.setdefault(segment.line, {})[segment.part] = of_segment
            sources.setdefault(segment.line, {})[segment.part] = segment
    segments = {
        line: [segment for _, segment in sorted(of_line.items())]
        for line, of_line in sources.items()
    }
    blank = Translation("", (Candidate("", 0.0, 0.0),) * n_best, 0)
    chosen: dict[int, list[list[Hypothesis]]] = {}  # by line, then by candidate and part
    translations = []
    for index, line in enumerate(lines):
        if index not in parts:
            translations.append(_blank_line(blank, line) if line else blank)
            continue
        join = partial(_candidate, line, segments[index], target=target, word_scores=word_scores)
        ranked = [some for _, some in sorted(parts[index].items())]
        if len(ranked) == 1 or n_best == 1 or are_samples:
            chosen[index] = list(islice(_rank_by_rank(ranked), n_best))
            candidates = [join(each) for each in chosen[index]]
        else:
            chosen[index], candidates = _of_different_texts(ranked, join, n_best)
        num_pieces = sum(len(hypothesis.ids) + 1 for hypothesis in chosen[index][0])
        translations.append(Translation(line, tuple(candidates), num_pieces))
    if watch is not None:
        for index in sorted(chosen):
            watch.look(
                segments[index][0].number,
                lines[index],
                translations[index].text,
                source_tokens=sum(len(segment.ids) for segment in segments[index]),
                target_tokens=sum(len(hypothesis.ids) for hypothesis in chosen[index][0]),
            )
    if aligner is None:
        return translations
    every, nothing = range(len(lines)), [list[Hypothesis]()] * n_best
    parts_of = [segments.get(index, []) for index in every]
    chosen_of = [chosen.get(index, nothing) for index in every]
    return aligner.aligned(translations, parts_of, chosen_of)


def _rank_by_rank(parts: Sequence[Sequence[Hypothesis]]) -> Iterator[list[Hypothesis]]:
    """The i-th best of each part together; the last one again where a part has fewer."""
    for rank in range(max(map(len, parts))):
        yield [some[min(rank, len(some) - 1)] for some in parts]


def _best_first(parts: Sequence[Sequence[Hypothesis]]) -> Iterator[list[Hypothesis]]:
    """All ways to choose one of each part, by the sum of the scores."""
    first = (0,) * len(parts)
    waiting, seen = [(-sum(some[0].score for some in parts), first)], {first}
    while waiting:
        total, ranks = heappop(waiting)
        yield [some[rank] for some, rank in zip(parts, ranks, strict=True)]
        for place, (some, rank) in enumerate(zip(parts, ranks, strict=True)):
            after = (*ranks[:place], rank + 1, *ranks[place + 1 :])
            if rank + 1 < len(some) and after not in seen:
                seen.add(after)
                heappush(waiting, (total + some[rank].score - some[rank + 1].score, after))


def _of_different_texts(
    parts: Sequence[Sequence[Hypothesis]],
    join: Callable[[list[Hypothesis]], Candidate],
    count: int,
) -> tuple[list[list[Hypothesis]], list[Candidate]]:
    """The candidates of a line of several parts, best first, and what they are made of.

    First the i-th best of each part together, then other choices where these are too few.
    """
    found: dict[str, tuple[list[Hypothesis], Candidate]] = {}
    for chosen in chain(_rank_by_rank(parts), islice(_best_first(parts), _MOST_CHOICES * count)):
        if len(found) == count:
            break
        candidate = join(chosen)
        found.setdefault(" ".join(candidate.text.split()), (chosen, candidate))
    ordered = sorted(found.values(), key=lambda both: -both[1].score)
    return [chosen for chosen, _ in ordered], [candidate for _, candidate in ordered]


def _blank_line(blank: Translation, line: str) -> Translation:
    """The translation of a line, or of lines, without text."""
    text = "\n" * line.count("\n")
    candidates = tuple(replace(candidate, text=text) for candidate in blank.candidates)
    return replace(blank, source=line, candidates=candidates)


def _candidate(
    line: str,
    segments: list[Segment],
    chosen: list[Hypothesis],
    *,
    target: Tokenizer,
    word_scores: bool,
) -> Candidate:
    """The translation of a line from a hypothesis of each of its parts."""
    texts = target.decode([list(h.ids) for h in chosen])
    score = sum(h.score for h in chosen) / len(chosen)
    total = sum(h.log_probability for h in chosen)
    pieces: list[str] = []
    if word_scores:
        ids = [i for h in chosen for i in (*h.ids, target.eos_id)]
        pieces = [target.pieces[i] for i in ids]
    scores = tuple(score for h in chosen for score in h.piece_scores)
    by_line: list[list[tuple[str, bool]]] = [[] for _ in range(line.count("\n") + 1)]
    for segment, text in zip(segments, texts, strict=True):
        by_line[segment.text_line].append((text, segment.goes_on))
    text = "\n".join(
        join_texts([text for text, _ in some], [goes_on for _, goes_on in some]) for some in by_line
    )
    return Candidate(text, score, total, tuple(pieces), scores)
