"""Progress of a training run: lines and a live bar for users, `metrics.jsonl` for programs."""

import contextlib
import errno
import io
import json
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from tfm_cli.console import one_line, seconds_text, shortened, terminal_width
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_file, replace_file
from tfm_cli.files.ownership import output_error
from tfm_cli.files.untrusted import NotPrivateError, check_private, open_private
from tfm_cli.training.events import (
    Changed,
    DecayBegan,
    Logged,
    Mark,
    Updated,
    UpdateSkipped,
    Validated,
)
from tfm_cli.training.validation import Sample

logger = logging.getLogger(__name__)

# The errors of parsing a line that is incomplete or was not written by tfm.
_INVALID_LINE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_MAX_LINE_BYTES = 1 << 20
_SPEED_SECONDS = 10.0  # over which the speed is averaged
_REFRESH_SECONDS = 0.25  # on a terminal
# The plan is logged after this many updates or seconds, whichever is first.
_PLAN_UPDATES, _PLAN_SECONDS = 10, 20.0
_EARLY_SECONDS = 45.0  # until a first line without a terminal, if no progress line was due
_MIN_BAR = 10  # columns
_USUAL_WIDTH = 80  # of a terminal that does not tell its width
_MAX_SAMPLE = 1000  # columns of a line, where there is no terminal
_KINDS = {
    Logged: "train", Validated: "valid", DecayBegan: "decay", UpdateSkipped: "skipped",
    Changed: "changed",
}  # fmt: skip


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity if that overflows."""
    return math.inf if loss >= 700 else math.exp(loss)


class Part(NamedTuple):
    """A part of a line. Where there is no room, the last one of the highest rank goes first."""

    text: str
    rank: int = 0


def fitted(parts: Sequence[Part], width: int) -> str:
    """Return parts side by side in at most `width` columns, without the least important ones."""
    kept = [Part(re.sub(" +", " ", part.text.strip()), part.rank) for part in parts if part.text]
    while len(kept) > 1 and len("  ".join(part.text for part in kept)) > width:
        kept.pop(max(range(len(kept)), key=lambda index: (kept[index].rank, index)))
    return "  ".join(part.text for part in kept)


def _line(parts: Sequence[Part], width: int | None) -> str:
    """Return the parts in columns of fixed width, or closer together and fewer if it is narrow."""
    line = "  ".join(part.text for part in parts if part.text)
    return line if width is None or len(line) <= width else fitted(parts, width)


def progress_line(event: Logged, width: int | None = None) -> str:
    """Return the log line of training progress, in columns of fixed width.

    Args:
        event: the progress.
        width: the columns of the terminal; None for no limit.
    """
    return _line(
        [
            Part(f"update {event.update:6d}"),
            Part(f"epoch {event.epoch:3d}", 3),
            Part(f"loss {event.loss:6.3f}", 1),
            Part(f"ppl {perplexity(event.loss):8.2f}", 4),
            Part(f"lr {event.learn_rate:.2e}", 5),
            Part(f"tgt-tok/s {event.tokens_per_second:6.0f}", 2),
            Part(f"grad {event.gradient_norm:5.2f}", 6),
            Part(f"time {seconds_text(event.seconds)}", 2),
        ],
        width,
    )


def early_line(event: Updated) -> str:
    """Return the log line of an update that precedes the first progress line."""
    loss = "" if event.loss is None else f"  loss {event.loss:6.3f}"
    rate = event.target_tokens / max(event.update_seconds, 1e-9)
    return (
        f"update {event.update:6d}  epoch {event.epoch:3d}{loss}  tgt-tok/s {rate:6.0f}  "
        f"time {seconds_text(event.seconds)}"
    )


def score_text(metric: str, value: float) -> str:
    """Return the name and value of a metric; a loss with its perplexity."""
    if metric == "loss":
        return f"loss {value:.4f}  ppl {perplexity(value):.2f}"
    return f"{metric} {value:.2f}"


def validation_line(event: Validated, width: int | None = None) -> str:
    """Return the log line of a validation; see `progress_line` for the width."""
    return _line(
        [
            Part(f"valid  {event.update:6d}"),
            Part(f"epoch {event.epoch:3d}", 3),
            *(
                Part(score_text(*each), min(index, 1))
                for index, each in enumerate(event.validation.values.items())
            ),
            Part(f"time {seconds_text(event.seconds)}", 2),
            Part("best" if event.is_best else ""),
        ],
        width,
    )


def sample_lines(samples: Sequence[Sample], width: int) -> Iterator[str]:
    """Yield a line for each text of each sample, cut to `width` columns."""
    for number, sample in enumerate(samples, 1):
        for name, text in sample._asdict().items():
            yield shortened(f"  {number} {name:<11}  {one_line(text)}".rstrip(), width)


def skipped_line(event: UpdateSkipped) -> str:
    """Return the log line of a skipped update, with the reason."""
    action = "retried at half the learning rate" if event.is_retried else "skipped"
    shown = ", ".join(map(str, event.pairs)) + (", …" if event.num_pairs > len(event.pairs) else "")
    plural = "s" if event.num_pairs > 1 else ""
    return (
        f"update {event.update}: {action}, as the loss is {event.loss:.4g} and the gradient norm "
        f"{event.gradient_norm:.4g}; {event.num_pairs} training pair{plural}: {shown}; "
        f"{event.count} skipped so far"
    )


class MetricsFile:
    """`metrics.jsonl`: a JSON object for each progress line, validation, skipped update and mark.

    But for times and marks, the file of a resumed run equals that of an uninterrupted run.
    """

    def __init__(self, path: Path, *, update: int) -> None:
        """Continue a file after `update`: later lines, of an interrupted run, are dropped.

        Changes of settings are kept, since they are in effect.
        """
        self._path = path
        self._num_bytes = 0  # size of the lines that were written
        self._unwritten: list[bytes] = []
        self._filter(
            lambda facts: bool(facts["update"] <= update) or facts.get("event") == "changed"
        )

    def drop_unscheduled(self) -> None:
        """Drop validations that were made only because the run was about to end."""
        self._filter(lambda facts: bool(facts.get("scheduled", True)))

    def drop_change_that_was_not_made(self, sha256_of: Callable[[Sequence[str]], str]) -> None:
        """Drop the last change of settings if the process was killed before it saved them.

        Args:
            sha256_of: returns the hash of the settings of the run that changes name; see `Changed`.
        """
        last: dict[str, Any] = {}
        for facts in self.facts():
            last = facts if facts.get("event") == "changed" else last
        names, sha256 = last.get("changes"), last.get("settings_sha256")
        is_known = isinstance(names, list) and isinstance(sha256, str)
        if is_known and sha256_of([str(name) for name in names or ()]) != sha256:
            self._filter(lambda facts: facts != last)

    def changes(self) -> list[str]:
        """Return the changes of settings so far, each with its update."""
        changed = (facts for facts in self.facts() if facts.get("event") == "changed")
        return [
            f"{change} after update {facts['update']}"
            for facts in changed
            if isinstance(facts.get("changes"), list)
            for change in facts["changes"]
        ]

    def facts(self) -> Iterator[dict[str, Any]]:
        """Yield the facts in each line."""
        for line in self._lines():
            with contextlib.suppress(*_INVALID_LINE):
                yield json.loads(line)

    def add(
        self, event: Logged | Validated | DecayBegan | UpdateSkipped | Mark | Changed
    ) -> dict[str, Any]:
        """Append the line of an event, and return the facts in it."""
        fields: dict[str, Any] = {"event": _KINDS.get(type(event), "resumed")}
        fields |= {"update": event.update, "epoch": event.epoch}
        if isinstance(event, Mark):
            if (stop := event.stopped) is not None:
                fields |= {"event": "stopped", "reason": stop.reason, "complete": stop.is_complete}
            fields["seconds"] = event.seconds
        elif isinstance(event, Changed):
            fields |= {"changes": list(event.changes), "settings_sha256": event.settings_sha256}
            fields["seconds"] = event.seconds
        elif isinstance(event, DecayBegan):
            fields |= {"last_update": event.last_update, "seconds": event.seconds}
        elif isinstance(event, UpdateSkipped):
            fields |= {
                "loss": event.loss,
                "gradient_norm": event.gradient_norm,
                "pairs": event.pairs,
                "num_pairs": event.num_pairs,
                "skipped": event.count,
                "retried": event.is_retried,
            }
        elif isinstance(event, Logged):
            fields |= {
                "loss": event.loss,
                "ppl": perplexity(event.loss),
                **({} if event.consistency is None else {"consistency": event.consistency}),
                "learn_rate": event.learn_rate,
                "target_tokens_per_second": event.tokens_per_second,
                "gradient_norm": event.gradient_norm,
                "seconds": event.seconds,
            }
        else:
            fields |= event.validation.values
            fields["best"] = event.is_best
            fields["scheduled"] = event.counted
            scores = event.validation.scores
            fields["signatures"] = {score.name: score.signature for score in scores}
            fields["seconds"] = event.seconds
        for name, value in fields.items():
            if isinstance(value, float) and not math.isfinite(value):
                fields[name] = None  # JSON has neither infinity nor NaN
        self._unwritten.append(json.dumps(fields).encode() + b"\n")
        with contextlib.suppress(OSError):  # `sync` tries again before the next checkpoint
            self._write(synced=False)
        return fields

    def sync(self) -> None:
        """Write all lines to the disk; called before a checkpoint, which must not be ahead of them.

        Raises:
            OutputError: they could not be written.
        """
        try:
            self._write(synced=True)
        except OSError as error:
            raise output_error(self._path, error) from error

    def _write(self, *, synced: bool) -> None:
        self._break_hard_links()
        with durable.open_for_update(self._path) as stream:
            if stream.seek(0, os.SEEK_END) > self._num_bytes:  # a partly written line
                stream.seek(self._num_bytes)
                stream.truncate()
            stream.writelines(self._unwritten)
            if synced:
                durable.sync(stream)
            else:
                stream.flush()
            self._num_bytes = stream.tell()
            self._unwritten.clear()

    def _break_hard_links(self) -> None:
        """Replace the file by a copy if it has other hard links, such as in a backup."""
        try:
            check_private(self._path)
        except NotPrivateError as error:
            if error.errno != errno.EMLINK:
                raise
            with self._path.open("rb") as linked, replace_file(self._path) as stream:
                shutil.copyfileobj(linked, stream)

    def _lines(self) -> Iterator[bytes]:
        try:
            with io.BufferedReader(open_private(self._path)) as stream:
                while line := stream.readline(_MAX_LINE_BYTES):
                    yield line
        except FileNotFoundError:
            return
        except OSError as error:
            raise output_error(self._path, error) from error

    def _filter(self, select: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file without the lines that are invalid or not selected."""
        lines = []
        for line in self._lines():
            with contextlib.suppress(*_INVALID_LINE):
                if select(json.loads(line)):
                    lines.append(line.removesuffix(b"\n") + b"\n")
        with atomic_file(self._path, follow=False) as stream:
            stream.writelines(lines)
        self._num_bytes = sum(map(len, lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The expected end of a run, as far as its settings determine it.

    Args:
        made: updates that earlier commands have made.
        total: updates of the whole run; 0 without a limit.
        updates_per_epoch: exact for a corpus of one pool.
        max_time: the time limit of this command, as it was given; empty for none.
        began: the start of this command, by the clock.
        deadline: the end of this command by `max_time`; infinite without a limit.
    """

    made: int = 0
    total: int = 0
    updates_per_epoch: int = 0
    max_time: str = ""
    began: float = 0.0
    deadline: float = math.inf


class Pace:
    """The speed of the updates of this command, and the time and updates that are left.

    The first update is not counted, since it includes compilation and other work that is done once.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._clock = clock
        self._start: tuple[int, float] | None = None  # the first update, and its end
        self._update = plan.made
        self._tokens, self._seconds = 0.0, 0.0  # sums that forget, over about ten seconds

    def add(self, event: Updated) -> None:
        """Count an update."""
        self._update = event.update
        if self._start is None:
            self._start = event.update, self._clock()
        elif event.update == self._start[0] + 1:
            self._tokens, self._seconds = 0.0, 0.0  # those of the first update
        kept = math.exp(-event.update_seconds / _SPEED_SECONDS)
        self._tokens = self._tokens * kept + event.target_tokens
        self._seconds = self._seconds * kept + event.update_seconds

    @property
    def tokens_per_second(self) -> float:
        """Return the target tokens per second of the last seconds, validation excluded."""
        return self._tokens / max(self._seconds, 1e-9)

    @property
    def seconds_per_update(self) -> float:
        """Return the mean since the first update, with the validations and checkpoints between."""
        if self._start is None:
            return math.inf
        count = self._update - self._start[0]
        return (self._clock() - self._start[1]) / count if count else self._seconds

    def seconds_left(self) -> float:
        """Return the seconds until the end of this command; infinite if it has no known end."""
        by_updates = math.inf
        if self._plan.total and self._start is not None:
            by_updates = max(0, self._plan.total - self._update) * self.seconds_per_update
        return min(by_updates, max(0.0, self._plan.deadline - self._clock()))

    def share(self) -> float | None:
        """Return the share of this command's work that is done; None if it has no known end."""
        plan = self._plan
        shares = [self._update / plan.total] if plan.total else []
        if plan.deadline < math.inf:
            shares.append((self._clock() - plan.began) / max(plan.deadline - plan.began, 1e-9))
        return min(1.0, max(shares)) if shares else None


def plan_line(plan: Plan, pace: Pace, update: int, now: float) -> str:
    """Return what the settings mean on this machine: updates, epochs and time.

    Args:
        plan: the expected end of the run.
        pace: the speed that was measured.
        update: the newest update.
        now: the time, by the clock of the plan.
    """

    def epochs(updates: float) -> str:
        count = updates / max(plan.updates_per_epoch, 1)
        return f"{count:,.1f} epochs" if count >= 0.05 else f"{count:.2g} epochs"

    speed = f"at {pace.tokens_per_second:,.0f} target tokens a second"
    seconds = pace.seconds_per_update
    left = plan.total - plan.made
    needed = (plan.total - update) * seconds
    if plan.total and needed <= plan.deadline - now:
        more = f"{left:,} more updates" if plan.made else f"{left:,} updates"
        return f"{more} = {epochs(left)}, about {seconds_text(needed)} {speed}, plus validations"
    if plan.deadline < math.inf:
        made = update - plan.made + max(0.0, plan.deadline - now) / max(seconds, 1e-9)
        return f"--max-time {plan.max_time} = about {made:,.0f} updates, {epochs(made)}, {speed}"
    epoch = seconds_text(plan.updates_per_epoch * seconds)
    return f"an epoch = {plan.updates_per_epoch:,} updates, about {epoch} {speed}"


class Display:
    """The progress of a run on standard error: a live bar on a terminal, plain lines elsewhere."""

    def __init__(
        self,
        plan: Plan = Plan(),
        *,
        shows_bar: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._clock = clock
        self._pace = Pace(plan, clock)
        self._began = clock()
        self._drawn = -math.inf
        self._has_plan = self._has_line = False
        self._updated: Updated | None = None
        self._logged: Logged | None = None
        self._best = ""
        self._live: Progress | None = None
        self._console = Console(stderr=True, no_color="NO_COLOR" in os.environ or None)
        self._is_enabled = logger.isEnabledFor(logging.INFO)
        is_terminal = sys.stderr.isatty()
        self._width = (terminal_width() or _USUAL_WIDTH) if is_terminal else None
        has_cursor = is_terminal and not self._console.is_dumb_terminal
        if shows_bar and self._is_enabled and has_cursor:
            self._live = Progress(
                TextColumn("{task.fields[counter]}", markup=False),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self._console,
                transient=True,
                expand=True,
                auto_refresh=False,  # a thread would take time from training
                redirect_stdout=False,
            )
            self._task = self._live.add_task("", total=None, counter=self._counter(), facts="")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            if self._logged is not None:  # the bar is gone, and its last facts should stay
                logger.info("%s", progress_line(self._logged, self._console.width))

    def show_update(self, event: Updated) -> None:
        """Move the bar, a few times a second at most, and log the plan once the speed is known."""
        if not self._is_enabled:
            return
        self._updated = event
        self._pace.add(event)
        now = self._clock()
        made, seconds = event.update - self._plan.made, now - self._began
        if not self._has_plan and (made >= _PLAN_UPDATES or seconds >= _PLAN_SECONDS):
            self._has_plan = True
            line = plan_line(self._plan, self._pace, event.update, now)
            with self._above_bar():
                logger.info("%s", line)
        if self._live is None:
            if not self._has_line and seconds >= _EARLY_SECONDS:
                self._has_line = True
                logger.info("%s", early_line(event))
        elif now - self._drawn >= _REFRESH_SECONDS:
            self._draw()

    def show_progress(self, event: Logged) -> None:
        """Update the bar, or log a progress line."""
        self._has_line = True
        self._logged = event
        if self._live is None:
            logger.info("%s", progress_line(event, self._width))
        else:
            self._draw()

    def show_validation(self, event: Validated) -> None:
        """Log a validation, which stays on the screen."""
        if event.is_best and "bleu" in event.validation.values:
            self._best = f"BLEU {event.validation.values['bleu']:.1f}"
        with self._above_bar():
            width = self._console.width if self._live is not None else self._width
            logger.info("%s", validation_line(event, width))
            for line in sample_lines(event.validation.samples, width or _MAX_SAMPLE):
                logger.info("%s", line)

    def show_decay(self, event: DecayBegan) -> None:
        """Log the begin of the decay of a run that ends by time."""
        with self._above_bar():
            logger.info(
                "the learning rate decays from update %d to %d, the last one before --max-time",
                event.update, event.last_update,
            )  # fmt: skip

    def show_skipped(self, event: UpdateSkipped) -> None:
        """Log a warning for a skipped update."""
        with self._above_bar():
            logger.warning("%s", skipped_line(event))

    def _counter(self) -> str:
        update = self._plan.made
        if self._logged is not None:
            update = self._logged.update
        if self._updated is not None:
            update = max(update, self._updated.update)
        return f"update {update}/{self._plan.total}" if self._plan.total else f"update {update}"

    def _draw(self) -> None:
        assert self._live is not None
        self._drawn = self._clock()
        counter, share = self._counter(), self._pace.share()
        room = self._console.width - len(counter) - 2 - _MIN_BAR
        facts = fitted(self._facts(), room)
        self._live.update(
            self._task,
            completed=share or 0.0,
            total=None if share is None else 1.0,
            counter=counter,
            facts=facts if len(facts) <= room else "",
        )
        self._live.refresh()

    def _facts(self) -> list[Part]:
        parts, logged, updated = [], self._logged, self._updated
        loss = logged.loss if logged else None
        if updated is not None:
            parts.append(Part(f"epoch {updated.epoch}", 4))
            loss = updated.loss if loss is None else loss
        if loss is not None:
            parts += [Part(f"loss {loss:.2f}", 1), Part(f"ppl {perplexity(loss):.3g}", 5)]
        if logged is not None:
            parts.append(Part(f"lr {logged.learn_rate:.1e}", 6))
        if updated is not None:
            parts.append(Part(f"{self._pace.tokens_per_second:.0f} tok/s", 2))
        left = self._pace.seconds_left()
        parts.append(Part(self._best, 3))
        parts.append(Part(f"{seconds_text(left)} left" if left < math.inf else ""))
        return parts

    @contextlib.contextmanager
    def _above_bar(self) -> Iterator[None]:
        """Hide the bar inside the block, so that log lines appear above it."""
        if self._live is None:
            yield
            return
        self._live.stop()
        yield
        self._live.start()
