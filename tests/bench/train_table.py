"""What the sides of a work did, side by side: ratios and Markdown tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

ABSENT = "–"
HEADING = (
    "| work | side | pieces/s | tfm is as fast, each round | median | peak, MiB | padding "
    "| loss, first and last | of GEMM peak |\n"
    "|---|---|---:|---|---:|---:|---:|---|---:|"
)
TRICK_HEADING = (
    "| work | trick | instead of | pieces/s with and without | ratio of each round | median "
    "| peak, MiB |\n"
    "|---|---|---|---:|---|---:|---:|"
)


@dataclass(slots=True)
class Side:
    """One side of a work, and what it told."""

    name: str
    refused: str = ""
    pieces: int = 0  # of a round: source and target, without padding
    operations: int = 0  # of a round: multiplications and additions of its matrix products
    padding: float = 0.0  # share of what a round computes
    plan_padding: float = 0.0  # the same of a whole epoch
    start_mib: float = 0.0  # the peak before the first update
    peak_mib: float = 0.0
    first_loss: float = 0.0
    last_loss: float = 0.0
    made_updates: int = 0  # before the first round
    seconds: list[float] = field(default_factory=list)  # of each round

    def take(self, answer: dict[str, Any]) -> None:
        """Take in what the side's process wrote."""
        answer = dict(answer)
        if "seconds" in answer:
            self.seconds.append(answer.pop("seconds"))
        for name, value in answer.items():
            setattr(self, name, value)

    @property
    def rates(self) -> list[float]:
        """Source and target pieces a second, without padding, of each round."""
        return [self.pieces / seconds for seconds in self.seconds]

    @property
    def speeds(self) -> list[float]:
        """Operations a second of each round."""
        return [self.operations / seconds for seconds in self.seconds]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times as much we did in each round."""
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def fastest(peers: Sequence[Side]) -> Side:
    """The one with the highest median rate."""
    return max(peers, key=lambda side: median(side.rates))


def rows(work: str, tfm: Side, peers: Sequence[Side], gemm: Side) -> str:
    """The lines of one work: tfm, each peer, and what tfm is to the best of them."""
    ran = [peer for peer in peers if peer.seconds and tfm.seconds]
    lines = [_row(work, tfm, tfm, gemm)]
    lines += [_row(work, peer, tfm, gemm) for peer in peers]
    if ran:
        best, leanest = fastest(ran), min(ran, key=lambda side: side.peak_mib)
        share = f"{tfm.peak_mib / leanest.peak_mib:.2f} × {leanest.name}"
        cells = [
            work, f"fastest: {best.name}", "", *_ratio_cells(tfm.rates, best.rates), share, "", "",
            "",
        ]  # fmt: skip
        lines.append(_line(cells))
    return "\n".join(lines)


def trick_row(work: str, name: str, slow_way: str, ours: Side, without: Side) -> str:
    """The line of one trick on one work."""
    if ours.refused or without.refused:
        return _line([work, name, ours.refused or without.refused, *[ABSENT] * 4])
    return _line([
        work, name, slow_way,
        f"{median(ours.rates):.0f} / {median(without.rates):.0f}",
        *_ratio_cells(ours.rates, without.rates),
        f"{ours.peak_mib:.0f} / {without.peak_mib:.0f}",
    ])  # fmt: skip


def _row(work: str, side: Side, tfm: Side, gemm: Side) -> str:
    if side.refused:
        return _line([work, side.name, ABSENT, side.refused, *[ABSENT] * 5])
    compared = side is not tfm and bool(tfm.seconds)
    share = median(ratios(side.speeds, gemm.speeds)) if gemm.seconds else 0.0
    return _line([
        work, side.name, f"{median(side.rates):.0f}",
        *(_ratio_cells(tfm.rates, side.rates) if compared else ["", ""]),
        f"{side.peak_mib:.0f}", f"{side.padding:.1%}",
        f"{side.first_loss:.3f} → {side.last_loss:.3f}", f"{share:.0%}" if share else ABSENT,
    ])  # fmt: skip


def _ratio_cells(ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    each = ratios(ours, theirs)
    return [" ".join(f"{ratio:.2f}" for ratio in each), f"**{median(each):.2f}**"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
