"""Learning curves: loss, scores, learning rate, gradient norm and speed of one or more runs.

They are read from `metrics.jsonl`, which `tfm train` writes. The file is untrusted: a line that is
not one of `tfm train` is skipped with a warning, and memory is bounded whatever its size.
"""

import fcntl
import io
import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tfm_cli.console import counted, one_line, seconds_text
from tfm_cli.errors import DataError, plain_reason
from tfm_cli.files.layout import LOCK_FILE, METRICS_FILE
from tfm_cli.files.untrusted import open_private, open_regular, parse_json_object
from tfm_cli.pictures import charts
from tfm_cli.pictures.charts import DASHES, NUM_SERIES, Columns, Value, color, named
from tfm_cli.pictures.page import Chart, Page, Prose, Table

logger = logging.getLogger(__name__)

Axis = Literal["updates", "epochs", "time"]
AXES: tuple[Axis, ...] = get_args(Axis)

MAX_POINTS = 800  # of a curve; more are thinned out to between half as many and as many
_MAX_LINE_BYTES = 1 << 20
_MAX_WHOLE = 2**53
_LARGEST_EXPONENT = 700.0  # of a loss whose perplexity is finite
_SPEED_OF_0_1 = "target_pieces_per_second"  # the name that older runs have


class Line(NamedTuple):
    """A line of `metrics.jsonl`.

    Attributes:
        event: `train`, `valid`, `skipped` for a skipped update, `stopped`, `changed` for settings
            that were changed on request, or `resumed`.
        update: number of updates before it.
        epoch: from 1.
        seconds: trained so far, over all processes of the run; None if the line lacks it.
        values: its finite numbers by name.
        is_best: True for a validation whose weights were the best so far.
        reason: of a stop.
        changes: of settings, each as `section.name: old → new`.
    """

    event: str
    update: int
    epoch: int
    seconds: float | None
    values: dict[str, float]
    is_best: bool = False
    reason: str = ""
    changes: tuple[str, ...] = ()


class Quantity(NamedTuple):
    """A quantity with a chart of its own.

    Attributes:
        name: its name in the data of a page.
        title: the heading of its chart.
        unit: the title of its axis.
        in_training: the name in the lines of training progress, or nothing.
        in_validation: the name in the lines of validations, or nothing.
        is_logarithmic: True for a logarithmic axis.
        look_for: one sentence.
    """

    name: str
    title: str
    unit: str
    in_training: str
    in_validation: str
    is_logarithmic: bool
    look_for: str


QUANTITIES = (
    Quantity(
        "loss", "Loss", "negative log-likelihood per target token", "loss", "loss", False,
        "Training has overfitted from where the validation loss rises while the training loss "
        "still falls.",
    ),
    Quantity(
        "ppl", "Perplexity", "exp(loss)", "ppl", "ppl", True,
        "A perplexity of n is that of a choice among n equally probable tokens.",
    ),
    Quantity(
        "bleu", "BLEU", "BLEU of the validation text", "", "bleu", False,
        "The loss may fall on while BLEU no longer rises.",
    ),
    Quantity(
        "chrf", "chrF", "chrF of the validation text", "", "chrf", False,
        "chrF compares characters, and so it rises earlier than BLEU.",
    ),
    Quantity(
        "ter", "TER", "TER of the validation text", "", "ter", False,
        "TER counts edits: lower is better.",
    ),
    Quantity(
        "learn_rate", "Learning rate", "learning rate", "learn_rate", "", False,
        "The rate rises during the warm-up and falls with the inverse square root of the updates.",
    ),
    Quantity(
        "gradient_norm", "Gradient norm", "norm before clipping", "gradient_norm", "", True,
        "Peaks point to batches that disturb the training; a rising norm precedes divergence.",
    ),
    Quantity(
        "speed", "Speed", "target tokens per second", "target_tokens_per_second", "", False,
        "Drops show other work on the machine, or pairs of unusual length.",
    ),
)  # fmt: skip
_SCORES = ("bleu", "chrf", "ter")


# Reading.


