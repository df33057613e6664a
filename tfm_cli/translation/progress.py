"""How far `tfm translate` or `tfm check` is: a bar on a terminal, a line a minute elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tfm_cli.console import TimeLeft, counted, seconds_text
from tfm_cli.text.reader import is_typed
from tfm_cli.translation.streaming import Work

logger = logging.getLogger(__name__)

_LINE_SECONDS = 60.0


def progress_text(work: Work, left: float | None) -> str:
    """What was done so far, for a person: lines, share, lines a second, time left."""
    share = "" if work.share is None else f" ({100 * work.share:.0f} %)"
    speed = work.lines / max(work.seconds, 1e-9)
    rest = "" if left is None else f", {seconds_text(left)} left"
    return f"{counted(work.lines, 'line')}{share}, {speed:.1f} lines/s{rest}"


@contextlib.contextmanager
def shown_progress(
    input_path: str,
    output_path: str,
    *,
    doing: str = "translating",
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[Work], None]]:
    """Shows how far the work is, where a terminal has no translations to show."""
    typed = is_typed(input_path)
    if typed or not logger.isEnabledFor(logging.INFO):
        yield lambda work: None
        return
    time_left = TimeLeft(clock)
    if not sys.stderr.isatty():
        yield _each_minute(time_left, clock)
        return
    if output_path == "-" and sys.stdout.isatty():
        yield lambda work: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}")]
    columns += [BarColumn(bar_width=20), TimeElapsedColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(doing, total=None)

        def show(work: Work) -> None:
            left = time_left.seconds(work.share)
            total = None if work.share is None else 1.0
            text = progress_text(work, left)
            bar.update(task, description=text, completed=work.share or 0.0, total=total)

        yield show


def _each_minute(time_left: TimeLeft, clock: Callable[[], float]) -> Callable[[Work], None]:
    last = clock()

    def tell(work: Work) -> None:
        nonlocal last
        left = time_left.seconds(work.share)
        if clock() - last >= _LINE_SECONDS:
            last = clock()
            logger.info("%s", progress_text(work, left))

    return tell
