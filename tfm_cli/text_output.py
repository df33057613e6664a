"""The one writer of lines: as UTF-8, one stays one, a file appears when it is whole."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tfm_cli.errors import ResourceError
from tfm_cli.files import atomic_file
from tfm_cli.terminal import visible


def write_line(stream: BinaryIO, text: str) -> None:
    """Write one line; a line feed inside the text becomes a blank, so that it stays one.

    A terminal gets control characters as escapes; anything else gets the text as it is.
    """
    line = visible(text) if stream.isatty() else text
    stream.write(line.replace("\n", " ").encode("utf-8", errors="replace") + b"\n")


@contextlib.contextmanager
def open_output(path: str | Path) -> Iterator[BinaryIO]:
    """Standard output where the path is `-`, else a file that takes its place when it is whole."""
    if str(path) == "-":
        if sys.stdout is None:
            raise ResourceError("standard output: cannot be written: it is closed")
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:  # such as a full disk that the shell wrote to
            reason = error.strerror
            raise ResourceError(f"standard output: cannot be written: {reason}") from error
        return
    with atomic_file(path) as stream:
        yield stream