@dataclass
class _Thinned:
    """A list of lines that drops every second line whenever it grows too long."""

    lines: list[Line] = field(default_factory=list)
    stride: int = 1
    count: int = 0
    last: Line | None = None

    def add(self, line: Line) -> None:
        if self.count % self.stride == 0:
            self.lines.append(line)
        self.count += 1
        self.last = line
        if len(self.lines) > MAX_POINTS:
            self.lines = self.lines[::2]
            self.stride *= 2

    def all(self) -> tuple[Line, ...]:
        """Return the lines that are kept, and the last one, in the order of their updates."""
        lines = list(self.lines)
        if self.last is not None and self.last is not lines[-1]:
            lines.append(self.last)
        return tuple(sorted(lines, key=lambda line: line.update))


@dataclass(frozen=True)
class Run:
    """A run, with its lines in the order of their updates.

    Attributes:
        name: the name of its directory, which differs from those of the other runs.
        path: its directory, or the file itself.
        training: the lines of training progress.
        validations: the lines of validations.
        marks: the lines of skipped updates, stops, changes of settings and resumes.
        changes: those of the marks that are changes of settings.
        best: the newest of the best validations.
        stride: the share of the training lines that is kept is one in this many.
        is_running: True if a process trains it now.
    """

    name: str
    path: Path
    training: tuple[Line, ...]
    validations: tuple[Line, ...]
    marks: tuple[Line, ...]
    changes: tuple[Line, ...]
    best: Line | None
    stride: int
    is_running: bool

    def lines(self) -> Iterator[Line]:
        """Yield all lines."""
        yield from self.training
        yield from self.validations
        yield from self.marks

    @property
    def last(self) -> Line:
        """Return the line with the last update."""
        return max(self.lines(), key=lambda line: line.update)

    def curve(self, quantity: Quantity, *, validation: bool) -> list[tuple[Line, float]]:
        """Return the lines that have a quantity, with its values."""
        name = quantity.in_validation if validation else quantity.in_training
        lines = self.validations if validation else self.training
        return [(line, line.values[name]) for line in lines if name in line.values]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the metrics of runs, each a directory of `tfm train` or its `metrics.jsonl`.

    Raises:
        DataError: a run has no metrics.
    """
    names = _distinct_names(paths)
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as many as it takes to tell them apart."""
    places = [
        Path(os.path.realpath(path.parent if path.name == METRICS_FILE else path)).parts
        for path in paths
    ]
    for length in range(1, max(map(len, places)) + 1):
        names = ["/".join(place[-length:]) for place in places]
        if len(set(names)) == len(set(places)):
            break
    return [f"{name} ({n + 1})" if names.count(name) > 1 else name for n, name in enumerate(names)]


def _read_run(path: Path, name: str) -> Run:
    file = path / METRICS_FILE if path.is_dir() else path
    kinds = {kind: _Thinned() for kind in ("train", "valid", "marks")}
    changes: list[Line] = []
    damaged: list[tuple[int, str]] = []
    num_damaged = 0
    best = None
    is_running = path.is_dir() and is_training(path)
    for number, content in enumerate(_file_lines(file), 1):
        try:
            line = parse_line(content)
        except ValueError as error:
            if content.endswith(b"\n"):  # otherwise it is being written, or was cut off
                num_damaged += 1
                damaged = damaged or [(number, plain_reason(error))]
            continue
        if line is not None:
            kinds[line.event if line.event in kinds else "marks"].add(line)
            best = line if line.is_best else best
            if line.changes and len(changes) < MAX_POINTS:
                changes.append(line)
    for number, reason in damaged:
        more = f", as {counted(num_damaged - 1, 'other line')}" if num_damaged > 1 else ""
        logger.warning("%s, line %d: is damaged: %s; it is skipped%s", file, number, reason, more)
    run = Run(
        name=name,
        path=path,
        training=kinds["train"].all(),
        validations=kinds["valid"].all(),
        marks=kinds["marks"].all(),
        changes=tuple(changes),
        best=best,
        stride=kinds["train"].stride,
        is_running=is_running,
    )
    if not run.training and not run.validations and not is_running:
        raise DataError(
            f"{file}: has no learning curve",
            hint="it has a point for every `--disp-freq` updates and for each validation",
        )
    return run


