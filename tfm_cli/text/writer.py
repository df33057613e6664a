"""The writer of lines: UTF-8, one line per text, files replaced atomically."""

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
    """Write each text as one line; line feeds inside a text become blanks.

    On a terminal, control characters are written as escapes.
    """
    is_terminal = stream.isatty()
    for text in texts:
        line = visible(text) if is_terminal else text
        stream.write(line.replace("\n", " ").encode("utf-8", errors="replace") + b"\n")


@contextlib.contextmanager
def open_output(path: str | Path) -> Iterator[BinaryIO]:
    """Yield standard output if the path is `-`, else a file that appears when it is complete.

    Raises:
        ResourceError: the output cannot be written.
    """
    if str(path) == "-":
        if sys.stdout is None:
            raise ResourceError("standard output: cannot be written: it is closed")
        try:
            with _buffered(sys.stdout.buffer) as stream:
                yield stream
                stream.flush()
        except OSError as error:  # such as a full disk to which the shell redirected the output
            if not is_output_failure(error):
                raise
            reason = error.strerror
            raise ResourceError(f"standard output: cannot be written: {reason}") from error
        return
    with atomic_file(path) as stream:
        yield stream


@contextlib.contextmanager
def _buffered(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Yield the stream, with a buffer if PYTHONUNBUFFERED disabled it.

    Without a buffer each line is a system call, and an incomplete write is not reported.
    """
    if not isinstance(stream, io.RawIOBase):
        yield stream
        return
    buffered = io.BufferedWriter(stream)
    try:
        yield buffered
    finally:
        with contextlib.suppress(OSError):  # the error was raised before
            buffered.detach()
