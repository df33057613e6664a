"""How far long work is: a bar on a terminal, a line a minute elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tfm_cli.log import seconds_text

_LINE_SECONDS = 60.0


class TimeLeft:
    """Tells the time left from the share of the work that was done; a class because it began."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: tuple[float, float] | None = None  # share and time

    def seconds(self, share: float | None) -> float | None:
        """Seconds until all is done; None where they cannot be told, as at the first call.

        The first call says where the work began, which may have been in the middle.
        """
        if share is None:
            return None
        now = self._clock()
        if self._began is None:
            self._began = share, now
        first, began = self._began
        if share <= first:
            return None
        return (now - began) * (1 - share) / (share - first)


Show = Callable[[str, float | None], None]
"""Takes what was done, in words, and its share of the work if that can be told."""


@contextlib.contextmanager
def shown_progress(
    what: str, logger: logging.Logger, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Show]:
    """Shows how far the work called `what` is, where log lines of `logger` are shown."""
    if not logger.isEnabledFor(logging.INFO):
        yield lambda words, share: None
        return
    time_left = TimeLeft(clock)

    def told(words: str, share: float | None) -> str:
        left = time_left.seconds(share)
        part = "" if share is None else f" ({100 * share:.0f} %)"
        rest = "" if left is None else f", {seconds_text(left)} left"
        return f"{what}: {words}{part}{rest}"

    if not sys.stderr.isatty():
        last = clock()

        def tell(words: str, share: float | None) -> None:
            nonlocal last
            text = told(words, share)
            if clock() - last >= _LINE_SECONDS:
                last = clock()
                logger.info("%s", text)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns: list[Any] = [TextColumn("{task.description}", markup=False)]
    columns += [BarColumn(bar_width=20), TimeElapsedColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(what, total=None)

        def show(words: str, share: float | None) -> None:
            total = None if share is None else 1.0
            bar.update(task, description=told(words, share), completed=share or 0.0, total=total)

        yield show
