"""The one writer of lines: as UTF-8, one stays one, a file appears when it is whole."""

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tfm_cli.console import visible
from tfm_cli.errors import ResourceError
from tfm_cli.files.atomic import atomic_file, is_output_failure


def write_lines(stream: BinaryIO, texts: Iterable[str]) -> None:
    """Write each text as a line; a line feed inside of one becomes a blank, so that it stays one.

    A terminal gets control characters as escapes; anything else gets the text as it is.
    """
    is_terminal = stream.isatty()
    for text in texts:
        line = visible(text) if is_terminal else text
        stream.write(line.replace("\n", " ").encode("utf-8", errors="replace") + b"\n")


def write_line(stream: BinaryIO, text: str) -> None:
    """Write one line, as `write_lines` does."""
    write_lines(stream, (text,))


@contextlib.contextmanager
def open_output(path: str | Path) -> Iterator[BinaryIO]:
    """Standard output where the path is `-`, else a file that takes its place when it is whole."""
    if str(path) == "-":
        if sys.stdout is None:
            raise ResourceError("standard output: cannot be written: it is closed")
        try:
            with _buffered(sys.stdout.buffer) as stream:
                yield stream
                stream.flush()
        except OSError as error:  # such as a full disk that the shell wrote to
            if not is_output_failure(error):
                raise
            reason = error.strerror
            raise ResourceError(f"standard output: cannot be written: {reason}") from error
        return
    with atomic_file(path) as stream:
        yield stream


@contextlib.contextmanager
def _buffered(stream: BinaryIO) -> Iterator[BinaryIO]:
    """The stream, with a buffer where PYTHONUNBUFFERED took it away.

    Without one, each line is a call of the system, and one that writes a part of it is no error.
    """
    if not isinstance(stream, io.RawIOBase):
        yield stream
        return
    buffered = io.BufferedWriter(stream)
    try:
        yield buffered
    finally:
        with contextlib.suppress(OSError):  # what could not be written was told
            buffered.detach()
