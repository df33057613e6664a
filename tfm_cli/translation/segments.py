"""Segmentation of lines: texts of several lines, over-long lines, language tags, batches."""

import logging
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.random_key import random_key
from tfm_cli.corpus.token_budget import token_batches
from tfm_cli.errors import DataError
from tfm_cli.text.characters import is_blank
from tfm_cli.text.language_tags import leading_tag, listed
from tfm_cli.text.scripts import belongs_without_spaces, script_without_spaces
from tfm_cli.text.sentences import NO_BREAK, clause_ends, sentence_ends

if TYPE_CHECKING:
    from tfm_cli.tokenizer.pair import TokenizerPair
    from tfm_cli.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Zero-width joiner, variation selectors, skin tones and tags modify the preceding character.
_CONTINUES = re.compile("[\u200d\ufe00-\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
_JOINER = "\u200d"
_ZERO_WIDTH_SPACE = "\u200b"  # separates words in Khmer, Thai and Burmese
_CONTINUATION_BYTE = re.compile("<0x[89AB][0-9A-F]>")  # not the first byte of a character
_MAX_TAG_WARNINGS = 8
# The mandatory line breaks of Unicode (UAX #14).
_BREAK = re.compile("\r\n|[\n\v\f\r\x85\u2028\u2029]")


class Lines(NamedTuple):
    """The lines of a window; it is empty while the input has no further line yet.

    Attributes:
        lines: texts to translate.
        prefixes: beginning of each translation, "" for none; empty if no line has one.
        before: number of input lines before these; None continues the count of the segmenter.
        name: name of the input in messages; "" for none; None skips the check of language tags.
    """

    lines: Sequence[str]
    prefixes: Sequence[str] = ()
    before: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A line, or a part of an over-long line.

    Attributes:
        line: index of the line in its window.
        part: index of the segment in its line.
        number: number of the line in the input, from 1.
        ids: source ids without </s>.
        seed: seed of sampling.
        prefix: target ids that the translation begins with.
        text_line: index of the line within a text of several lines.
        continues_word: the segment begins in the middle of a word.
    """

    line: int
    part: int
    number: int
    ids: list[int]
    seed: int
    prefix: list[int]
    text_line: int = 0
    continues_word: bool = False


class Part(NamedTuple):
    """A part of a line."""

    ids: list[int]
    continues_word: bool = False  # begins in the middle of a word of a script with spaces


class Segmenter:
    """A segmenter of windows of lines into batches of segments, which counts the lines.

    Args:
        tokenizers: tokenizers of the model.
        search: the search settings.
        beam_size: hypotheses of each segment.
        on_long: treatment of a line of more than `max_tokens` tokens: `split` or `cut`.
        max_tokens: maximum number of tokens of a segment or a prefix.
    """

    def __init__(
        self,
        tokenizers: "TokenizerPair",
        search: SearchConfig,
        *,
        beam_size: int,
        on_long: str,
        max_tokens: int,
    ) -> None:
        self._tokenizers = tokenizers
        self._seed = search.seed
        self._batch_tokens = max(1, search.max_tokens // beam_size)  # source tokens
        self._on_long = on_long
        self._max_tokens = max_tokens
        self._lines_before = 0
        self._tag_check = TagCheck(tokenizers.source)

    def batches(self, window: Lines) -> list[list[Segment]]:
        """Return the segments of a window in batches of similar length, longest first.

        Raises:
            DataError: a prefix has more tokens than a segment may have.
        """
        lines, prefixes, before, name = window
        if before is not None:
            self._lines_before = before
        if name is not None:
            self._tag_check.check(lines, self._lines_before + 1, name=name)
        segments = self._segments(lines, prefixes if any(prefixes) else [""] * len(lines))
        self._lines_before += len(lines)
        segments.sort(key=lambda segment: -len(segment.ids))
        lengths = [len(segment.ids) + 1 for segment in segments]
        batches = token_batches(lengths, lengths, max_tokens=self._batch_tokens)
        return [segments[batch] for batch in batches]

    def _segments(self, lines: Sequence[str], prefixes: Sequence[str]) -> list[Segment]:
        """Return the segments of all lines, in order."""
        source = self._tokenizers.source
        texts = [
            (index, each.number, each.text)
            for index, line in enumerate(lines)
            for each in text_lines(line, source)
        ]
        prefix_ids = self._encoded_prefixes(prefixes)
        self._check_prefixes(prefix_ids, {(index, text_line) for index, text_line, _ in texts})
        segments: list[Segment] = []
        last = -1  # index of the line of the last segment
        for (index, text_line, text), ids in zip(
            texts, source.encode([text for _, _, text in texts]), strict=True
        ):
            number = self._lines_before + index + 1
            for within, (part_ids, continues_word) in enumerate(self._parts(ids, text, number)):
                is_first = index != last
                part = 0 if is_first else segments[-1].part + 1
                seed = random_key("sample", self._seed, number, part)
                prefix: list[int] = []
                if len(prefix_ids[index]) > 1:  # each line of the prefix belongs to a source line
                    if within == 0 and text_line < len(prefix_ids[index]):
                        prefix = prefix_ids[index][text_line]
                elif is_first:
                    prefix = prefix_ids[index][0]
                segments.append(
                    Segment(index, part, number, part_ids, seed, prefix, text_line, continues_word)
                )
                last = index
        return segments

    def _encoded_prefixes(self, prefixes: Sequence[str]) -> list[list[list[int]]]:
        """Return the ids of each line of each prefix.

        Raises:
            DataError: a prefix has more tokens than a segment may have.
        """
        if not any(prefixes):
            return [[[]]] * len(prefixes)
        target = self._tokenizers.target
        texts = [prefix.split("\n") for prefix in prefixes]
        numbers = [n for n, text in enumerate(texts, self._lines_before + 1) for _ in text]
        encoded = target.encode([line for text in texts for line in text])
        for number, ids in zip(numbers, encoded, strict=True):
            if len(ids) > self._max_tokens:
                count = f"{len(ids)} tokens, more than {self._max_tokens}"
                raise DataError(f"line {number}: the target prefix has {count}")
            if target.unk_id in ids:
                logger.warning("line %d: the target prefix has unknown characters", number)
        rows = iter(encoded)
        return [[next(rows) for _ in text] for text in texts]

    def _check_prefixes(
        self, prefix_ids: Sequence[Sequence[Sequence[int]]], with_text: set[tuple[int, int]]
    ) -> None:
        """Raise a DataError if a line of a prefix has text and that of the source has none.

        Args:
            prefix_ids: ids of each line of each prefix.
            with_text: source lines that are translated, as indices in the window and in the text.
        """
        for index, rows in enumerate(prefix_ids):
            for text_line, ids in enumerate(rows):
                if len(rows) > 1 and ids and (index, text_line) not in with_text:
                    number = self._lines_before + index + 1
                    raise DataError(
                        f"line {number}: line {text_line + 1} of the target prefix has text, line "
                        f"{text_line + 1} of the source has none to translate"
                    )

    def _parts(self, ids: list[int], line: str, line_number: int) -> list[Part]:
        """Return the parts of a line: none if it is blank, several if it is too long."""
        limit = self._max_tokens
        if not ids or is_blank(line):
            return []
        if len(ids) <= limit:
            return [Part(ids)]
        treatment = "split" if self._on_long == "split" else "cut"
        logger.warning(
            "line %d has %d tokens, more than %d: %s", line_number, len(ids), limit, treatment
        )
        if self._on_long == "cut":
            return [Part(ids[: self._whole_characters(ids, limit)])]
        tokenizer = self._tokenizers.source
        spans = tokenizer.encode_spans([line])[0]
        return split_line(line, ids, spans, limit, tag=tokenizer.tag_length(line))

    def _whole_characters(self, ids: Sequence[int], limit: int) -> int:
        """Return the largest number of ids, at most `limit`, that ends with a whole character."""
        pieces, end = self._tokenizers.source.pieces, limit
        while end > 1 and _CONTINUATION_BYTE.fullmatch(pieces[ids[end]]):
            end -= 1
        return end


# Texts of several lines, such as JSON strings: each line is translated, and line breaks are kept.


class TextLine(NamedTuple):
    """A line of a text, with the language tag that applies to it.

    Attributes:
        text: the line, with its own tag or with one inherited from a line before it.
        number: index of the line in the text.
        begin: offset of the line in the text.
        tag_begin: offset of the inherited tag in the text.
        head_length: characters of the inherited tag and the space after it.
    """

    text: str
    number: int
    begin: int
    tag_begin: int = 0
    head_length: int = 0

    def span_in_text(self, begin: int, end: int) -> tuple[int, int]:
        """Return begin and end in the whole text of a span in this line."""
        if end < self.head_length:
            return self.tag_begin + begin, self.tag_begin + end
        begin, end = (max(0, offset - self.head_length) for offset in (begin, end))
        return self.begin + begin, self.begin + end


def unified(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a text with line feeds as line breaks, and the original ones if any differs."""
    breaks = tuple(map(sys.intern, _BREAK.findall(text)))
    if breaks.count("\n") == len(breaks):
        return text, ()
    return _BREAK.sub("\n", text), breaks


def restored(text: str, breaks: tuple[str, ...]) -> str:
    """Return a text with its line feeds replaced by these line breaks; unchanged without any."""
    if not breaks:
        return text
    first, *others = text.split("\n")
    return first + "".join(f"{each}{line}" for each, line in zip(breaks, others, strict=True))


def on_one_line(text: str) -> str:
    """Return the lines of a text joined by spaces, without empty lines."""
    return " ".join(filter(None, text.split("\n"))) if "\n" in text else text


def text_lines(text: str, tokenizer: "Tokenizer") -> Iterator[TextLine]:
    """Yield the lines of a text; blank ones are left out if there are several.

    A line without a language tag inherits that of the nearest line before it. A line with only a
    tag sets the tag of the lines after it.

    Args:
        text: a text in the source language.
        tokenizer: the source tokenizer.
    """
    if "\n" not in text:
        yield TextLine(text, 0, 0)
        return
    begin, tag, tag_begin = 0, "", 0
    for index, line in enumerate(text.split("\n")):
        own = tokenizer.language_tag(line)
        if own:
            tag, tag_begin = own, begin
        if not is_blank(line[len(own) :]):
            if own or not tag:
                yield TextLine(line, index, begin)
            else:
                yield TextLine(f"{tag} {line}", index, begin, tag_begin, len(tag) + 1)
        begin += len(line) + 1


# Splitting of over-long lines.


class SplitQuality(IntEnum):
    """The quality of a split before a token; higher is better."""

    CHARACTER = 0  # inside a character of several tokens
    CLUSTER = 1  # before a combining mark, or inside an emoji
    WORD = 2  # between two characters of a word
    LETTER = 3  # next to a character of a script without spaces
    ABBREVIATION = 4  # between words, after a full stop that does not end a sentence
    SPACE = 5  # between words
    CLAUSE = 6  # after a comma, colon or semicolon
    SENTENCE = 7


def split_line(
    line: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], limit: int, *, tag: int = 0
) -> list[Part]:
    """Return the parts of a line; see `split` and `split_qualities` for the arguments."""
    parts, index = list[Part](), tag
    for part in split(ids, split_qualities(line, spans), limit, tag=tag):
        continues_word = bool(parts) and _is_in_word(line, spans[index][0])
        parts.append(Part(part, continues_word))
        index += len(part) - tag
    return parts


