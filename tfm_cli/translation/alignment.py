"""Which words of a line its translation came from, by the model's own attention."""

# S source pieces, T target pieces, I words of the line, J words of its translation

import dataclasses
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from tfm_cli.corpus.batching import token_batches
from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.text.scripts import separators
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.result import Translation
from tfm_cli.translation.search_engine import Matrix, SearchEngine
from tfm_cli.translation.segments import Segment, text_lines

Ids = Sequence[int]  # of the pieces of a segment, without </s>


class Words(NamedTuple):
    """The words of a text that a piece is part of, in equal shares."""

    first: int
    num_words: int  # 0 for a piece that is part of none


@dataclass(frozen=True, slots=True)
class Aligner:
    """Says of finished translations which words of the line their words came from.

    Args:
        engine: the models that translate together.
        tokenizers: of the models.
        max_tokens: pieces in a batch.
    """

    engine: SearchEngine
    tokenizers: TokenizerPair
    max_tokens: int

    def aligned(
        self,
        translations: Sequence[Translation],
        segments: Sequence[Sequence[Segment]],
        hypotheses: Sequence[Sequence[Sequence[Hypothesis]]],
    ) -> list[Translation]:
        """The translations with the alignments of all their candidates.

        Args:
            translations: of a window.
            segments: by line and part, what was translated.
            hypotheses: by line, candidate and part, what they became.
        """
        pairs = [
            (segment.ids, hypothesis.ids)
            for parts, candidates in zip(segments, hypotheses, strict=True)
            for chosen in candidates
            for segment, hypothesis in zip(parts, chosen, strict=True)
        ]
        weights = iter(self._weights(pairs))
        source = self.tokenizers.source
        lines_of = [list(text_lines(translation.source, source)) for translation in translations]
        spans = iter(source.encode_spans([each.text for lines in lines_of for each in lines]))
        done = []
        for translation, lines, parts, candidates in zip(
            translations, lines_of, segments, hypotheses, strict=True
        ):
            columns: list[list[Words]] = []  # of the pieces of each part
            of_line: dict[int, list[int]] = {}  # the parts of each line of the text
            for place, segment in enumerate(parts):
                of_line.setdefault(segment.text_line, []).append(place)
            for line in lines:
                places = [line.span_in_text(*span) for span in next(spans)]
                words = words_of_pieces(translation.source, places)  # of the pieces of the line
                own = [parts[place].ids for place in of_line.get(line.number, [])]
                tag = source.tag_length(line.text)
                columns += [[words[i] for i in places] for places in _places(own, tag)]
            num_words = len(translation.source.split())
            first_parts = [places[0] for places in of_line.values()]
            alignments = []
            for chosen in candidates:
                ids = [hypothesis.ids for hypothesis in chosen]
                texts = self.tokenizers.target.decode(ids)
                written = [
                    words_of_pieces(text, self.tokenizers.target.decode_spans(some))
                    for some, text in zip(ids, texts, strict=True)
                ]
                rows = [
                    word_rows(
                        next(weights), of_source, of_target, shape=(len(text.split()), num_words)
                    )
                    for text, of_source, of_target in zip(texts, columns, written, strict=True)
                ]
                joined = [
                    _joined_rows(
                        texts[begin:end],
                        [segment.goes_on for segment in parts[begin:end]],
                        rows[begin:end],
                    )
                    for begin, end in pairwise([*first_parts, len(parts)])
                ]
                alignments.append(tuple(row for line_rows in joined for row in line_rows))
            aligned = tuple(
                dataclasses.replace(candidate, alignment=alignment)
                for candidate, alignment in zip(translation.candidates, alignments, strict=True)
            )
            done.append(dataclasses.replace(translation, candidates=aligned))
        return done

    def _weights(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Matrix]:
        """The weights (T, S) of each pair, which are batched by length."""
        order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]), len(pairs[i][1])))
        source_lengths, target_lengths = (
            [len(pairs[i][side]) + 1 for i in order] for side in (0, 1)
        )
        found: list[Matrix] = [()] * len(pairs)
        for batch in token_batches(source_lengths, target_lengths, max_tokens=self.max_tokens):
            some = order[batch]
            for i, weights in zip(some, self._of_batch([pairs[i] for i in some]), strict=True):
                found[i] = weights
        return found

    def _of_batch(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Matrix]:
        """The weights (T, S) of each pair; a batch that memory cannot hold is halved."""
        try:
            return self.engine.attention(
                [source for source, _ in pairs], [target for _, target in pairs]
            )
        except MemoryError:
            if len(pairs) == 1:
                raise
        half = len(pairs) // 2
        return self._of_batch(pairs[:half]) + self._of_batch(pairs[half:])


