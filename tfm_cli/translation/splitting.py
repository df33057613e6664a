"""Where a line that is too long for the model is cut into segments."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from tfm_cli.scripts import belongs_without_blanks, script_without_blanks
from tfm_cli.translation.sentences import NO_BREAK, clause_ends, sentence_ends

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
