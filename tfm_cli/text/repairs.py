"""Counts of the lines that a reader repaired."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Repairs:
    """Counts of repaired lines by kind, with the first line of each kind.

    The kinds are `invalid` (not UTF-8), `left_out` (not UTF-8, dropped with its pair), `clipped`
    (too long), `nul`, `columns` (more than two), `repeated` (a name in a JSON object), `bare` (ends
    in LF alone although the first line ends in CRLF) and `crlf` (the reverse).
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)  # line number of the first of each kind

    def add(self, kind: str, line: int, count: int = 1) -> None:
        """Count `count` lines, the first of which is number `line`."""
        self.counts[kind] += count
        self.first.setdefault(kind, line)

    def count_as(self, kind: str, other: str) -> None:
        """Rename a kind of lines to another kind, of which there must be none."""
        self.counts[other], self.first[other] = self.counts.pop(kind), self.first.pop(kind)

    def merge(self, later: "Repairs") -> None:
        """Add the counts of a later part of the same file."""
        self.counts += later.counts
        for kind, line in later.first.items():
            self.first.setdefault(kind, line)

    def notes(self, max_line_bytes: int) -> list[str]:
        """Return a sentence for each kind, with the count and the number of the first line."""
        sentences = {
            "invalid": "lines with invalid UTF-8, replaced by U+FFFD",
            "left_out": "lines with invalid UTF-8, left out together with their pair",
            "clipped": f"lines cut at {max_line_bytes} bytes",
            "nul": "lines with NUL characters, removed",
            "columns": "lines with more than two columns, of which the first two count",
            "repeated": "objects with a name more than once, of which the last value counts",
            "bare": "lines that end in LF, while the first one ends in CRLF",
            "crlf": "lines that end in CRLF, while the first one ends in LF; their CR is kept",
        }
        return [
            f"{sentences[kind]}: {self.counts[kind]} (first: line {line})"
            for kind, line in self.first.items()
        ]
