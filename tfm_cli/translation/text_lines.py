"""Texts of several lines, as JSON strings can be: each line is translated, and the breaks stay."""

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tfm_cli.corpus.characters import is_blank

if TYPE_CHECKING:
    from tfm_cli.tokenizer import Tokenizer

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
