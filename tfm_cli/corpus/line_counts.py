"""Counts of lines that several processes make of parts of one text, and that go through JSON."""

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

_LONGEST_TEXT = 24  # characters of a line that a place shows


class Place(NamedTuple):
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
    """A base of dataclasses whose fields are numbers, or the first `Place` of a kind or None."""

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


def _place(name: str, values: object) -> Place | None:
    if values is None:
        return None
    if (
        not isinstance(values, list | tuple)
        or len(values) != len(Place._fields)
        or not all(map(_is_count, values[:2]))
        or not all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in values[2:])
    ):
        raise ValueError(f"its `{name}` is no place of a line")
    return Place(*values)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
