"""Word alignment of translations with their source lines, from the model's cross-attention."""

# S source tokens, T target tokens, I words of the line, J words of its translation

import dataclasses
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from tfm_cli.corpus.token_budget import token_batches
from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.text.scripts import separators
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.assembly import Candidate, Translation
from tfm_cli.translation.search import Matrix, SearchEngine
from tfm_cli.translation.segments import Segment, text_lines

Ids = Sequence[int]  # ids of a segment, without </s>
Span = tuple[int, int]  # begin and end, in characters
AlignmentRows = tuple[tuple[float, ...], ...]  # (J, I)


class Words(NamedTuple):
    """The words of a text that a token belongs to, in equal shares."""

    first: int
    num_words: int  # 0 for a token that belongs to no word


@dataclass(frozen=True, slots=True)
class Aligner:
    """An aligner of finished translations, which uses the attention of their model.

    Args:
        engine: the ensemble of models.
        tokenizers: tokenizers of the models.
        max_tokens: tokens in a batch.
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
        """Return the translations with an alignment of each candidate.

        Args:
            translations: the translations of a window.
            segments: by line, the segments of its text.
            hypotheses: by line and candidate, a hypothesis of each segment.
        """
        pairs = [
            (segment.ids, hypothesis.ids)
            for of_line, candidates in zip(segments, hypotheses, strict=True)
            for chosen in candidates
            for segment, hypothesis in zip(of_line, chosen, strict=True)
        ]
        weights = iter(self._weights(pairs))
        source_words = self._source_words([each.source for each in translations], segments)
        result = []
        for translation, of_line, words, candidates in zip(
            translations, segments, source_words, hypotheses, strict=True
        ):
            num_words = len(translation.source.split())
            aligned = []
            for candidate, chosen in zip(translation.candidates, candidates, strict=True):
                matrices = [next(weights) for _ in chosen]
                alignment = self._alignment(of_line, chosen, matrices, words, num_words=num_words)
                aligned.append(dataclasses.replace(candidate, alignment=alignment))
            result.append(dataclasses.replace(translation, candidates=tuple(aligned)))
        return result

    def forced(
        self,
        pairs: Sequence[tuple[str, str]],
        segments: Mapping[int, Sequence[Segment]],
        *,
        max_tokens: int,
    ) -> list[AlignmentRows]:
        """Return the alignments of translations of any origin with their lines.

        Args:
            pairs: lines with their translations.
            segments: the segments of lines, by the index of the line; the alignment of a line with
                another number of segments than one is empty.
            max_tokens: the alignment of a translation with more tokens is empty.
        """
        ids = self.tokenizers.target.encode([translation for _, translation in pairs])
        chosen = [
            index
            for index, tokens in enumerate(ids)
            if len(segments.get(index, ())) == 1 and 0 < len(tokens) <= max_tokens
        ]
        aligned = self.aligned(
            [
                Translation(pairs[index][0], (Candidate(pairs[index][1], 0, 0),), 0)
                for index in chosen
            ],
            [segments[index] for index in chosen],
            [[[Hypothesis(tuple(ids[index]), 0, 0)]] for index in chosen],
        )
        result: list[AlignmentRows] = [()] * len(pairs)
        for index, translation in zip(chosen, aligned, strict=True):
            result[index] = translation.candidates[0].alignment
        return result

    def _source_words(
        self, sources: Sequence[str], segments: Sequence[Sequence[Segment]]
    ) -> list[list[list[Words]]]:
        """Return the words that each source token belongs to, by line and segment."""
        source = self.tokenizers.source
        lines_of = [list(text_lines(text, source)) for text in sources]
        spans = iter(source.encode_spans([each.text for lines in lines_of for each in lines]))
        result = []
        for text, lines, of_line in zip(sources, lines_of, segments, strict=True):
            by_text_line: dict[int, list[Ids]] = {}
            for segment in of_line:
                by_text_line.setdefault(segment.text_line, []).append(segment.ids)
            of_segments: list[list[Words]] = []
            for line in lines:
                words = words_of_tokens(text, [line.span_in_text(*span) for span in next(spans)])
                tag = source.tag_length(line.text)
                tokens_of = _token_indices(by_text_line.get(line.number, []), tag)
                of_segments += [[words[i] for i in tokens] for tokens in tokens_of]
            result.append(of_segments)
        return result

    def _alignment(
        self,
        segments: Sequence[Segment],
        chosen: Sequence[Hypothesis],
        matrices: Sequence[Matrix],
        source_words: Sequence[Sequence[Words]],
        *,
        num_words: int,
    ) -> AlignmentRows:
        """Return the alignment of one candidate of a line.

        Args:
            segments: the segments of the line.
            chosen: a hypothesis of each segment.
            matrices: the attention (T, S) of each segment.
            source_words: the words that each source token belongs to, by segment.
            num_words: words of the line.
        """
        target = self.tokenizers.target
        ids = [hypothesis.ids for hypothesis in chosen]
        texts = target.decode(ids)
        rows = [
            word_rows(
                matrix,
                of_source,
                words_of_tokens(text, target.decode_spans(each)),
                shape=(len(text.split()), num_words),
            )
            for matrix, of_source, text, each in zip(
                matrices, source_words, texts, ids, strict=True
            )
        ]
        starts = [
            index
            for index, segment in enumerate(segments)
            if index == 0 or segment.text_line != segments[index - 1].text_line
        ]
        joined = [
            _joined_rows(
                texts[begin:end],
                [segment.continues_word for segment in segments[begin:end]],
                rows[begin:end],
            )
            for begin, end in pairwise([*starts, len(segments)])
        ]
        return tuple(row for line_rows in joined for row in line_rows)

    def _weights(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Matrix]:
        """Return the attention (T, S) of each pair; pairs are batched by length."""
        order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]), len(pairs[i][1])))
        source_lengths, target_lengths = (
            [len(pairs[i][side]) + 1 for i in order] for side in (0, 1)
        )
        result: list[Matrix] = [()] * len(pairs)
        for batch in token_batches(source_lengths, target_lengths, max_tokens=self.max_tokens):
            indices = order[batch]
            sources, targets = ([pairs[i][side] for i in indices] for side in (0, 1))
            matrices = attention_in_memory(self.engine, sources, targets)
            for i, weights in zip(indices, matrices, strict=True):
                result[i] = weights
        return result


def attention_in_memory(
    engine: SearchEngine, sources: Sequence[Ids], targets: Sequence[Ids]
) -> list[Matrix]:
    """Return the attention (T, S) of each pair, halving a batch that does not fit in memory.

    Raises:
        MemoryError: a single pair does not fit.
    """
    try:
        return engine.attention(sources, targets)
    except MemoryError:
        if len(sources) == 1:
            raise
    half = len(sources) // 2
    return [
        *attention_in_memory(engine, sources[:half], targets[:half]),
        *attention_in_memory(engine, sources[half:], targets[half:]),
    ]


class Rows(NamedTuple):
    """The alignment of each word of a translation, with the weight for averaging it."""

    num_tokens: list[float]  # (J,) tokens of the word; a token of several words is divided
    weights: list[list[float]]  # (J, I)


def word_rows(
    weights: Matrix,
    of_source: Sequence[Words],
    of_target: Sequence[Words],
    *,
    shape: tuple[int, int],
) -> Rows:
    """Return the attention of each word of a translation to each word of its line.

    It is the sum over the tokens of the source word, averaged over those of the target word.

    Args:
        weights: attention of each target token to each source token, (T, S).
        of_source: words of the line that each source token belongs to.
        of_target: words of the translation that each target token belongs to.
        shape: numbers of words of the translation and of the line, J and I.
    """
    total, num_words = shape
    num_tokens = [0.0] * total
    sums = [[0.0] * num_words for _ in range(total)]
    for row, (first, count) in zip(weights, of_target, strict=True):
        if not count:
            continue
        to_words = [0.0] * num_words
        for weight, (word, shares) in zip(row, of_source, strict=True):
            if shares == 1:  # a fast path for nearly every token
                to_words[word] += weight
            else:
                for index in range(word, word + shares):
                    to_words[index] += weight / shares
        for word in range(first, first + count):
            num_tokens[word] += 1 / count
            row_sums = sums[word]
            for index, weight in enumerate(to_words):
                row_sums[index] += weight / count
    means = [
        [weight / count if count else 0.0 for weight in row_sums]
        for row_sums, count in zip(sums, num_tokens, strict=True)
    ]
    return Rows(num_tokens, means)


def _joined_rows(
    texts: Sequence[str], continues_word: Sequence[bool], parts: Sequence[Rows]
) -> AlignmentRows:
    """Return the alignment of all words of a text, given that of its parts.

    A word that continues in the next part, because no space separates them, gets the mean over its
    tokens in both parts.

    Args:
        texts: the text of each part.
        continues_word: True for each part of the line that begins in the middle of a word.
        parts: the rows of the words of each part.
    """
    result: list[list[float]] = []
    num_tokens, before = 0.0, " "  # tokens of the last word; the last character so far
    for text, separator, part in zip(texts, separators(texts, continues_word), parts, strict=True):
        is_same_word = not (separator or before.isspace() or text[:1].isspace())
        for index, (count, row) in enumerate(zip(*part, strict=True)):
            if is_same_word and index == 0 and result:
                total = max(num_tokens + count, 1e-9)
                result[-1] = [
                    (one * num_tokens + other * count) / total
                    for one, other in zip(result[-1], row, strict=True)
                ]
                num_tokens += count
            else:
                result.append(row)
                num_tokens = count
        before = text[-1:] or before
    return tuple(map(tuple, result))


def _token_indices(parts: Sequence[Ids], tag: int) -> list[list[int]]:
    """Return the indices of each part's tokens among the tokens of the line.

    Args:
        parts: ids of each part of the line.
        tag: number of tokens at the start of the line that are repeated in each part.
    """
    indices, start = [], tag
    for part in parts:
        end = start + len(part) - tag
        indices.append([*range(tag), *range(start, end)])
        start = end
    return indices


def words_of_tokens(text: str, spans: Sequence[Span]) -> list[Words]:
    """Return the words of a text that each token belongs to.

    Words are separated by white space, as in `str.split`. A token without a character of a word,
    such as a space, belongs to the next word.

    Args:
        text: the decoded tokens.
        spans: span of each token in the text.
    """
    words = [match.span() for match in re.finditer(r"\S+", text)]
    begins, ends = [begin for begin, _ in words], [end for _, end in words]
    result = []
    for begin, end in spans:
        first = bisect_right(ends, begin)  # the first word that ends after the token's begin
        last = max(first + 1, bisect_left(begins, end))
        result.append(Words(first, max(0, min(last, len(words)) - first)))
    return result