def _is_in_word(line: str, offset: int) -> bool:
    """Return True if an offset is between two characters of a word in a script with spaces."""
    return not any(
        each.isspace() or each == _ZERO_WIDTH_SPACE or belongs_without_spaces(each)
        for each in line[offset - 1 : offset + 1]
    )


def split(
    ids: Sequence[int], qualities: Sequence[SplitQuality], limit: int, *, tag: int = 0
) -> list[list[int]]:
    """Return the ids in parts of at most `limit`, each of which ends at the best split.

    The last of several equal splits is used. A split in the first half of a part is used only to
    keep a character whole, since there would be too many parts otherwise.

    Args:
        ids: ids of the line.
        qualities: quality of a split before each id, see `split_qualities`.
        limit: maximum number of ids of a part.
        tag: number of ids at the start that are repeated in every part, as for a language tag; at
            most `limit - 1` of them are repeated.
    """
    tag = min(tag, limit - 1)
    head, size = list(ids[:tag]), limit - tag
    start, parts = min(tag, len(ids)), []
    while len(ids) - start > size:
        end = _best_end(qualities, start, size)
        parts.append(head + list(ids[start:end]))
        start = end
    return [*parts, head + list(ids[start:])]


def _best_end(qualities: Sequence[SplitQuality], start: int, size: int) -> int:
    """Return the best end of a part of at most `size` ids that begins at `start`."""
    last = start + size
    middle = start + max(1, (size + 1) // 2)
    best = max(range(middle, last + 1), key=lambda index: (qualities[index], index))
    if qualities[best] > SplitQuality.CHARACTER:
        return best
    earlier = [
        index for index in range(start + 1, middle) if qualities[index] > SplitQuality.CHARACTER
    ]
    return earlier[-1] if earlier else last


def split_qualities(line: str, spans: Sequence[tuple[int, int]]) -> list[SplitQuality]:
    """Return the quality of a cut before each token of a line.

    Args:
        line: the text.
        spans: span of each token, see `Tokenizer.encode_spans`.
    """
    better = dict.fromkeys(_starts(line, clause_ends(line)), SplitQuality.CLAUSE)
    better |= dict.fromkeys(_starts(line, sentence_ends(line)), SplitQuality.SENTENCE)
    qualities = []
    begin_before, end_before = 0, 0
    for begin, end in spans:
        # If several tokens spell one character, all but the last have an empty span.
        if begin_before == end_before or begin >= len(line):
            qualities.append(SplitQuality.CHARACTER)
        elif not line[begin_before:end_before].strip():  # a space belongs to the next token
            qualities.append(SplitQuality.WORD)
        else:
            qualities.append(better.get(begin) or _between(line, begin))
        begin_before, end_before = begin, end
    return qualities


def _starts(line: str, ends: Iterable[int]) -> Iterable[int]:
    """Yield these offsets, and the offset after each space that follows them."""
    for end in ends:
        yield end
        while end < len(line) and line[end].isspace():
            end += 1
            yield end


def _between(line: str, offset: int) -> SplitQuality:
    """Return the quality of a cut that is not at the end of a sentence or clause."""
    before, after = line[offset - 1], line[offset]
    if _CONTINUES.match(after) or before == _JOINER or unicodedata.category(after)[0] == "M":
        return SplitQuality.CLUSTER
    if any(
        (each.isspace() and each not in NO_BREAK) or each == _ZERO_WIDTH_SPACE
        for each in (before, after)
    ):
        while offset > 1 and line[offset - 1].isspace():
            offset -= 1
        return SplitQuality.ABBREVIATION if line[offset - 1] == "." else SplitQuality.SPACE
    is_between = script_without_spaces(before) or script_without_spaces(after)
    # A closing mark is not separated from the text before it.
    if is_between and unicodedata.category(after) not in ("Pe", "Pf", "Po"):
        return SplitQuality.LETTER
    return SplitQuality.WORD


# Language tags.


class TagCheck:
    """A check for missing and unknown language tags, which warns once of each tag.

    Args:
        tokenizer: the source tokenizer.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._known = frozenset(tokenizer.language_tags)
        self._warned: set[str] = set()  # tags; "" stands for a missing tag

    def check(self, lines: Sequence[str], first_number: int, *, name: str = "") -> None:
        """Warn of tags that the model does not have, and of lines that lack a required tag.

        Args:
            lines: source texts.
            first_number: number of the first of them in messages.
            name: name of the file in messages.
        """
        known = self._known
        for number, line in enumerate(lines, first_number):
            if not line or (not known and not line.lstrip("\n").startswith(">>")):
                continue
            texts = line.split("\n") if "\n" in line else [line]
            tags = [leading_tag(text) for text in texts if not is_blank(text)]
            # Within a text, a line without a tag inherits that of the line before it.
            for tag in dict.fromkeys((*tags[:1], *filter(None, tags))):
                is_new = tag not in known and tag not in self._warned
                if is_new and len(self._warned) <= _MAX_TAG_WARNINGS:
                    self._warn(tag, f"{name}:{number}" if name else f"line {number}")

    def _warn(self, tag: str, position: str) -> None:
        if not tag and not self._known:
            return
        self._warned.add(tag)
        tags = self._tokenizer.language_tags
        if len(self._warned) > _MAX_TAG_WARNINGS:
            message = "%s: `%s` is not a target language either; other tags are not reported"
            logger.warning(message, position, tag)
            return
        if not tag:
            message = "%s: has no target language, such as %s at its start"
            logger.warning(message, position, tags[0])
            return
        if tags:
            reason = f"the model has {listed(tags)}"
        elif self._tokenizer.reads_tags_as_text:
            reason = "the model has no language tags and reads it as text"
        else:
            reason = "the model has one target language"
        logger.warning("%s: `%s` is not a target language: %s", position, tag, reason)
