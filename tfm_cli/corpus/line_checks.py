"""Counts of lines that a tokenizer does not restore, and of lines with wrong language tags."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, Self

from tfm_cli.text.language_tags import TagCounts, leading_tag, listed
from tfm_cli.tokenizer.tokenizer import Tokenizer, normalize_spaces

# Larger shares cause a warning, smaller ones a note.
MAX_CHANGED = 0.01  # of lines, which no translation of the model can equal
MAX_UNKNOWN = 0.001  # of tokens: the model can neither read nor write their text

# A tokenizer is trained by the run, named in its settings, or part of a trained model.
Origin = Literal["learned", "named", "model"]

_MAX_SHOWN = 24  # characters of a line that a message shows
_CONTEXT = 8  # characters that are shown before and after a change
_MAX_TAGS = 1000  # different tags whose first lines are recorded


class LinePosition(NamedTuple):
    """The position of the first line with some property.

    Attributes:
        file: index of its file in the corpus.
        line: its number in the file, from 1.
        text: an excerpt, which may be empty.
        becomes: the excerpt after encoding and decoding, which may be empty.
    """

    file: int
    line: int
    text: str = ""
    becomes: str = ""


@dataclass(slots=True)
class LineCounts:
    """A base class of dataclasses whose fields are counts or optional line positions.

    Several processes count parts of one text, so counts can be merged and converted to JSON.
    """

    def merge(self, later: Self) -> None:
        """Add the counts of a later part of the same text."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(later, field.name)
            is_number = isinstance(mine, int)
            setattr(self, field.name, mine + theirs if is_number else mine or theirs)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: object) -> Self:
        """Return the counts that `to_json` wrote.

        Raises:
            ValueError: the table has other fields, or values of another type.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        if not isinstance(table, dict) or set(table) != set(defaults):
            raise ValueError(f"it has other counts than {', '.join(defaults)}")
        values: dict[str, Any] = {}
        for name, default in defaults.items():
            if default is None:
                values[name] = _parse_position(name, table[name])
            elif is_count(table[name]):
                values[name] = table[name]
            else:
                raise ValueError(f"its `{name}` is not a count")
        return cls(**values)


def _parse_position(name: str, values: object) -> LinePosition | None:
    if values is None:
        return None
    if (
        not isinstance(values, list | tuple)
        or len(values) != len(LinePosition._fields)
        or not all(map(is_count, values[:2]))
        or not all(isinstance(text, str) and len(text) <= _MAX_SHOWN for text in values[2:])
    ):
        raise ValueError(f"its `{name}` is not the position of a line")
    return LinePosition(*values)


def is_count(value: object) -> bool:
    """Return True for a JSON integer that is a valid count."""
    return type(value) is int and 0 <= value < 1 << 62


@dataclass(slots=True)
class RoundTrip(LineCounts):
    """Counts of text that encoding and decoding do not restore, on one side of a corpus.

    Attributes:
        lines: encoded lines.
        pieces: the number of their tokens.
        changed: lines that decoding does not restore.
        unknown: unknown tokens.
        first_changed: the first line that is changed.
        first_unknown: the first line with an unknown token.
    """

    lines: int = 0
    pieces: int = 0
    changed: int = 0
    unknown: int = 0
    first_changed: LinePosition | None = None
    first_unknown: LinePosition | None = None

    def add(
        self,
        tokenizer: Tokenizer,
        lines: Sequence[str],
        encoded: Sequence[Sequence[int]],
        *,
        position: Callable[[int], tuple[int, int]],
    ) -> None:
        """Count some lines.

        Args:
            tokenizer: the tokenizer of this side.
            lines: the text.
            encoded: its ids.
            position: maps an index in `lines` to the index of its file and its line number.
        """
        self.lines += len(lines)
        self.pieces += sum(map(len, encoded))
        unk_id = tokenizer.unk_id
        with_unknown = [index for index, ids in enumerate(encoded) if unk_id in ids]
        self.unknown += sum(list(encoded[index]).count(unk_id) for index in with_unknown)
        if with_unknown and self.first_unknown is None:
            first = with_unknown[0]
            (pieces,) = tokenizer.encode_pieces([lines[first]])
            text = pieces[list(encoded[first]).index(unk_id)].removeprefix("▁")
            self.first_unknown = LinePosition(*position(first), text[: 2 * _CONTEXT])
        changed = tokenizer.changed_lines(lines, encoded)
        self.changed += len(changed)
        if changed and self.first_changed is None:
            first, text = changed[0]
            shown = _difference(normalize_spaces(lines[first]), normalize_spaces(text))
            self.first_changed = LinePosition(*position(first), *shown)

    def is_explained(self, tokenizer: Tokenizer) -> bool:
        """Return True if unknown tokens explain the changed lines, which need no second message."""
        return self.unknown > 0 and not tokenizer.changes_characters


def hint_for_unknown(origin: Origin) -> str:
    """Return a remedy for unknown tokens."""
    if origin == "model":
        return (
            "the vocabulary of a trained model cannot grow: replace this text on both sides, drop "
            "its pairs, or train a new model"
        )
    if origin == "named":
        return "learn the tokenizer with `--byte-fallback` or a higher character coverage"
    return "set `tokenizer.byte_fallback` to true, or `tokenizer.character_coverage` higher"


def hint_for_changed(origin: Origin, tokenizer: Tokenizer) -> str:
    """Return a remedy for lines that decoding does not restore."""
    if tokenizer.changes_characters:
        if origin == "model":
            return (
                "the model reads and writes text in this form; train a new one to keep it as it is"
            )
        if origin == "named":
            return "learn the tokenizer with `--normalization-rule-name identity`"
        return "set `tokenizer.normalization_rule_name` to `identity`"
    return "write another character for `▁`, which stands for a space in SentencePiece"


def _difference(line: str, restored: str) -> tuple[str, str]:
    """Return excerpts of both texts at their first difference, with a little context."""
    begin = _common_prefix(line, restored)
    num_equal = _common_prefix(line[begin:][::-1], restored[begin:][::-1])
    before = max(0, begin - _CONTEXT)
    shown = []
    for text in (line, restored):
        end = min(len(text) - num_equal, begin + _CONTEXT) + _CONTEXT
        shown.append(text[before:end])
    return shown[0], shown[1]


def _common_prefix(text: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))


@dataclass(slots=True)
class SourceTags(LineCounts):
    """Counts of source lines whose language tag is missing, or unknown to the tokenizer.

    Attributes:
        lines: lines with text.
        untagged: lines without a tag, if the tokenizer has any.
        unknown: lines with a tag that the tokenizer does not have.
        first_untagged: the first line without a tag.
        first_unknown: the first line with an unknown tag.
    """

    lines: int = 0
    untagged: int = 0
    unknown: int = 0
    first_untagged: LinePosition | None = None
    first_unknown: LinePosition | None = None

    def add(
        self,
        tokenizer: Tokenizer,
        lines: Sequence[str],
        *,
        position: Callable[[int], tuple[int, int]],
    ) -> None:
        """Count some lines.

        Args:
            tokenizer: the tokenizer of the source.
            lines: the text; blank lines do not count.
            position: maps an index in `lines` to the index of its file and its line number.
        """
        known = frozenset(tokenizer.language_tags)
        for index, line in enumerate(lines):
            tag = leading_tag(line)
            if tag and tag not in known:
                self.unknown += 1
                self.first_unknown = self.first_unknown or LinePosition(*position(index))
            if not tag and not line.strip():
                continue
            self.lines += 1
            if not tag and known:
                self.untagged += 1
                self.first_untagged = self.first_untagged or LinePosition(*position(index))


class TagPositions:
    """Counts and first lines of language tags, collected before the known tags are available.

    Attributes:
        counts: lines by tag.
    """

    def __init__(self) -> None:
        self.counts = TagCounts()
        self._first: dict[str, LinePosition] = {}  # first line by tag; "" for lines without one
        self._first_other: LinePosition | None = None  # of the tags beyond `_MAX_TAGS`

    def add(self, lines: Sequence[str], *, file: int, first_number: int) -> None:
        """Count the tags of consecutive lines, the first of which has the number `first_number`."""
        for number, line in enumerate(lines, first_number):
            tag = self.counts.add(line)
            if tag is None or tag in self._first:
                continue
            if len(self._first) <= _MAX_TAGS:
                self._first[tag] = LinePosition(file, number)
            elif self._first_other is None:
                self._first_other = LinePosition(file, number)

    def against(self, known: Collection[str]) -> SourceTags:
        """Return the counts of missing and unknown tags for a set of known tags."""
        unknown = [position for tag, position in self._first.items() if tag and tag not in known]
        unknown += [self._first_other] if self._first_other else []
        untagged = self.counts.num_lines - self.counts.num_tagged if known else 0
        return SourceTags(
            self.counts.num_lines,
            untagged,
            self.counts.num_tagged - self.counts.num_known(known),
            self._first.get("") if untagged else None,
            min(unknown, default=None),
        )


def describe_untagged(known: Sequence[str]) -> str:
    """Return a description of lines without one of the known tags."""
    return f"no language tag at the start, such as {known[0]}"


def describe_unknown_tag(tokenizer: Tokenizer) -> str:
    """Return a description of lines with a tag that the tokenizer does not have."""
    if tags := tokenizer.language_tags:
        return f"a language tag that the tokenizer does not have: it has {listed(tags)}"
    if tokenizer.reads_tags_as_text:
        return "an apparent language tag at the start, which the tokenizer reads as text"
    return "a language tag at the start, and the tokenizer has none"
