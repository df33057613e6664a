"""What `tfm translate` does with its streams: window after window, and how far it is."""

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from tfm_cli.text import LineReader, write_line
from tfm_cli.translation.input_lines import InputLine
from tfm_cli.translation.render import Form, rendered

if TYPE_CHECKING:
    from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)

_FIRST_WINDOW = 16  # lines; later windows are larger, up to --buffer-size


@dataclass(slots=True)
class Work:
    """What was translated; the time does not count the wait for input."""

    lines: int = 0
    pieces: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        return (
            f"{self.lines} line{'' if self.lines == 1 else 's'} in {self.seconds:.1f} s: "
            f"{self.lines / seconds:.1f} lines/s, {self.pieces / seconds:.0f} target pieces/s"
        )


def translate_stream(
    reader: LineReader,
    stream: BinaryIO,
    translator: "Translator",
    *,
    understand: Callable[[str, str], InputLine],
    form: Form,
    buffer_size: int,
    progress: Callable[[Work], None],
) -> Work:
    """Translate window by window; all that was read is written before more is waited for.

    Args:
        reader: the input.
        stream: where translations go.
        translator: what translates.
        understand: says what stands on a line, given the line and what messages call it.
        form: of the output.
        buffer_size: most lines of a window.
        progress: is told after each window what was done so far.
    """
    work, began = Work(), time.monotonic()
    windows = _Windows(reader, understand, buffer_size)
    with contextlib.closing(translator.translate_windows(windows)) as translated:
        for translations in translated:
            for line, translation in zip(windows.read.popleft(), translations, strict=True):
                for text in rendered(line, translation, work.lines, form):
                    write_line(stream, text)
                work.lines += 1
                work.pieces += translation.num_pieces
            stream.flush()
            work.seconds = time.monotonic() - began - windows.seconds_waited
            progress(work)
    return work


class _Windows:
    """The input window by window; a class because what was read waits for its translations."""

    def __init__(
        self, reader: LineReader, understand: Callable[[str, str], InputLine], buffer_size: int
    ) -> None:
        self.read: deque[list[InputLine]] = deque()  # oldest first
        self.seconds_waited = 0.0  # while there was nothing to translate
        self._reader = reader
        self._understand = understand
        self._buffer_size = buffer_size

    def __iter__(self) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
        """Sources and prefixes; none of either where the input pauses."""
        number, size = 1, min(_FIRST_WINDOW, self._buffer_size)
        while True:
            began, idle = time.monotonic(), not self.read
            window = self._reader.window(size, wait=idle)
            if idle:
                self.seconds_waited += time.monotonic() - began
            if window:
                lines = [
                    self._understand(text, f"{self._reader.name}:{at}")
                    for at, text in enumerate(window, number)
                ]
                self.read.append(lines)
                yield [line.source for line in lines], [line.target_prefix for line in lines]
                number += len(window)
                size = min(4 * size, self._buffer_size)
            elif idle:
                return
            else:
                yield [], []


@contextlib.contextmanager
def shown_progress(input_path: str, output_path: str) -> Iterator[Callable[[Work], None]]:
    """Shows how far the work is, where a terminal has no translations to show."""
    visible = sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
    typed = input_path == "-" and sys.stdin.isatty()
    if not visible or typed or (output_path == "-" and sys.stdout.isatty()):
        yield lambda work: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("translating")
        yield lambda work: bar.update(task, description=str(work))