def _file_lines(file: Path) -> Iterator[bytes]:
    try:
        with io.BufferedReader(open_regular(file)) as stream:
            while line := stream.readline(_MAX_LINE_BYTES):
                yield line
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_training(file.parent):
            return  # it has just begun
        raise DataError(
            f"{file}: does not exist", hint="name the directory of a run of `tfm train`"
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def parse_line(content: bytes) -> Line | None:
    """Return the facts of a line; None for an event that is not shown.

    Raises:
        ValueError: it is not a line that `tfm train` writes.
    """
    facts = parse_json_object(content)
    event = facts.get("event")
    if not isinstance(event, str):
        raise ValueError("it has no `event`")
    if event == "refused":  # as version 0.1 names a skipped update
        event = "skipped"
    if event not in ("train", "valid", "skipped", "stopped", "changed", "resumed"):
        return None
    changes = facts.get("changes", []) if event == "changed" else []
    if not isinstance(changes, list) or not all(isinstance(each, str) for each in changes):
        raise ValueError("`changes` is not a list of texts")
    if _SPEED_OF_0_1 in facts:
        facts.setdefault("target_tokens_per_second", facts[_SPEED_OF_0_1])
    values = {}
    for name in ("loss", *_SCORES, "learn_rate", "target_tokens_per_second", "gradient_norm"):
        value = facts.get(name)
        if value is not None:
            values[name] = _number(value, name)
    if (loss := values.get("loss", math.inf)) < _LARGEST_EXPONENT:
        values["ppl"] = math.exp(loss)
    seconds = facts.get("seconds")
    return Line(
        event=event,
        update=_whole(facts.get("update"), "update"),
        epoch=_whole(facts.get("epoch"), "epoch"),
        seconds=None if seconds is None else _number(seconds, "seconds"),
        values=values,
        is_best=facts.get("best") is True,
        reason=one_line(str(facts.get("reason", "")))[:200],
        changes=tuple(one_line(each)[:200] for each in changes[:MAX_POINTS]),
    )


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{name}` is not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"`{name}` is too large") from error


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_WHOLE:
        raise ValueError(f"`{name}` is not a whole number")
    return value


def is_training(directory: Path) -> bool:
    """Return True if a process trains into a directory.

    Its lock is tried only once the process has written its facts into it: a process that is about
    to start is not disturbed.
    """
    try:
        with open_private(directory / LOCK_FILE) as lock:
            if not lock.read(1):
                return True
            fcntl.flock(lock.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:  # there is none, or the file system has no locks
        return False


# Axes.


@dataclass(frozen=True)
class Scale:
    """The horizontal axis of a run.

    Attributes:
        axis: updates, epochs or time.
        updates_per_epoch: estimated from the updates at which an epoch was seen.
    """

    axis: Axis
    updates_per_epoch: float

    def place(self, line: Line) -> float | None:
        """Return the place of a line; None if it has no time."""
        if self.axis == "updates":
            return line.update
        if self.axis == "time":
            return line.seconds
        # The epoch itself is known, and how much of it was made is estimated.
        return min(max(line.update / self.updates_per_epoch, line.epoch - 1), line.epoch)


def scale_of(run: Run, axis: Axis) -> Scale:
    """Return the axis of a run.

    With n updates an epoch, update u is in epoch e if (e - 1) n < u <= e n. Each line thus bounds
    n on both sides, and the middle of what is left is taken.
    """
    lines = [line for line in (*run.training, *run.validations) if line.epoch]
    low = max((line.update / line.epoch for line in lines), default=1.0)
    high = min((line.update / (line.epoch - 1) for line in lines if line.epoch > 1), default=low)
    return Scale(axis, max((low + max(high, low)) / 2, 1e-9))


def check_axis(runs: Iterable[Run], axis: Axis) -> None:
    """Raise a DataError if a run has nothing to show over this axis."""
    for run in runs:
        if axis == "time" and not any(line.seconds is not None for line in run.lines()):
            raise DataError(
                f"{run.path}: its metrics have no times", hint="take `--x updates` or `--x epochs`"
            )


class TimeUnit(NamedTuple):
    """The unit of a time axis."""

    name: str
    seconds: int


def time_unit(runs: Iterable[Run]) -> TimeUnit:
    """Return the unit in which the longest run has a readable length."""
    longest = max((line.seconds or 0.0 for run in runs for line in run.lines()), default=0.0)
    if longest < 180:
        return TimeUnit("seconds", 1)
    return TimeUnit("minutes", 60) if longest < 3 * 3600 else TimeUnit("hours", 3600)


# The page.


def curves_page(runs: Sequence[Run], axis: Axis) -> Page:
    """Return the page with a chart of each quantity that a run has.

    Raises:
        DataError: a run has nothing to show over this axis.
    """
    check_axis(runs, axis)
    unit = time_unit(runs)
    names = ", ".join(run.name for run in runs)
    page = Page(
        f"Learning curves of {names}",
        _table(runs),
        Prose(_introduction(runs, axis)),
    )
    page.add_data("training", _data(runs, axis, unit, validation=False))
    page.add_data("validations", _data(runs, axis, unit, validation=True))
    page.add_data("events", _events(runs, axis, unit))
    end = max(end_of(run, axis, unit) for run in runs) or 1.0
    title = f"{unit.name} of training" if axis == "time" else axis
    for quantity in QUANTITIES:
        parts = _Parts(
            training=any(run.curve(quantity, validation=False) for run in runs),
            validations=any(run.curve(quantity, validation=True) for run in runs),
            best=any(run.best for run in runs),
            events=any(run.marks for run in runs),
            changes=any(run.changes for run in runs),
        )
        if parts.training or parts.validations:
            chart = _chart(quantity, [run.name for run in runs], title, end, parts)
            page.add_section(
                quantity.title,
                Prose(quantity.look_for),
                Chart(
                    chart,
                    _alternative(quantity, runs),
                    _key(parts),
                    lists_numbers=quantity.name == "loss",
                ),
            )
    if any(run.changes for run in runs):
        page.add_section("Changes of settings", _changes_table(runs))
    return page


def _table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        last, best = run.last, run.best
        score = ""
        if best is not None:
            shown = [
                f"{quantity.title} {best.values[quantity.name]:.2f}"
                for quantity in QUANTITIES
                if quantity.name in _SCORES and quantity.name in best.values
            ]
            score = f"{', '.join(shown or [_loss(best)])} at update {best.update}"
        seconds = "" if last.seconds is None else seconds_text(last.seconds)
        rows.append((run.name, str(last.update), str(last.epoch), seconds, score, state_of(run)))
    header = ["run", "updates", "epochs", "time", "best validation", "state"]
    filled = [any(column) for column in zip(*rows, strict=True)]
    return Table(
        list(itertools.compress(header, filled)),
        [list(itertools.compress(row, filled)) for row in rows],
        "The runs",
    )


def _changes_table(runs: Sequence[Run]) -> Table:
    """Return the table of the settings that were changed during the runs."""
    rows = []
    for run in runs:
        for line in run.changes:
            for change in line.changes:
                setting, _, values = change.partition(": ")
                old, _, new = values.partition(" → ")
                rows.append([run.name, str(line.update), setting, old, new])
    header = ["run", "after update", "setting", "before", "after"]
    return Table(header, rows, "Settings that were changed")


def _loss(line: Line) -> str:
    return f"loss {line.values['loss']:.4f}" if "loss" in line.values else ""


def state_of(run: Run) -> str:
    """Return the state of a run in words; nothing for one of version 0.1."""
    if run.is_running:
        return "running"
    marks = [line for line in run.marks if line.event in ("stopped", "resumed")]
    if not marks:
        return ""
    if marks[-1].event == "stopped" and marks[-1].update >= run.last.update:
        return f"stopped: {marks[-1].reason}"
    return "ended without a stop"


def _introduction(runs: Sequence[Run], axis: Axis) -> str:
    parts = ["The numbers are those of `metrics.jsonl` in the directory of each run."]
    if axis == "epochs":
        parts.append("The place within an epoch is estimated from the number of updates.")
    thinned = [run for run in runs if run.stride > 1]
    for run in thinned:
        parts.append(f"Of {run.name}, one training line in {run.stride} is shown.")
    return " ".join(parts)


def _data(runs: Sequence[Run], axis: Axis, unit: TimeUnit, *, validation: bool) -> Columns:
    """Return the lines of all runs as a table."""
    names = [
        quantity.in_validation if validation else quantity.in_training for quantity in QUANTITIES
    ]
    columns: dict[str, list[Value]] = {
        name: [] for name in ("run", "x", "update", "epoch", *filter(None, names), "best")
    }
    for run in runs:
        scale = scale_of(run, axis)
        for line in run.validations if validation else run.training:
            row: dict[str, Value] = {"run": run.name, "x": _x(scale, line, unit), **line.values}
            row |= {"update": line.update, "epoch": line.epoch, "best": line is run.best}
            for name, column in columns.items():
                column.append(row.get(name))
    if not validation:
        del columns["best"]
    return Columns(
        {name: each for name, each in columns.items() if any(v is not None for v in each)}
    )


def _events(runs: Sequence[Run], axis: Axis, unit: TimeUnit) -> Columns:
    columns: dict[str, list[Any]] = {name: [] for name in ("run", "x", "update", "event", "reason")}
    for run in runs:
        scale = scale_of(run, axis)
        for line in run.marks:
            reason = line.reason or "; ".join(line.changes)
            row = (run.name, _x(scale, line, unit), line.update, _EVENTS[line.event], reason)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return Columns(columns)


def _x(scale: Scale, line: Line, unit: TimeUnit) -> float | None:
    place = scale.place(line)
    return place / unit.seconds if scale.axis == "time" and place is not None else place


def end_of(run: Run, axis: Axis, unit: TimeUnit) -> float:
    """Return the last place of a run, on a time axis in its unit."""
    scale = scale_of(run, axis)
    return max((_x(scale, line, unit) or 0.0 for line in run.lines()), default=0.0)


class _Parts(NamedTuple):
    """The parts that the chart of a quantity has."""

    training: bool
    validations: bool
    best: bool
    events: bool
    changes: bool


_EVENTS = {
    "skipped": "skipped update",
    "stopped": "stopped",
    "changed": "changed",
    "resumed": "resumed",
}
# Shapes, and offsets in pixels, so that events after one update stand side by side.
_SHAPES = {
    "skipped update": (
        "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z",
        0,
    ),
    "stopped": ("square", -6),
    "changed": ("diamond", 0),
    "resumed": ("triangle-right", 6),
}
_COLORS = [color(f"series-{number + 1}") for number in range(NUM_SERIES)]


def _legend(alt: Any, names: Sequence[str]) -> Any:
    """Return a legend that is not wider than a telephone."""
    columns = max(1, 48 // (max(map(len, names)) + 6))
    return alt.Legend(
        title=None,
        orient="top",
        columns=min(columns, len(names)),
        symbolType="stroke",
        symbolSize=300,
        symbolStrokeWidth=2,
    )


def _chart(quantity: Quantity, names: Sequence[str], title: str, end: float, parts: _Parts) -> Any:
    """Return the chart of a quantity: a layer of training, of validations, and of events."""
    alt = charts.load().altair
    legend = _legend(alt, names) if len(names) > 1 else None
    repeats = range(len(names))
    colors = alt.Scale(domain=names, range=[_COLORS[n % NUM_SERIES] for n in repeats])
    dashes = alt.Scale(domain=names, range=[list(DASHES[n % NUM_SERIES]) for n in repeats])
    if quantity.is_logarithmic:
        scale = alt.Scale(type="log", nice=False)
    else:
        scale = alt.Scale(zero=quantity.name in ("learn_rate", "speed"))

    def points(data: str, field: str) -> Any:
        """Return the base of a layer that shows a field of the data."""
        return (
            alt.Chart(named(data))
            .transform_filter(f"isValid(datum.x) && isValid(datum.{field})")
            .transform_filter(f"datum.{field} > 0 || {str(not quantity.is_logarithmic).lower()}")
            .encode(
                x=alt.X("x:Q", title=title, scale=alt.Scale(domain=[0, end], nice=False)),
                y=alt.Y(f"{field}:Q", title=quantity.unit, scale=scale),
                color=alt.Color("run:N", scale=colors, legend=legend),
                tooltip=["run:N", "update:Q", "epoch:Q", alt.Tooltip(f"{field}:Q", format=".5~g")],
            )
        )

    layers = []
    if parts.training:
        base = points("training", quantity.in_training)
        dash = alt.StrokeDash("run:N", scale=dashes, legend=legend)
        thin = {"strokeWidth": 1.2, "opacity": 0.8} if parts.validations else {}
        layers.append(base.mark_line(**thin).encode(strokeDash=dash))
        layers.append(base.mark_point(opacity=0, filled=True, size=90))  # a target for the pointer
    if parts.validations:
        base = points("validations", quantity.in_validation)
        dash = alt.StrokeDash("run:N", scale=dashes, legend=legend)
        layers.append(base.mark_line().encode(strokeDash=dash))
        layers.append(base.mark_point(filled=True, opacity=1, size=40))
        if parts.best:
            star = base.transform_filter("datum.best")
            layers.append(
                star.mark_point(
                    shape=_STAR,
                    filled=True,
                    size=120,
                    opacity=1,
                    stroke=color("ink"),
                    strokeWidth=0.5,
                )
            )
    if parts.events:
        layers += _event_layers(alt, colors)
    return alt.layer(*layers).properties(width="container", height=240)


_STAR = (  # with five points, inside a square from -1 to 1
    "M0,-1L.2245,-.309L.951,-.309L.3633,.118L.5878,.809L0,.382L-.5878,.809L-.3633,.118"
    "L-.951,-.309L-.2245,-.309Z"
)


def _event_layers(alt: Any, colors: Any) -> list[Any]:
    """Return a line at each stop, change and resume, and a symbol at each event above the chart."""
    base = (
        alt.Chart(named("events"))
        .transform_filter("isValid(datum.x)")
        .encode(
            x="x:Q",
            color=alt.Color("run:N", scale=colors),
            tooltip=["event:N", "run:N", "update:Q", "reason:N"],
        )
    )
    rules = base.transform_filter("datum.event != 'skipped update'")
    layers = [rules.mark_rule(strokeDash=[3, 3], opacity=0.6)]
    for event, (shape, offset) in _SHAPES.items():
        layers.append(
            base.transform_filter(f"datum.event == '{event}'")
            .mark_point(filled=True, size=60, opacity=1, shape=shape, xOffset=offset)
            .encode(y=alt.value(-8))
        )
    return layers


def _key(parts: _Parts) -> str:
    words = []
    if parts.training and parts.validations:
        words.append("Line: training. Line with points: validation.")
    if parts.validations and parts.best:
        words.append("Star: the validation whose weights are the model.")
    if parts.events:
        change = " ◆ a change of settings," if parts.changes else ""
        words.append(f"Above the chart: × a skipped update, ■ a stop,{change} ▶ a resume.")
    return " ".join(words)


def _alternative(quantity: Quantity, runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        for validation, kind in ((False, "training"), (True, "validation")):
            if curve := run.curve(quantity, validation=validation):
                (first, start), (last, end) = curve[0], curve[-1]
                values = [value for _, value in curve]
                parts.append(
                    f"{run.name}, {kind}: {start:.4g} at update {first.update}, {end:.4g} at "
                    f"update {last.update}, between {min(values):.4g} and {max(values):.4g}"
                )
    return f"{quantity.title}. {'; '.join(parts)}."
