"""Lines of the source whose language tag is missing, or unknown to the tokenizer."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

from tfm_cli.language_tags import TagCounts, leading_tag, listed
from tfm_cli.tokenizer import Tokenizer

_MAX_PLACES = 1000


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


class TagPlaces:
    """Language tags of source lines, where those that are known may be found out later.

    Attributes:
        counts: of all lines.
    """

    def __init__(self) -> None:
        self.counts = TagCounts()
        self._first: dict[str, Place] = {}  # line of each tag; of "", that of a line without one
        self._first_other: Place | None = None  # that has no room there

    def add(self, lines: Sequence[str], *, file: int, first_number: int) -> None:
        """Count the lines of a file from this number on."""
        for number, line in enumerate(lines, first_number):
            tag = self.counts.add(line)
            if tag is None or tag in self._first:
                continue
            if len(self._first) <= _MAX_PLACES:
                self._first[tag] = Place(file, number)
            elif self._first_other is None:
                self._first_other = Place(file, number)

    def against(self, known: Collection[str]) -> SourceTags:
        """Return what is missing or unknown where these tags are known."""
        unknown = [place for tag, place in self._first.items() if tag and tag not in known]
        unknown += [self._first_other] if self._first_other else []
        untagged = self.counts.num_lines - self.counts.num_tagged if known else 0
        return SourceTags(
            self.counts.num_lines,
            untagged,
            self.counts.num_tagged - self.counts.num_known(known),
            self._first.get("") if untagged else None,
            min(unknown, default=None),
        )


def told_of_untagged(known: Sequence[str]) -> str:
    """Return what lines without one of the known tags have."""
    return f"no language tag at the start, such as {known[0]}"


def told_of_unknown(tokenizer: Tokenizer) -> str:
    """Return what lines with a tag have that the tokenizer does not know."""
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
