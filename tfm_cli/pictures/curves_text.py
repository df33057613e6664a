"""Learning curves as text: rows of blocks, for a terminal or a pipe."""

import itertools
import math
from collections.abc import Sequence

from tfm_cli.console import counted, seconds_text
from tfm_cli.pictures.curves import (
    QUANTITIES,
    Axis,
    Quantity,
    Run,
    Scale,
    check_axis,
    end_of,
    scale_of,
    state_of,
    time_unit,
)

WIDTH = 80
_BLOCKS = " ▁▂▃▄▅▆▇█"
_LABEL = 20  # columns of the name of a curve
_NUMBER = 9  # columns of a number
_CHART = WIDTH - _LABEL - 2 * (_NUMBER + 1)
_MARKS = {"skipped": "×", "stopped": "■", "changed": "◆", "resumed": "▶"}
_KEY = "× skipped update   ■ stopped   ▶ resumed"
_KEY_WITH_CHANGES = "× skipped   ■ stopped   ◆ changed   ▶ resumed"
# Heights of the curves, where one run is shown.
_HEIGHTS = {"loss": 4, "bleu": 3, "chrf": 3}


def curves_text(runs: Sequence[Run], axis: Axis) -> list[str]:
    """Return the lines of a text, at most 80 columns wide.

    Raises:
        DataError: a run has nothing to show over this axis.
    """
    check_axis(runs, axis)
    unit = time_unit(runs)
    end = max(end_of(run, axis, unit) for run in runs) or 1.0
    lines = [_cut(line) for run in runs for line in _head(run)]
    for quantity in QUANTITIES:
        lines += _rows(quantity, runs, axis, end * (unit.seconds if axis == "time" else 1))
    title = unit.name if axis == "time" else axis
    lines += ["", f"{title:{_LABEL}}{'0':>{_NUMBER}} {'':{_CHART}} {_short(end)}"]
    marks = [_marks_row(run, axis, end * (unit.seconds if axis == "time" else 1)) for run in runs]
    if any(marks):
        lines += [_row(name, "", row, "") for name, row in zip(_names(runs), marks, strict=True)]
        key = _KEY_WITH_CHANGES if any(run.changes for run in runs) else _KEY
        lines.append(f"{'':{_LABEL + _NUMBER + 1}}{key}")
        lines += [_cut(line) for run in runs for line in _changes(run, named=len(runs) > 1)]
    return [line.rstrip() for line in lines]


def _head(run: Run) -> list[str]:
    """Return one line about a run, or two if they are too long for one."""
    if not (run.training or run.validations):
        return [f"{run.name}: no progress yet"]
    last = run.last
    parts = [counted(last.update, "update"), counted(last.epoch, "epoch")]
    if last.seconds is not None:
        parts.append(seconds_text(last.seconds))
    line, state = f"{run.name}: {', '.join(parts)}", state_of(run)
    if not state:
        return [line]
    whole = f"{line}; {state}"
    return [whole] if len(whole) <= WIDTH else [f"{line};", f"  {state}"]


def _changes(run: Run, *, named: bool) -> list[str]:
    """Return a line for each setting that was changed during a run."""
    name = f"{run.name}, " if named else ""
    return [
        f"{_MARKS['changed']} {name}after update {line.update}: {change}"
        for line in run.changes
        for change in line.changes
    ]


def _names(runs: Sequence[Run]) -> list[str]:
    return [run.name for run in runs] if len(runs) > 1 else ["events"]