class Rows(NamedTuple):
    """Of each word of a translation: how much of it there is, and where that came from."""

    num_pieces: list[float]  # (J,)
    origins: list[list[float]]  # (J, I)


def word_rows(
    weights: Matrix,
    of_source: Sequence[Words],
    of_target: Sequence[Words],
    *,
    shape: tuple[int, int],
) -> Rows:
    """Return how much each word of a translation came from each word of its line.

    A word has the mean of its pieces, and gets the sum of what went to its pieces.

    Args:
        weights: of each target piece to each source piece, (T, S).
        of_source: words of the line that each source piece is part of.
        of_target: words of the translation that each target piece is part of.
        shape: numbers of words of the translation and of the line, J and I.
    """
    total, num_words = shape
    num_pieces = [0.0] * total
    origins = [[0.0] * num_words for _ in range(total)]
    for row, (first, count) in zip(weights, of_target, strict=True):
        if not count:
            continue
        to_words = [0.0] * num_words
        for weight, (word, shares) in zip(row, of_source, strict=True):
            if shares == 1:  # nearly always
                to_words[word] += weight
            else:
                for place in range(word, word + shares):
                    to_words[place] += weight / shares
        for word in range(first, first + count):
            num_pieces[word] += 1 / count
            origin = origins[word]
            for place, weight in enumerate(to_words):
                origin[place] += weight / count
    means = [
        [weight / count if count else 0.0 for weight in origin]
        for origin, count in zip(origins, num_pieces, strict=True)
    ]
    return Rows(num_pieces, means)


def _joined_rows(
    texts: Sequence[str], goes_on: Sequence[bool], parts: Sequence[Rows]
) -> tuple[tuple[float, ...], ...]:
    """Return the rows (I,) of the words of all parts together.

    A word that goes on in the next part, as where no blank stands between them, has the mean of
    its pieces.

    Args:
        texts: of each part.
        goes_on: whether each part of the line begins in the middle of a word.
        parts: the rows of the words of each part.
    """
    found: list[list[float]] = []
    num_pieces, before = 0.0, " "  # of the last word; what ends in it
    for text, separator, part in zip(texts, separators(texts, goes_on), parts, strict=True):
        is_same_word = not (separator or before.isspace() or text[:1].isspace())
        for index, (count, row) in enumerate(zip(*part, strict=True)):
            if is_same_word and index == 0 and found:
                total = max(num_pieces + count, 1e-9)
                found[-1] = [
                    (one * num_pieces + other * count) / total
                    for one, other in zip(found[-1], row, strict=True)
                ]
                num_pieces += count
            else:
                found.append(row)
                num_pieces = count
        before = text[-1:] or before
    return tuple(map(tuple, found))


def _places(parts: Sequence[Sequence[int]], tag: int) -> list[list[int]]:
    """Which pieces of the line each part has; those that say the language are in every part."""
    places, start = [], tag
    for part in parts:
        end = start + len(part) - tag
        places.append([*range(tag), *range(start, end)])
        start = end
    return places


def words_of_pieces(text: str, spans: Sequence[tuple[int, int]]) -> list[Words]:
    """Return the words of a text that each piece is part of.

    Words stand between blanks, as in `str.split`. A piece that has nothing of a word, such as a
    blank by itself, belongs to the word behind it.

    Args:
        text: the pieces together.
        spans: where each piece stands in it, begin and end.
    """
    words = [match.span() for match in re.finditer(r"\S+", text)]
    begins, ends = [begin for begin, _ in words], [end for _, end in words]
    found = []
    for begin, end in spans:
        first = bisect_right(ends, begin)  # the first word that ends behind the piece's begin
        last = max(first + 1, bisect_left(begins, end))
        found.append(Words(first, max(0, min(last, len(words)) - first)))
    return found
