"""Lines of the source whose language tag is missing, or unknown to the tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

from tfm_cli.language_tags import leading_tag, listed
from tfm_cli.tokenizer import Tokenizer


class Place(NamedTuple):
    """The first line of a kind: the index of its file in the corpus, and its number there."""

    file: int
    line: int


@dataclass(slots=True)
class SourceTags:
    """Counts of source lines by their language tags; a class because it is added to.

    Attributes:
        lines: lines with text.
        untagged: those without a tag, of a tokenizer that has some, and the first of them.
        unknown: those with a tag that the tokenizer has not, and the first of them.
    """

    lines: int = 0
    untagged: int = 0
    unknown: int = 0
    first_untagged: Place | None = None
    first_unknown: Place | None = None

    def add(
        self, tokenizer: Tokenizer, lines: Sequence[str], *, place: Callable[[int], tuple[int, int]]
    ) -> None:
        """Count some lines.

        Args:
            tokenizer: of the source.
            lines: the text; blank lines do not count.
            place: gives the file of a line, by its index in the corpus, and its number there.
        """
        known = frozenset(tokenizer.language_tags)
        for index, line in enumerate(lines):
            tag = leading_tag(line)
            if tag and tag not in known:
                self.unknown += 1
                self.first_unknown = self.first_unknown or Place(*place(index))
            if not tag and not line.strip():
                continue
            self.lines += 1
            if not tag and known:
                self.untagged += 1
                self.first_untagged = self.first_untagged or Place(*place(index))

    def merge(self, later: "SourceTags") -> None:
        """Count the lines of a later part of the same text."""
        self.lines += later.lines
        self.untagged += later.untagged
        self.unknown += later.unknown
        self.first_untagged = self.first_untagged or later.first_untagged
        self.first_unknown = self.first_unknown or later.first_unknown

    def to_json(self) -> dict[str, Any]:
        """Return a table that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: object) -> Self:
        """Return what `to_json` gave.

        Raises:
            ValueError: the table is another one.
        """
        if not isinstance(table, dict) or set(table) != {field.name for field in fields(cls)}:
            raise ValueError("it has other counts than those of language tags")
        counts = [table[name] for name in ("lines", "untagged", "unknown")]
        if not all(map(_is_count, counts)):
            raise ValueError("it has a count of language tags that is none")
        lines, untagged, unknown = counts
        places = _place(table["first_untagged"]), _place(table["first_unknown"])
        return cls(lines, untagged, unknown, *places)


def told_of_untagged(tokenizer: Tokenizer) -> str:
    """Return what lines without a tag have done wrong."""
    return f"no language tag at the start, such as {tokenizer.language_tags[0]}"


def told_of_unknown(tokenizer: Tokenizer) -> str:
    """Return what lines with an unknown tag have done wrong."""
    if tags := tokenizer.language_tags:
        return f"a language tag that the tokenizer does not know: it knows {listed(tags)}"
    if tokenizer.reads_tags_as_text:
        return "what looks like a language tag at the start, which the tokenizer reads as text"
    return "a language tag at the start, and the tokenizer knows none"


def _place(values: object) -> Place | None:
    if values is None:
        return None
    if not isinstance(values, list | tuple) or len(values) != len(Place._fields):
        raise ValueError("it has a place of a language tag that is none")
    if not all(map(_is_count, values)):
        raise ValueError("it has a place of a language tag that is none")
    return Place(*values)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
