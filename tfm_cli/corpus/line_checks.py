"""What of a text is lost between encoding and decoding: characters changed, pieces unknown."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, Self

from tfm_cli.text.language_tags import TagCounts, leading_tag, listed
from tfm_cli.tokenizer.tokenizer import Tokenizer, plain_blanks

# Counts of lines that several processes make of parts of one text, and that go through JSON.

_LONGEST_TEXT = 24  # characters of a line that a place shows


class LinePosition(NamedTuple):
    """The first line of a kind.

    Attributes:
        file: index of its file in the corpus.
        line: its number there.
        text: what is shown of it, and `becomes` what stands there instead; both may be empty.
    """

    file: int
    line: int
    text: str = ""
    becomes: str = ""


@dataclass(slots=True)
class LineCounts:
    """A base of dataclasses whose fields are counts, or a `LinePosition` or None."""

    def merge(self, later: Self) -> None:
        """Count the lines of a later part of the same text."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(later, field.name)
            is_number = isinstance(mine, int)
            setattr(self, field.name, mine + theirs if is_number else mine or theirs)

    def to_json(self) -> dict[str, Any]:
        """Return a table that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: object) -> Self:
        """Return what `to_json` gave.

        Raises:
            ValueError: the table is another one.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        if not isinstance(table, dict) or set(table) != set(defaults):
            raise ValueError(f"it has other counts than {', '.join(defaults)}")
        values: dict[str, Any] = {}
        for name, default in defaults.items():
            if default is None:
                values[name] = _place(name, table[name])
            elif _is_count(table[name]):
                values[name] = table[name]
            else:
                raise ValueError(f"its `{name}` is no count")
        return cls(**values)


def _place(name: str, values: object) -> LinePosition | None:
    if values is None:
        return None
    if (
        not isinstance(values, list | tuple)
        or len(values) != len(LinePosition._fields)
        or not all(map(_is_count, values[:2]))
        or not all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in values[2:])
    ):
        raise ValueError(f"its `{name}` is no place of a line")
    return LinePosition(*values)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


# Shares that call for a warning; below them, what was found is a note.
MAX_CHANGED = 0.01  # of lines: no translation of the model can be equal to these
MAX_UNKNOWN = 0.001  # of pieces: each is text that the model cannot see or write

# Where a tokenizer is from: learned by the run, named for it, or that of a trained model.
Origin = Literal["learned", "named", "model"]

_CONTEXT = 8  # characters that are shown before and after what was changed


@dataclass(slots=True)
class RoundTrip(LineCounts):
    """Counts of what one side of a corpus loses; a class because it is added to.

    Attributes:
        lines: lines that were encoded, and `pieces` those of them all.
        changed: lines that decoding does not give back, and the first of them.
        unknown: unknown pieces, and the first line that has any.
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
        place: Callable[[int], tuple[int, int]],
    ) -> None:
        """Count some lines.

        Args:
            tokenizer: of this side.
            lines: the text.
            encoded: its ids.
            place: gives the file of a line, by its index in the corpus, and its number there.
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
            self.first_unknown = LinePosition(*place(first), text[: 2 * _CONTEXT])
        changed = tokenizer.not_restored(lines, encoded)
        self.changed += len(changed)
        if changed and self.first_changed is None:
            first, text = changed[0]
            shown = _difference(plain_blanks(lines[first]), plain_blanks(text))
            self.first_changed = LinePosition(*place(first), *shown)

    def is_explained(self, tokenizer: Tokenizer) -> bool:
        """Return True if unknown pieces are why lines are changed, which need not be told twice."""
        return self.unknown > 0 and not tokenizer.changes_characters


def hint_for_unknown(origin: Origin) -> str:
    """Return what can be done about unknown pieces."""
    if origin == "model":
        return (
            "the vocabulary of a trained model cannot grow: replace this text on both sides, leave "
            "its pairs out, or train a new model"
        )
    if origin == "named":
        return "learn the tokenizer with `--byte-fallback` or a higher character coverage"
    return "set `tokenizer.byte_fallback` to true, or `tokenizer.character_coverage` higher"


def hint_for_changed(origin: Origin, tokenizer: Tokenizer) -> str:
    """Return what can be done about lines that are not given back."""
    if tokenizer.changes_characters:
        if origin == "model":
            return (
                "the model reads and writes text in this form; train a new one to keep it as it is"
            )
        if origin == "named":
            return "learn the tokenizer with `--normalization-rule-name identity`"
        return "set `tokenizer.normalization_rule_name` to `identity`"
    return "write another character for `▁`, which stands for a blank in SentencePiece"


def _difference(line: str, restored: str) -> tuple[str, str]:
    """Return what two texts have where they differ first, and a little around it."""
    begin = _num_alike(line, restored)
    num_alike = _num_alike(line[begin:][::-1], restored[begin:][::-1])
    before = max(0, begin - _CONTEXT)
    shown = []
    for text in (line, restored):
        end = min(len(text) - num_alike, begin + _CONTEXT) + _CONTEXT
        shown.append(text[before:end])
    return shown[0], shown[1]


def _num_alike(text: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))


# Lines of the source whose language tag is missing, or unknown to the tokenizer.

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
    first_untagged: LinePosition | None = None
    first_unknown: LinePosition | None = None

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
                self.first_unknown = self.first_unknown or LinePosition(*place(index))
            if not tag and not line.strip():
                continue
            self.lines += 1
            if not tag and known:
                self.untagged += 1
                self.first_untagged = self.first_untagged or LinePosition(*place(index))


class TagPositions:
    """Language tags of source lines, where those that are known may be found out later.

    Attributes:
        counts: of all lines.
    """

    def __init__(self) -> None:
        self.counts = TagCounts()
        self._first: dict[
            str, LinePosition
        ] = {}  # line of each tag; of "", that of a line without one
        self._first_other: LinePosition | None = None  # that has no room there

    def add(self, lines: Sequence[str], *, file: int, first_number: int) -> None:
        """Count the lines of a file from this number on."""
        for number, line in enumerate(lines, first_number):
            tag = self.counts.add(line)
            if tag is None or tag in self._first:
                continue
            if len(self._first) <= _MAX_PLACES:
                self._first[tag] = LinePosition(file, number)
            elif self._first_other is None:
                self._first_other = LinePosition(file, number)

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


def describe_untagged(known: Sequence[str]) -> str:
    """Return what lines without one of the known tags have."""
    return f"no language tag at the start, such as {known[0]}"


def describe_unknown_tag(tokenizer: Tokenizer) -> str:
    """Return what lines with a tag have that the tokenizer does not know."""
    if tags := tokenizer.language_tags:
        return f"a language tag that the tokenizer does not know: it knows {listed(tags)}"
    if tokenizer.reads_tags_as_text:
        return "what looks like a language tag at the start, which the tokenizer reads as text"
    return "a language tag at the start, and the tokenizer knows none"
