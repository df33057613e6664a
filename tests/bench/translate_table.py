"""What was measured, side by side: ratios, agreement, and a Markdown table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

HEADING = (
    "| work | tfm / other | tokens/s | sentences/s | ms a sentence | load, s | peak, MiB "
    "| outputs | ratio of each round | median |\n"
    "|---|---|---:|---:|---:|---:|---:|---|---|---:|"
)
ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one side."""

    seconds: float
    sentences: int
    pieces: int  # written, </s> included; 0 where they were not counted
    load_seconds: float  # from the start of the process until it was ready; 0 if not measured
    peak_mib: float
    outputs: tuple[tuple[str, ...], ...] = field(default=(), repr=False)  # hypotheses of each line
    precision: str = ""

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> Self:
        """What a process wrote."""
        outputs = tuple(tuple(hypotheses) for hypotheses in table["outputs"])
        return cls(**{**table, "outputs": outputs})

    @property
    def rate(self) -> float:
        """Sentences a second."""
        return self.sentences / self.seconds


def ratios(ours: Sequence[Measured], theirs: Sequence[Measured]) -> list[float]:
    """How many times as fast as the other side we were in each round.

    Sentences are compared: where translations may end by themselves, one side's might be longer.
    """
    return [our.rate / their.rate for our, their in zip(ours, theirs, strict=True)]


def num_equal(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> int:
    """How many lines have the same hypotheses on both sides, in whatever order."""
    return sum(sorted(our) == sorted(their) for our, their in zip(ours, theirs, strict=True))


def agreement(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> str:
    """The same in words."""
    equal = num_equal(ours, theirs)
    return "equal" if equal == len(ours) else f"{equal} of {len(ours)} equal"


def row(
    name: str,
    settings: str,
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    *,
    outputs: str = "",
) -> str:
    """A line of the table: medians over the rounds, ours before theirs.

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
        cell(lambda m: m.pieces / m.seconds, 0),
        cell(lambda m: m.rate, 1),
        cell(lambda m: 1000 / m.rate, 1),
        cell(lambda m: m.load_seconds, 1),
        cell(lambda m: m.peak_mib, 0),
        outputs or ABSENT,
        " ".join(f"{ratio:.2f}" for ratio in each) or ABSENT,
        f"**{median(each):.2f}**" if each else ABSENT,
    ]
    return f"| {' | '.join(cells)} |"


def _number(values: Sequence[float], digits: int) -> str:
    middle = median(values) if values else 0.0
    return f"{middle:.{digits}f}" if middle else ABSENT
