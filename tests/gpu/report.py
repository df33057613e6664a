"""The report of the proof: its sections, as JSON and as Markdown."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tfm_cli.files.atomic import atomic_file

JSON_FILE, MARKDOWN_FILE = "proof.json", "proof.md"
Row = dict[str, Any]


@dataclass(slots=True)
class Result:
    """What is known of a section.

    Attributes:
        name: of the section.
        title: a phrase.
        about: what was done, for readers of the table.
        outcome: waiting, running, passed, passed in part, failed, timed out, killed, no time left
            or skipped.
        seconds: that it took.
        limit_seconds: that it was given.
        peak_mib: the most memory of its process or of one that this started.
        peak_device_mib: the most memory that PyTorch reserved on the device in its process.
        error: the last line of the error.
        rows: of its table.
    """

    name: str
    title: str
    about: str
    outcome: str = "waiting"
    seconds: float | None = None
    limit_seconds: float | None = None
    peak_mib: float | None = None
    peak_device_mib: float | None = None
    error: str = ""
    rows: list[Row] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """The whole of it.

    Attributes:
        device: that was asked for.
        is_tiny: a rehearsal, whose figures mean nothing.
        budget_seconds: for all sections.
        date: of the start, ISO 8601.
        seconds: since then.
        results: of all sections, in order.
    """

    device: str
    is_tiny: bool
    budget_seconds: float
    date: str
    seconds: float = 0.0
    results: list[Result] = field(default_factory=list)

    def write(self, directory: Path) -> None:
        """Write both files, each of which is replaced at once."""
        table = json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        for name, text in ((JSON_FILE, f"{table}\n"), (MARKDOWN_FILE, self.markdown())):
            with atomic_file(directory / name) as stream:
                stream.write(text.encode())

    def markdown(self) -> str:
        """Return a table of all sections, and one for each."""
        kind = " (a rehearsal with tiny sizes: no figure means anything)" if self.is_tiny else ""
        parts = [
            f"# What the GPU does{kind}",
            f"{self.date}, device `{self.device}`, {self.seconds:.0f} of {self.budget_seconds:.0f} "
            "seconds.",
            _table([_overview(result) for result in self.results]),
        ]
        for result in self.results:
            parts.append(f"## {result.title}")
            parts.append(result.about)
            if result.error:
                parts.append(f"{result.outcome}: `{result.error}`")
            if result.rows:
                parts.append(_table(result.rows))
        return "\n\n".join(parts) + "\n"


def _overview(result: Result) -> Row:
    return {
        "section": result.title,
        "outcome": result.outcome,
        "seconds": result.seconds,
        "peak_MiB": result.peak_mib,
        "peak_MiB_on_the_device": result.peak_device_mib,
        "error": result.error,
    }


def _table(rows: Sequence[Row]) -> str:
    """Return a Markdown table whose columns are all keys, those of the longest row first."""
    by_length = sorted(rows, key=len, reverse=True)
    keys = list(dict.fromkeys(key for row in by_length for key in row))
    is_number = [any(type(row.get(key)) in (float, int) for row in rows) for key in keys]
    lines = [
        [key.replace("_", " ") for key in keys],
        ["---:" if numeric else "---" for numeric in is_number],
        *[[cell(row.get(key)) for key in keys] for row in rows],
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: object) -> str:
    """Return a value as text: numbers with four significant digits, a dash for nothing."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")
