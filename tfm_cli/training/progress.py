"""What a person and a program get to see of a training run."""

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
from tfm_cli.training.events import Logged, UpdateSkipped, Validated

logger = logging.getLogger(__name__)

# What comes of a line that tfm did not write, or not as a whole.
_NO_METRICS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_MAX_LINE_BYTES = 1 << 20
_KINDS = {Logged: "train", Validated: "valid", UpdateSkipped: "refused"}


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is too large for a number."""
    return math.inf if loss >= 700 else math.exp(loss)


def progress_line(event: Logged) -> str:
    """A progress line for a person and for grep."""
    return (
        f"update {event.update:6d}  epoch {event.epoch:3d}  loss {event.loss:6.3f}  "
        f"ppl {perplexity(event.loss):8.2f}  lr {event.learn_rate:.2e}  "
        f"tgt-tok/s {event.pieces_per_second:6.0f}  grad {event.gradient_norm:5.2f}  "
        f"time {seconds_text(event.seconds)}"
    )


def score_text(metric: str, value: float) -> str:
    """A metric's name and value; a loss with its perplexity."""
    if metric == "loss":
        return f"loss {value:.4f}  ppl {perplexity(value):.2f}"
    return f"{metric} {value:.2f}"


def validation_line(event: Validated) -> str:
    """A validation's line for a person and for grep."""
    values = "  ".join(score_text(*each) for each in event.validation.values.items())
    best = "  best" if event.is_best else ""
    return (
        f"valid  {event.update:6d}  epoch {event.epoch:3d}  {values}  "
        f"time {seconds_text(event.seconds)}{best}"
    )


def skipped_line(event: UpdateSkipped) -> str:
    """A line for an update that was refused, and what is made of it."""
    then = "once more at half the learning rate" if event.is_retried else "left out"
    shown = ", ".join(map(str, event.pairs)) + (", …" if event.num_pairs > len(event.pairs) else "")
    plural = "s" if event.num_pairs > 1 else ""
    return (
        f"update {event.update}: {then}, as the loss is {event.loss:.4g} and the gradient norm "
        f"{event.gradient_norm:.4g}; {event.num_pairs} training pair{plural}: {shown}; "
        f"{event.count} refused so far"
    )


class MetricsFile:
    """`metrics.jsonl`: an object for each progress line, validation and refused update."""

    def __init__(self, path: Path, *, update: int) -> None:
        """Go on after `update`: later lines, of a run that was cut off, are dropped."""
        self._path = path
        self._size = 0  # bytes of the lines that were written
        self._unwritten: list[bytes] = []
        self._keep_only(lambda facts: bool(facts["update"] <= update))

    def drop_unscheduled(self) -> None:
        """Drop validations that were made only because training ended there, as it no longer does.

        The file then is that of a run which never stopped.
        """
        self._keep_only(lambda facts: bool(facts.get("scheduled", True)))

    def add(self, event: Logged | Validated | UpdateSkipped) -> None:
        """Append what happened."""
        fields: dict[str, Any] = {"event": _KINDS[type(event)]}
        fields |= {"update": event.update, "epoch": event.epoch}
        if isinstance(event, UpdateSkipped):
            fields |= {
                "loss": event.loss,
                "gradient_norm": event.gradient_norm,
                "pairs": event.pairs,
                "num_pairs": event.num_pairs,
                "refused": event.count,
                "retried": event.is_retried,
            }
        elif isinstance(event, Logged):
            fields |= {
                "loss": event.loss,
                "ppl": perplexity(event.loss),
                "learn_rate": event.learn_rate,
                "target_pieces_per_second": event.pieces_per_second,
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
                fields[name] = None  # JSON has no such number
        self._unwritten.append(json.dumps(fields).encode() + b"\n")
        with contextlib.suppress(OSError):  # `sync` tries again before anything is made of it
            self._write(synced=False)

    def sync(self) -> None:
        """Make sure of all lines so far: no checkpoint should know of what is missing here.

        Raises:
            ResourceError: they could not be written.
        """
        try:
            self._write(synced=True)
        except OSError as error:
            raise output_error(self._path, error) from error

    def _write(self, *, synced: bool) -> None:
        self._leave_links()
        with durable.open_for_update(self._path) as stream:
            if stream.seek(0, os.SEEK_END) > self._size:  # part of a line that did not fit
                stream.seek(self._size)
                stream.truncate()
            stream.writelines(self._unwritten)
            if synced:
                durable.sync(stream)
            else:
                stream.flush()
            self._size = stream.tell()
            self._unwritten.clear()

    def _leave_links(self) -> None:
        """Go on with a copy where the file got another name meanwhile, such as in a backup."""
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

    def _keep_only(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        kept = []
        for line in self._lines():
            with contextlib.suppress(*_NO_METRICS):
                if wanted(json.loads(line)):
                    kept.append(line.removesuffix(b"\n") + b"\n")
        with atomic_file(self._path, follow=False) as stream:
            stream.writelines(kept)
        self._size = sum(map(len, kept))


class Display:
    """Shows a run on stderr: a live bar on a terminal, plain lines everywhere else."""

    def __init__(self, *, total: int | None, done: int) -> None:
        self._live: Progress | None = None
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            self._live = Progress(  # all of it fits into 80 columns
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

    def logged(self, event: Logged) -> None:
        """Show progress."""
        if self._live is None:
            logger.info("%s", progress_line(event))
            return
        facts = (
            f"loss {event.loss:.2f} ppl {perplexity(event.loss):.3g} lr {event.learn_rate:.1e} "
            f"{event.pieces_per_second:.0f} tok/s{self._best}"
        )
        self._live.update(self._task, completed=event.update, facts=facts)

    def validated(self, event: Validated) -> None:
        """Show a validation; it stays on the screen."""
        if event.is_best and "bleu" in event.validation.values:
            self._best = f" BLEU {event.validation.values['bleu']:.1f}"
        with self._above():
            logger.info("%s", validation_line(event))

    def refused(self, event: UpdateSkipped) -> None:
        """Show that an update was refused."""
        with self._above():
            logger.warning("%s", skipped_line(event))

    @contextlib.contextmanager
    def _above(self) -> Iterator[None]:
        """Inside, lines are written above the bar."""
        if self._live is None:
            yield
            return
        self._live.stop()
        yield
        self._live.start()
