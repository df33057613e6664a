"""Lines become segments, what a model translates in one go, and segments become batches."""

import logging
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.batching import token_batches
from tfm_cli.corpus.random_key import random_key
from tfm_cli.errors import DataError
from tfm_cli.text.characters import is_blank
from tfm_cli.text.language_tags import leading_tag, listed
from tfm_cli.text.scripts import belongs_without_blanks, script_without_blanks
from tfm_cli.text.sentences import NO_BREAK, clause_ends, sentence_ends
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tfm_cli.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


# Where a line that is too long for the model is cut into segments.

# Zero-width joiner, variation selectors, skin tones and tags belong to the character before them.
_CONTINUES = re.compile("[\u200d\ufe00-\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
_JOINER = "\u200d"
_ZERO_WIDTH_BLANK = "\u200b"  # which Khmer, Thai and Burmese text may have between words


class Cut(IntEnum):
    """How good it is to cut before a piece; a higher one is better."""

    CHARACTER = 0  # inside a character, which several pieces spell
    CLUSTER = 1  # before a mark of the character before, or inside an emoji
    WORD = 2  # between two characters of a word
    LETTER = 3  # between two characters, of which one is of a script without blanks
    ABBREVIATION = 4  # between words, after a full stop that ends no sentence
    BLANK = 5  # between words
    CLAUSE = 6  # after a comma, colon or semicolon
    SENTENCE = 7


class Part(NamedTuple):
    """A part of a line."""

    ids: list[int]
    goes_on: bool = False  # begins in the middle of a word, of a script that has blanks


def split_line(
    line: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], longest: int, *, tag: int = 0
) -> list[Part]:
    """Return the parts of a line; for the arguments see `split` and `rate_cuts`."""
    parts, place = list[Part](), tag
    for part in split(ids, rate_cuts(line, spans), longest, tag=tag):
        goes_on = bool(parts) and _is_in_word(line, spans[place][0])
        parts.append(Part(part, goes_on))
        place += len(part) - tag
    return parts


def _is_in_word(line: str, place: int) -> bool:
    """Return True if a place is between two characters of a word, which blanks would separate."""
    return not any(
        each.isspace() or each == _ZERO_WIDTH_BLANK or belongs_without_blanks(each)
        for each in line[place - 1 : place + 1]
    )


def split(
    ids: Sequence[int], cuts: Sequence[Cut], longest: int, *, tag: int = 0
) -> list[list[int]]:
    """Return the ids in parts of at most `longest`, each ended at the best place there is.

    Of several places that are equally good the last one is taken. A place in the first half of a
    part is taken only to keep a character whole, since the parts would become too many.

    Args:
        ids: pieces of the line.
        cuts: how good a cut before each of them is, as `rate_cuts` finds it.
        longest: most ids of a part; of the tag, no more is repeated than leaves room for one.
        tag: how many at the start are repeated at the start of every part, as a language tag is.
    """
    tag = min(tag, longest - 1)
    head, room = list(ids[:tag]), longest - tag
    start, parts = min(tag, len(ids)), []
    while len(ids) - start > room:
        end = _best_end(cuts, start, room)
        parts.append(head + list(ids[start:end]))
        start = end
    return [*parts, head + list(ids[start:])]


