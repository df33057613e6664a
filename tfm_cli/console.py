"""Logging to stderr: plain lines that a person and grep can read."""

import contextlib
import errno
import io
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


# What a terminal is shown: text that cannot steer it.

# C0 but for tab and line feed, DEL, C1, the characters that turn the direction of writing, and
# what stands for bytes of a file name that are no UTF-8.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_LINE_FEED = re.compile("\n(?!  )")


def visible(text: str) -> str:
    r"""The text with each control character, but tab and line feed, spelled as in `\u001b`."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def told(text: str) -> str:
    r"""A message as it is shown: as `visible`, and a line feed is spelled unless two blanks follow.

    All lines of a message but the first are indented. A name with a line feed in it, which no
    message indents, thus cannot begin a line that looks like ours.
    """
    return _LINE_FEED.sub(r"\\u000a", visible(text))


def one_line(text: str) -> str:
    """A name as it stands in a table or beside a score: as `visible`, without line feeds."""
    return visible(text).replace("\n", "\\u000a").replace("\t", "\\u0009")


class _LastingFile(io.FileIO):
    """A terminal that may be gone one day; what is written to it then is lost."""

    def write(self, content: "ReadableBuffer", /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(content).nbytes


def lasting_terminal(stream: TextIO) -> TextIO:
    """Return a stream to the same terminal that has no errors once the terminal is gone.

    When a connection is dropped, a program should save its work and not fail at telling so.
    """
    binary = io.BufferedWriter(_LastingFile(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(binary, encoding="utf-8", errors=stream.errors, line_buffering=True)


QUIET = logging.WARNING
NORMAL = logging.INFO
SILENT = logging.ERROR  # for what another process says as well


class _PlainFormatter(logging.Formatter):
    """Facts as they are; warnings and errors with their level in front."""

    def format(self, record: logging.LogRecord) -> str:
        text = told(super().format(record))
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is now, since tests and progress displays replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_PlainFormatter("%(message)s"))

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("this handler always writes to sys.stderr")


def setup(level: int = NORMAL) -> None:
    """Send the package's log lines from `level` upwards to stderr."""
    logger = logging.getLogger("tfm_cli")
    logger.handlers = [_StderrHandler()]
    logger.propagate = False
    logger.setLevel(level)


def counted(count: int, what: str, others: str = "") -> str:
    """A number of things as a person writes it: `1 pair`, `2 pairs`, `0 batches`."""
    return f"{count} {what}" if count == 1 else f"{count} {others or what + 's'}"


def seconds_text(seconds: float) -> str:
    """A duration as a person writes it: `42s`, `3m05s`, `2h10m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


# How far long work is: a bar on a terminal, a line a minute elsewhere.

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
