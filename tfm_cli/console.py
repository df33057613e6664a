"""Log lines and progress on stderr, and text that is safe to print on a terminal."""

import contextlib
import errno
import io
import logging
import os
import re
import stat
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


# Text without control sequences for a terminal.

# C0 except tab and line feed, DEL, C1, bidirectional controls, and the surrogates by which Python
# represents the bytes of a file name that are not UTF-8.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_LINE_FEED = re.compile("\n(?!  )")


def visible(text: str) -> str:
    r"""Return a text with its control characters as `\u001b`, except tab and line feed."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def visible_message(text: str) -> str:
    r"""Return a message as `visible` does, with each line feed as `\u000a` unless indented.

    All lines of a message but the first are indented by two spaces. A line feed in a file name
    therefore cannot forge a log line.
    """
    return _LINE_FEED.sub(r"\\u000a", visible(text))


def one_line(text: str) -> str:
    """Return a name for a table or a line: as `visible`, without line feeds and tabs."""
    return visible(text).replace("\n", "\\u000a").replace("\t", "\\u0009")


def display_width(text: str) -> int:
    """Return the columns of a terminal that a text takes."""
    return sum(
        0 if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me")
        else 2 if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )  # fmt: skip


def shortened(text: str, width: int) -> str:
    """Return a text cut to at most this many columns of a terminal, with an ellipsis if cut."""
    if display_width(text) <= width:
        return text
    end, columns = 0, 0
    while (columns := columns + display_width(text[end])) < width:
        end += 1
    return text[:end].rstrip() + "…"


def wrapped(text: str, width: int) -> str:
    """Return a text with its lines wrapped between words; what follows in a line is indented.

    A word that is wider than a line, such as a path, stays whole.
    """
    import textwrap  # only for messages that are too wide

    lines: list[str] = []
    for line in text.split("\n"):
        columns = display_width(line)
        if columns <= width:
            lines.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
        lines += textwrap.wrap(
            line,
            width if columns == len(line) else max(2, width // 2),  # wide characters take two
            subsequent_indent=indent,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def terminal_width() -> int:
    """Return the columns of the terminal on standard error; 0 if it is none or does not tell."""
    if sys.stderr is None or not sys.stderr.isatty():
        return 0
    with contextlib.suppress(ValueError):
        if (columns := int(os.environ.get("COLUMNS", ""))) > 0:
            return columns
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(sys.stderr.fileno()).columns
    return 0


def wrapped_for_terminal(text: str) -> str:
    """Return a message as it is written to standard error: on a terminal, no word is broken."""
    width = terminal_width()
    return wrapped(text, width) if width > 0 else text


class _HangupSafeFile(io.FileIO):
    """A terminal that may disappear; output to it is then discarded."""

    def write(self, content: "ReadableBuffer", /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(content).nbytes


def hangup_safe_stream(stream: TextIO) -> TextIO:
    """Return a stream to the same terminal that raises no errors once the terminal is gone.

    When a connection is lost, the program must save its work instead of failing at a log line.
    """
    binary = io.BufferedWriter(_HangupSafeFile(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(binary, encoding="utf-8", errors=stream.errors, line_buffering=True)


QUIET = logging.WARNING
NORMAL = logging.INFO
SILENT = logging.ERROR  # for messages that another process logs as well


class _PlainFormatter(logging.Formatter):
    """A formatter that puts the level before every message except those of level INFO."""

    def format(self, record: logging.LogRecord) -> str:
        text = visible_message(super().format(record))
        if record.levelno != logging.INFO:
            text = f"{record.levelname.lower()}: {text}"
        return wrapped_for_terminal(text)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """A handler that writes to the current `sys.stderr`, which tests and displays replace."""

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
    """Write the package's log lines of `level` and above to stderr."""
    logger = logging.getLogger("tfm_cli")
    logger.handlers = [_StderrHandler()]
    logger.propagate = False
    logger.setLevel(level)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 pair`, `2 pairs`, `0 batches`."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def seconds_text(seconds: float) -> str:
    """Return a duration as `42s`, `3m05s` or `2h10m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


# Progress of long work: a bar on a terminal, a line a minute elsewhere.

_LINE_SECONDS = 60.0


class TimeLeft:
    """An estimate of the remaining time, from the share of the work done since the first call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, float] | None = None  # share and time

    def seconds(self, share: float | None) -> float | None:
        """Return the seconds until the work is done; None if unknown, as at the first call.

        Args:
            share: the share of the work that is done, 0 to 1; may be above 0 at the first call.
        """
        if share is None:
            return None
        now = self._clock()
        if self._start is None:
            self._start = share, now
        first, start = self._start
        if share <= first:
            return None
        return (now - start) * (1 - share) / (share - first)


def writes_to_pipe() -> bool:
    """Return True if standard output is a pipe, whose reader may print on the same terminal.

    A bar would be mixed with what `tfm translate | head` prints.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        mode = os.fstat(sys.stdout.fileno()).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    return False


Show = Callable[[str, float | None], None]
"""Takes the work done, in words, and its share of all work if known."""


@contextlib.contextmanager
def progress_display(
    title: str,
    logger: logging.Logger,
    *,
    in_lines: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Show]:
    """Show the progress of work if `logger` is enabled for INFO.

    Args:
        title: the name of the work.
        logger: for lines, a minute apart, where standard error is no terminal.
        in_lines: show lines on a terminal too.
        clock: the time in seconds.

    Yields:
        The function that takes each report.
    """
    if not logger.isEnabledFor(logging.INFO):
        yield lambda words, share: None
        return
    time_left = TimeLeft(clock)

    def described(words: str, share: float | None) -> str:
        left = time_left.seconds(share)
        part = "" if share is None else f" ({100 * share:.0f} %)"
        rest = "" if left is None else f", {seconds_text(left)} left"
        return f"{title}: {words}{part}{rest}"

    if in_lines or not sys.stderr.isatty():
        last = clock()

        def log(words: str, share: float | None) -> None:
            nonlocal last
            text = described(words, share)
            if clock() - last >= _LINE_SECONDS:
                last = clock()
                logger.info("%s", text)

        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    console = Console(stderr=True)

    class ElapsedColumn(TimeElapsedColumn):
        """The time so far, where the line has room for it and for a short bar."""

        def render(self, task: Any) -> Any:
            needed = display_width(task.description) + len(" ━━━━ 0:00:00")
            return super().render(task) if needed <= console.width else Text()

    columns: list[Any] = [TextColumn("{task.description}", markup=False)]
    columns += [BarColumn(bar_width=20), ElapsedColumn()]
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=None)

        def show(words: str, share: float | None) -> None:
            total = None if share is None else 1.0
            bar.update(
                task, description=described(words, share), completed=share or 0.0, total=total
            )

        yield show