def _best_end(cuts: Sequence[Cut], start: int, room: int) -> int:
    """Return the best end of a part of at most `room` pieces that begins at `start`."""
    last = start + room
    middle = start + max(1, (room + 1) // 2)
    best = max(range(middle, last + 1), key=lambda place: (cuts[place], place))
    if cuts[best] > Cut.CHARACTER:
        return best
    earlier = [place for place in range(start + 1, middle) if cuts[place] > Cut.CHARACTER]
    return earlier[-1] if earlier else last


def rate_cuts(line: str, spans: Sequence[tuple[int, int]]) -> list[Cut]:
    """Return how good a cut before each piece of a line is.

    Args:
        line: the text.
        spans: where each piece stands in it, as `Tokenizer.encode_spans` finds it.
    """
    better = dict.fromkeys(_starts(line, clause_ends(line)), Cut.CLAUSE)
    better |= dict.fromkeys(_starts(line, sentence_ends(line)), Cut.SENTENCE)
    cuts = []
    begin_before, end_before = 0, 0
    for begin, end in spans:
        # Of the pieces that spell one character all but the last have no text of their own.
        if begin_before == end_before or begin >= len(line):
            cuts.append(Cut.CHARACTER)
        elif not line[begin_before:end_before].strip():  # a blank belongs to what is behind it
            cuts.append(Cut.WORD)
        else:
            cuts.append(better.get(begin) or _between(line, begin))
        begin_before, end_before = begin, end
    return cuts


def _starts(line: str, ends: Iterable[int]) -> Iterable[int]:
    """Yield where a cut is after one of these ends: there, or behind some of the blanks there."""
    for end in ends:
        yield end
        while end < len(line) and line[end].isspace():
            end += 1
            yield end


def _between(line: str, place: int) -> Cut:
    """Return how good a cut between two characters is where neither sentence nor clause ends."""
    before, after = line[place - 1], line[place]
    if _CONTINUES.match(after) or before == _JOINER or unicodedata.category(after)[0] == "M":
        return Cut.CLUSTER
    if any(
        (each.isspace() and each not in NO_BREAK) or each == _ZERO_WIDTH_BLANK
        for each in (before, after)
    ):
        while place > 1 and line[place - 1].isspace():
            place -= 1
        return Cut.ABBREVIATION if line[place - 1] == "." else Cut.BLANK
    is_between = script_without_blanks(before) or script_without_blanks(after)
    # Marks that close something stay with what they close.
    if is_between and unicodedata.category(after) not in ("Pe", "Pf", "Po"):
        return Cut.LETTER
    return Cut.WORD


# Warnings of lines whose language tag is missing or unknown.

_MOST_TOLD = 8  # tags that are warned of


class TagCheck:
    """Warns of language tags that are missing or unknown, of each once.

    Args:
        tokenizer: of the source.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known = frozenset(tokenizer.language_tags)
        self._told: set[str] = set()  # "" for a line without one

    def check(self, lines: Sequence[str], first_number: int, *, name: str = "") -> None:
        """Warn of tags that the model does not know, and of lines without one that need it.

        Args:
            lines: of the source; of a text of several lines, the first one with text counts.
            first_number: what messages call the first of them.
            name: what messages call the file.
        """
        known = self._known
        for number, line in enumerate(lines, first_number):
            if not line or (not known and not line.lstrip("\n").startswith(">>")):
                continue
            texts = line.split("\n") if "\n" in line else [line]
            tags = [leading_tag(text) for text in texts if not is_blank(text)]
            # A line without a tag has that of the line before it.
            for tag in dict.fromkeys((*tags[:1], *filter(None, tags))):
                if tag not in known and tag not in self._told and len(self._told) <= _MOST_TOLD:
                    self._tell(tag, f"{name}:{number}" if name else f"line {number}")

    def _tell(self, tag: str, place: str) -> None:
        if not tag and not self._known:
            return
        self._told.add(tag)
        if len(self._told) > _MOST_TOLD:
            logger.warning("%s: `%s` is no target language either; others are not told", place, tag)
            return
        tags = self._tokenizer.language_tags
        if not tag:
            told = "%s: does not say its target language, such as %s at its start"
            logger.warning(told, place, tags[0])
        elif tags:
            told = f"the model knows {listed(tags)}"
            logger.warning("%s: `%s` is no target language: %s", place, tag, told)
        elif self._tokenizer.reads_tags_as_text:
            told = "the model knows no language tags and reads it as text"
            logger.warning("%s: `%s` is no target language: %s", place, tag, told)
        else:
            told = "the model has one target language"
            logger.warning("%s: `%s` is no target language: %s", place, tag, told)


# What is translated together: some lines of an input.


class Lines(NamedTuple):
    """A window; without lines it stands for a pause of the input."""

    lines: Sequence[str]
    prefixes: Sequence[str] = ()  # what each translation begins with, empty for none
    before: int | None = None  # lines of the input; None: those that were translated so far
    # What messages call the input; "" for nothing; None where its tags were checked before.
    name: str | None = None


# Texts of several lines, as JSON strings can be: each line is translated, and the breaks stay.

# The mandatory breaks of Unicode (UAX #14).
_BREAK = re.compile("\r\n|[\n\v\f\r\x85\u2028\u2029]")


class TextLine(NamedTuple):
    """A line of a text, ready to be encoded."""

    text: str  # with a language tag of its own, or the one of a line before it
    number: int  # of the line in the text, from 0
    begin: int  # where the line begins in the text
    # Where the inherited tag stands in the text, and the length of what was put before the line.
    tag_begin: int = 0
    head_length: int = 0

    def span_in_text(self, begin: int, end: int) -> tuple[int, int]:
        """Return the place in the whole text of a place in this line, begin and end."""
        if end < self.head_length:
            return self.tag_begin + begin, self.tag_begin + end
        begin, end = (max(0, place - self.head_length) for place in (begin, end))
        return self.begin + begin, self.begin + end


def unified(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a text with a line feed for each break, and the breaks, unless all are line feeds."""
    breaks = tuple(map(sys.intern, _BREAK.findall(text)))
    if breaks.count("\n") == len(breaks):
        return text, ()
    return _BREAK.sub("\n", text), breaks


def restored(text: str, breaks: tuple[str, ...]) -> str:
    """Return a text with these breaks for its line feeds; without any, these stay."""
    if not breaks:
        return text
    first, *others = text.split("\n")
    return first + "".join(f"{each}{line}" for each, line in zip(breaks, others, strict=True))


def on_one_line(text: str) -> str:
    """Return a text with a blank between its lines; blank lines are left out."""
    return " ".join(filter(None, text.split("\n"))) if "\n" in text else text


def text_lines(text: str, tokenizer: "Tokenizer") -> Iterator[TextLine]:
    """Yield the lines of a text, which line feeds separate, but those that are blank.

    A line without a language tag has the tag of the nearest line before it that has one. A line
    of a tag alone only sets the tag.

    Args:
        text: in the source language.
        tokenizer: of the source.
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


_CONTINUATION_BYTE = re.compile("<0x[89AB][0-9A-F]>")  # a piece that goes on with a character


@dataclass(frozen=True, slots=True)
class Segment:
    """A line, or a part of an over-long one."""

    line: int  # index within the window
    part: int  # index within the line
    number: int  # of the line in the input, from 1
    ids: list[int]
    seed: int
    prefix: list[int]  # what the translation begins with
    text_line: int = 0  # index within the text, where that has several lines
    goes_on: bool = False  # begins in the middle of a word


class Segmenter:
    """Makes batches of lines; a class because it counts the lines.

    Args:
        tokenizers: of the model.
        search: how translations are looked for.
        beam_size: hypotheses that are followed at a time.
        on_long: what becomes of a line of more than `longest` pieces: `split` or `cut`.
        longest: most pieces of a segment or a prefix.
    """

    def __init__(
        self,
        tokenizers: TokenizerPair,
        search: SearchConfig,
        *,
        beam_size: int,
        on_long: str,
        longest: int,
    ) -> None:
        self._tokenizers = tokenizers
        self._seed = search.seed
        self._budget = max(1, search.max_tokens // beam_size)  # source pieces
        self._on_long = on_long
        self._longest = longest
        self._lines_before = 0
        self._tag_check = TagCheck(tokenizers.source)

    def batches(self, window: Lines) -> list[list[Segment]]:
        """Its segments, those of about the same length together, longest first.

        Raises:
            DataError: a prefix has more pieces than a segment may have.
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
        return [
            segments[batch] for batch in token_batches(lengths, lengths, max_tokens=self._budget)
        ]

    def _segments(self, lines: Sequence[str], prefixes: Sequence[str]) -> list[Segment]:
        """The segments of all lines, in order."""
        source = self._tokenizers.source
        texts = [
            (index, each.number, each.text)
            for index, line in enumerate(lines)
            for each in text_lines(line, source)
        ]
        prefix_ids = self._encoded_prefixes(prefixes)
        self._check_prefixes(prefix_ids, {(index, place) for index, place, _ in texts})
        segments: list[Segment] = []
        last = -1  # the line of the last segment
        for (index, place, text), ids in zip(
            texts, source.encode([text for _, _, text in texts]), strict=True
        ):
            number = self._lines_before + index + 1
            for within, (part_ids, goes_on) in enumerate(self._parts(ids, text, number)):
                is_first = index != last
                part = 0 if is_first else segments[-1].part + 1
                seed = random_key("sample", self._seed, number, part)
                beginning: list[int] = []
                if len(prefix_ids[index]) > 1:  # a prefix of several lines begins line by line
                    if within == 0 and place < len(prefix_ids[index]):
                        beginning = prefix_ids[index][place]
                elif is_first:
                    beginning = prefix_ids[index][0]
                segments.append(
                    Segment(index, part, number, part_ids, seed, beginning, place, goes_on)
                )
                last = index
        return segments

    def _encoded_prefixes(self, prefixes: Sequence[str]) -> list[list[list[int]]]:
        """The ids of each line of each prefix."""
        if not any(prefixes):
            return [[[]]] * len(prefixes)
        target = self._tokenizers.target
        texts = [prefix.split("\n") for prefix in prefixes]
        numbers = [n for n, text in enumerate(texts, self._lines_before + 1) for _ in text]
        encoded = target.encode([line for text in texts for line in text])
        for number, ids in zip(numbers, encoded, strict=True):
            if len(ids) > self._longest:
                found = f"{len(ids)} pieces, more than {self._longest}"
                raise DataError(f"line {number}: the target prefix has {found}")
            if target.unk_id in ids:
                logger.warning("line %d: the target prefix has unknown characters", number)
        rows = iter(encoded)
        return [[next(rows) for _ in text] for text in texts]

    def _check_prefixes(
        self, prefix_ids: Sequence[Sequence[Sequence[int]]], with_text: set[tuple[int, int]]
    ) -> None:
        """Refuse a prefix of several lines with text where the source has a tag alone, or none."""
        for index, rows in enumerate(prefix_ids):
            for place, ids in enumerate(rows):
                if len(rows) > 1 and ids and (index, place) not in with_text:
                    number = self._lines_before + index + 1
                    raise DataError(
                        f"line {number}: line {place + 1} of the target prefix has text, line "
                        f"{place + 1} of the source has none to translate"
                    )

    def _parts(self, ids: list[int], line: str, line_number: int) -> list[Part]:
        """Return the parts of a line: none of a blank one, several of an over-long one."""
        longest = self._longest
        if not ids or is_blank(line):
            return []
        if len(ids) <= longest:
            return [Part(ids)]
        what = "split" if self._on_long == "split" else "cut"
        found = f"line {line_number} has {len(ids)} pieces, more than {longest}"
        logger.warning("%s: %s", found, what)
        if self._on_long == "cut":
            return [Part(ids[: self._whole_characters(ids, longest)])]
        tokenizer = self._tokenizers.source
        spans = tokenizer.encode_spans([line])[0]
        return split_line(line, ids, spans, longest, tag=tokenizer.tag_length(line))

    def _whole_characters(self, ids: Sequence[int], most: int) -> int:
        """Return how many of the first `most` ids end with a whole character."""
        pieces, end = self._tokenizers.source.pieces, most
        while end > 1 and _CONTINUATION_BYTE.fullmatch(pieces[ids[end]]):
            end -= 1
        return end