def _rows(quantity: Quantity, runs: Sequence[Run], axis: Axis, end: float) -> list[str]:
    """Return the rows of a quantity, in which all curves have the same scale."""
    curves = []
    for run in runs:
        scale = scale_of(run, axis)
        for validation, kind in ((False, "train"), (True, "valid")):
            if points := _points(run, scale, quantity, validation=validation):
                curves.append((run.name if len(runs) > 1 else quantity.title, kind, points))
    if not curves:
        return []
    values = [value for _, _, points in curves for _, value in points]
    if quantity.is_logarithmic:
        values = [value for value in values if value > 0] or [1.0]
    low, high = min(values), max(values)
    has_both = quantity.in_training and quantity.in_validation
    height = _HEIGHTS.get(quantity.name, 1) if len(runs) == 1 else 1
    rows = ["", quantity.title] if len(runs) > 1 else [""] if height > 1 else []
    for name, kind, points in curves:
        label = f"{name}, {kind}" if has_both else name
        columns = resampled(points, end, _CHART)
        bars = blocks(columns, low, high, height, is_logarithmic=quantity.is_logarithmic)
        rows += [_row("", "", bar, "") for bar in bars[:-1] if bar.strip()]
        rows.append(_row(label, _short(points[0][1]), bars[-1], _short(points[-1][1])))
    return rows


def _points(
    run: Run, scale: Scale, quantity: Quantity, *, validation: bool
) -> list[tuple[float, float]]:
    """Return the places and values of a curve."""
    return [
        (place, value)
        for line, value in run.curve(quantity, validation=validation)
        if (place := scale.place(line)) is not None
    ]


def _row(label: str, first: str, chart: str, last: str) -> str:
    return f"{_cut(label, _LABEL - 1):{_LABEL}}{first:>{_NUMBER}} {chart:{_CHART}} {last}"


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _short(value: float) -> str:
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def resampled(points: Sequence[tuple[float, float]], end: float, width: int) -> list[float | None]:
    """Return a curve at `width` places between 0 and `end`; None before and after it.

    A place has the mean of the points in it, or a point between its neighbors.
    """
    sums = [[0.0, 0.0] for _ in range(width)]
    for place, value in points:
        total = sums[column_of(place, end, width)]
        total[0] += value
        total[1] += 1
    columns = [total / count if count else None for total, count in sums]
    known = [place for place, value in enumerate(columns) if value is not None]
    for before, after in itertools.pairwise(known):
        start, stop = columns[before], columns[after]
        assert start is not None
        assert stop is not None
        for place in range(before + 1, after):
            share = (place - before) / (after - before)
            columns[place] = start + share * (stop - start)
    return columns


def column_of(place: float, end: float, width: int) -> int:
    """Return the column of a place between 0 and `end`."""
    return min(max(int(place / end * width), 0), width - 1)


def blocks(
    columns: Sequence[float | None],
    low: float,
    high: float,
    height: int,
    *,
    is_logarithmic: bool = False,
) -> list[str]:
    """Return the rows of a chart, the upper one first; the smallest value has an eighth.

    Args:
        columns: the values; None leaves a gap.
        low: the smallest of all values that are compared.
        high: the largest.
        height: number of rows.
        is_logarithmic: True for equal steps of the logarithm.
    """
    if is_logarithmic:
        columns = [
            math.log(value) if value is not None and value > 0 else None for value in columns
        ]
        low, high = math.log(low), math.log(high)
    steps = 8 * height - 1
    levels = []
    for value in columns:
        share = 0.0 if value is None or high <= low else (value - low) / (high - low)
        levels.append(0 if value is None else 1 + round(share * steps))
    return [
        "".join(_BLOCKS[min(max(level - 8 * row, 0), 8)] for level in levels)
        for row in reversed(range(height))
    ]


def _marks_row(run: Run, axis: Axis, end: float) -> str:
    """Return the symbols of stops, changes, resumes and skipped updates at their places."""
    row = [" "] * _CHART
    scale = scale_of(run, axis)
    for line in run.marks:
        if (place := scale.place(line)) is not None:
            column = column_of(place, end, _CHART)
            if line.event != "skipped":
                _move_left(row, column)  # a stop, a change and a resume are all visible
            row[column] = _MARKS[line.event]
    return "".join(row).rstrip()


def _move_left(row: list[str], column: int) -> None:
    """Move the symbol of a stop or a change in a column, and those before it, one to the left."""
    if column > 0 and row[column] in (_MARKS["stopped"], _MARKS["changed"]):
        _move_left(row, column - 1)
        row[column - 1] = row[column]
