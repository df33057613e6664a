"""What was measured, side by side: ratios, agreement, and a Markdown table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

HEADING = (
    "| work | tfm / other | tokens/s | sentences/s | ms a sentence | load, s | peak, MiB "
    "| same tokens | ratio of each round | median | by the clock |\n"
    "|---|---|---:|---:|---:|---:|---:|---|---|---:|---:|"
)
ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one side."""

    seconds: float
    cpu_seconds: float  # of all its threads, and of processes that it waited for
    sentences: int
    pieces: int  # written, </s> included; 0 where they were not counted
    load_seconds: float  # from the start of the process until it was ready; 0 if not measured
    peak_mib: float
    outputs: tuple[str, ...] = field(default=(), repr=False)  # tokens of each line's translation
    texts: tuple[str, ...] = field(default=(), repr=False)  # of translations that end by themselves
    precision: str = ""

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> Self:
        """Return what a process wrote."""
        rows = {name: tuple(table[name]) for name in ("outputs", "texts")}
        return cls(**{**table, **rows})

    @property
    def rate(self) -> float:
        """Return sentences for each second of the processor."""
        return self.sentences / self.cpu_seconds


def ratios(ours: Sequence[Measured], theirs: Sequence[Measured]) -> list[float]:
    """Return how many times as fast as the other side we were in each round.

    Sentences are compared: where translations may end by themselves, one side's might be longer.
    Processors' time is compared, which other programs on the machine change less than the clock's.
    """
    return [our.rate / their.rate for our, their in zip(ours, theirs, strict=True)]


def clock_ratios(ours: Sequence[Measured], theirs: Sequence[Measured]) -> list[float]:
    """Return the same by the clock."""
    pairs = zip(ours, theirs, strict=True)
    return [(their.seconds / their.sentences) / (our.seconds / our.sentences)
            for our, their in pairs]  # fmt: skip


def agreement(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Return how many lines have the same translation on both sides, in words."""
    equal = sum(our == their for our, their in zip(ours, theirs, strict=True))
    return f"all {equal}" if equal == len(ours) else f"{equal} of {len(ours)}"


def row(
    name: str,
    settings: str,
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    *,
    outputs: str = "",
) -> str:
    """Return a line of the table: medians over the rounds, ours before theirs.

    Args:
        name: of the work.
        settings: the arrangement of each side.
        ours: what tfm did, round by round; empty if it cannot do that.
        theirs: what the other side did in the same rounds; empty likewise.
        outputs: whether they found the same.
    """
    each = ratios(ours, theirs) if ours and theirs else []

    def cell(value: Callable[[Measured], float], digits: int) -> str:
        return " / ".join(
            _number([value(measured) for measured in side], digits) for side in (ours, theirs)
        )

    cells = [
        name,
        settings,
        cell(lambda m: m.pieces / m.cpu_seconds, 0),
        cell(lambda m: m.rate, 1),
        cell(lambda m: 1000 / m.rate, 1),
        cell(lambda m: m.load_seconds, 2),
        cell(lambda m: m.peak_mib, 0),
        outputs or ABSENT,
        " ".join(f"{ratio:.2f}" for ratio in each) or ABSENT,
        f"**{median(each):.2f}**" if each else ABSENT,
        f"{median(clock_ratios(ours, theirs)):.2f}" if each else ABSENT,
    ]
    return f"| {' | '.join(cells)} |"


def _number(values: Sequence[float], digits: int) -> str:
    middle = median(values) if values else 0.0
    return f"{middle:.{digits}f}" if middle else ABSENT
