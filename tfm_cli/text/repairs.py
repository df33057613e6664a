"""What a reader repairs in what it read: how many lines of each kind, and which came first."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Repairs:
    """Counts of lines by kind; a class because it is added to while lines are read.

    Kinds are `invalid`, `left_out` (invalid as well, but gone with its pair), `clipped`, `nul`,
    `columns`, `repeated` (a name of a JSON object); `bare`: a line that ends in LF alone where the
    first one ends in CRLF; and `crlf`: the other way round. Of a source that needs language tags,
    nothing is repairs, but they are noted as well: `untagged`, `unknown_tag`, `text_tag`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)  # line number of the first of each kind

    def add(self, kind: str, line: int, count: int = 1) -> None:
        """Count lines, the first of which is this one."""
        self.counts[kind] += count
        self.first.setdefault(kind, line)

    def count_as(self, kind: str, other: str) -> None:
        """Call lines of a kind by another, of which there are none yet."""
        self.counts[other], self.first[other] = self.counts.pop(kind), self.first.pop(kind)

    def merge(self, later: "Repairs") -> None:
        """Count the lines of a later part of the same file."""
        self.counts += later.counts
        for kind, line in later.first.items():
            self.first.setdefault(kind, line)

    def notes(self, max_line_bytes: int) -> list[str]:
        """A sentence for each kind that a reader of it should know, with the first such line."""
        told = {
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
            f"{told[kind]}: {self.counts[kind]} (first: line {line})"
            for kind, line in self.first.items()
        ]
