"""Progress of a training run: lines and a live bar for users, `metrics.jsonl` for programs."""

import contextlib
import errno
import io
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tfm_cli.console import seconds_text
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_file, replace_file
from tfm_cli.files.ownership import output_error
from tfm_cli.files.untrusted import NotPrivateError, check_private, open_private
from tfm_cli.training.events import Logged, Mark, UpdateSkipped, Validated

logger = logging.getLogger(__name__)

# The errors of parsing a line that is incomplete or was not written by tfm.
_INVALID_LINE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_MAX_LINE_BYTES = 1 << 20
_KINDS = {Logged: "train", Validated: "valid", UpdateSkipped: "skipped"}


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity if that overflows."""
    return math.inf if loss >= 700 else math.exp(loss)


def progress_line(event: Logged) -> str:
    """Return the log line of training progress, in columns of fixed width."""
    return (
        f"update {event.update:6d}  epoch {event.epoch:3d}  loss {event.loss:6.3f}  "
        f"ppl {perplexity(event.loss):8.2f}  lr {event.learn_rate:.2e}  "
        f"tgt-tok/s {event.tokens_per_second:6.0f}  grad {event.gradient_norm:5.2f}  "
        f"time {seconds_text(event.seconds)}"
    )


def score_text(metric: str, value: float) -> str:
    """Return the name and value of a metric; a loss with its perplexity."""
    if metric == "loss":
        return f"loss {value:.4f}  ppl {perplexity(value):.2f}"
    return f"{metric} {value:.2f}"


def validation_line(event: Validated) -> str:
    """Return the log line of a validation."""
    values = "  ".join(score_text(*each) for each in event.validation.values.items())
    best = "  best" if event.is_best else ""
    return (
        f"valid  {event.update:6d}  epoch {event.epoch:3d}  {values}  "
        f"time {seconds_text(event.seconds)}{best}"
    )


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
        """Continue a file after `update`: later lines, of an interrupted run, are dropped."""
        self._path = path
        self._num_bytes = 0  # size of the lines that were written
        self._unwritten: list[bytes] = []
        self._filter(lambda facts: bool(facts["update"] <= update))

    def drop_unscheduled(self) -> None:
        """Drop validations that were made only because the run was about to end."""
        self._filter(lambda facts: bool(facts.get("scheduled", True)))

    def add(self, event: Logged | Validated | UpdateSkipped | Mark) -> None:
        """Append the line of an event."""
        fields: dict[str, Any] = {"event": _KINDS.get(type(event), "resumed")}
        fields |= {"update": event.update, "epoch": event.epoch}
        if isinstance(event, Mark):
            if (stop := event.stopped) is not None:
                fields |= {"event": "stopped", "reason": stop.reason, "complete": stop.is_complete}
            fields["seconds"] = event.seconds
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


class Display:
    """The progress of a run on standard error: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, *, total: int | None, done: int) -> None:
        self._live: Progress | None = None
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            self._live = Progress(  # fits into 80 columns
                TextColumn("{task.completed}{task.fields[of]}"),
                BarColumn(bar_width=5),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(compact=True),
                console=Console(stderr=True, no_color="NO_COLOR" in os.environ or None),
                transient=True,
            )
            of = f"/{total}" if total else ""
            self._task = self._live.add_task("", total=total, completed=done, of=of, facts="")
        self._best = ""

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

    def show_progress(self, event: Logged) -> None:
        """Update the bar, or log a progress line."""
        if self._live is None:
            logger.info("%s", progress_line(event))
            return
        facts = (
            f"loss {event.loss:.2f} ppl {perplexity(event.loss):.3g} lr {event.learn_rate:.1e} "
            f"{event.tokens_per_second:.0f} tok/s{self._best}"
        )
        self._live.update(self._task, completed=event.update, facts=facts)

    def show_validation(self, event: Validated) -> None:
        """Log a validation, which stays on the screen."""
        if event.is_best and "bleu" in event.validation.values:
            self._best = f" BLEU {event.validation.values['bleu']:.1f}"
        with self._above_bar():
            logger.info("%s", validation_line(event))

    def show_skipped(self, event: UpdateSkipped) -> None:
        """Log a warning for a skipped update."""
        with self._above_bar():
            logger.warning("%s", skipped_line(event))

    @contextlib.contextmanager
    def _above_bar(self) -> Iterator[None]:
        """Hide the bar inside the block, so that log lines appear above it."""
        if self._live is None:
            yield
            return
        self._live.stop()
        yield
        self._live.start()
