"""Lines of the source whose language tag is missing, or unknown to the tokenizer."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tfm_cli.corpus.line_counts import LineCounts, Place
from tfm_cli.language_tags import TagCounts, leading_tag, listed
from tfm_cli.tokenizer import Tokenizer

_MAX_PLACES = 1000


@dataclass(slots=True)
class SourceTags(LineCounts):
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
