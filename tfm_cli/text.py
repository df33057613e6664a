"""Text as lines, whatever the locale: only a line feed ends one, and line i stays line i.

Files are read as bytes, gzip is told by its first bytes, and a line is UTF-8. What is written is
written aside, flushed to the disk and renamed, so that a reader sees the old file or the new one.
"""

import contextlib
import gzip
import io
import os
import select
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from tfm_cli.errors import DataError, ResourceError

MAX_LINE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16
_PAUSE_SECONDS = 0.02
_UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class LineReader:
    """Lines of a byte stream as text, without their line feed; a class because it counts.

    Only LF ends a line; U+2028, U+0085, a lone CR and their like are characters. A last line
    without LF is a line. A byte order mark at the start is dropped. Where the first line ends in
    CRLF, a CR before any LF belongs to the line end. NUL is removed and counted.

    Args:
        stream: binary, at its start.
        name: what messages call it.
        invalid: what becomes of bytes that are no UTF-8: `refuse` raises a DataError with file,
            line and byte; `replace` puts U+FFFD in their place and counts the line.
        max_line_bytes: a longer line keeps its first bytes, up to a whole character, and is
            counted, so that memory stays bounded on any input.
    """

    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        *,
        invalid: Literal["refuse", "replace"] = "refuse",
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        self.name = name
        self.num_lines = 0
        self.num_invalid = 0
        self.num_clipped = 0
        self.num_nul = 0
        self._first: dict[str, int] = {}
        self._stream = stream
        self._invalid = invalid
        self._max_line_bytes = max_line_bytes
        self._ready: list[bytes] = []  # whole lines, last first
        self._rest = b""  # the beginning of a line whose end was not read yet
        self._overlong = False
        self._crlf = False
        self._started = False
        self._ended = False
        self._watched: int | None = None  # file descriptor that tells when input pauses

    def __iter__(self) -> Iterator[str]:
        while (line := self._next()) is not None:
            yield line

    def window(self, max_lines: int) -> list[str]:
        """Up to `max_lines` lines; fewer when the input ends or pauses; none at its end only.

        A person who types a line, or a slow pipe, is thus answered before the next line comes.
        """
        lines: list[str] = []
        while len(lines) < max_lines and (not lines or self._ready or not self._pauses()):
            line = self._next()
            if line is None:
                break
            lines.append(line)
        return lines

    def notes(self) -> list[str]:
        """What was mended while reading, a sentence for each kind, with the first such line."""
        told = {
            "invalid": f"lines with invalid UTF-8, replaced by U+FFFD: {self.num_invalid}",
            "clipped": f"lines cut at {self._max_line_bytes} bytes: {self.num_clipped}",
            "nul": f"lines with NUL characters, removed: {self.num_nul}",
        }
        return [f"{told[kind]} (first: line {line})" for kind, line in self._first.items()]

    def _pauses(self) -> bool:
        if self._watched is None or self._ended:
            return False
        return not select.select([self._watched], [], [], _PAUSE_SECONDS)[0]

    def _next(self) -> str | None:
        while not self._ready:
            if self._ended:
                return None
            self._read_more()
        return self._text(self._ready.pop())

    def _read_chunk(self) -> bytes:
        try:
            return self._stream.read1(_CHUNK_BYTES)  # type: ignore[attr-defined, no-any-return]
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            message = (
                f"{self.name}: the gzip data is damaged or cut off after line {self.num_lines}"
            )
            raise DataError(message, hint="fetch or compress the file again") from error
        except IsADirectoryError as error:
            raise DataError(f"{self.name}: is a directory, wanted a file") from error

    def _read_more(self) -> None:
        chunk = self._read_chunk() if self._started else self._start()
        if not chunk:
            self._ended = True
            if self._rest:
                self._ready = [self._rest]
                self._rest = b""
            return
        *whole, rest = chunk.split(b"\n")
        if whole:
            whole[0] = self._rest if self._overlong else self._rest + whole[0]
            self._rest, self._overlong = rest, False
        elif not self._overlong:
            self._rest += rest
        if len(self._rest) > self._max_line_bytes:
            self._rest, self._overlong = self._rest[: self._max_line_bytes + 1], True
        whole.reverse()
        self._ready = whole

    def _start(self) -> bytes:
        self._started = True
        chunk = self._read_chunk()
        if chunk[:1] == b"\x1f":  # a gzip header may come in two pieces through a pipe
            chunk += self._read_chunk() if len(chunk) < 2 else b""
        if chunk[:2] == b"\x1f\x8b":
            self._stream = gzip.GzipFile(fileobj=_Prepended(chunk, self._stream))  # type: ignore[assignment]
            chunk = self._read_chunk()
        else:
            self._watched = _pausing_descriptor(self._stream)
        if chunk[:2] in _OTHER_BOMS:
            message = f"{self.name}: is {_OTHER_BOMS[chunk[:2]]}, wanted UTF-8"
            raise DataError(message, hint="convert it with `iconv -f UTF-16 -t UTF-8`")
        if self._invalid == "refuse" and chunk.count(b"\0") * 100 > len(chunk):
            raise DataError(f"{self.name}: looks binary (NUL bytes), wanted UTF-8 text")
        if chunk.startswith(_UTF8_BOM):
            chunk = chunk[len(_UTF8_BOM) :] or self._read_chunk()
        first_line, line_feed, _ = chunk.partition(b"\n")
        self._crlf = bool(line_feed) and first_line.endswith(b"\r")
        return chunk

    def _text(self, line: bytes) -> str:
        self.num_lines += 1
        if self._crlf and line.endswith(b"\r"):
            line = line[:-1]
        if b"\0" in line:
            self.num_nul += 1
            self._first.setdefault("nul", self.num_lines)
            line = line.replace(b"\0", b"")
        if len(line) > self._max_line_bytes:
            self.num_clipped += 1
            self._first.setdefault("clipped", self.num_lines)
            end = self._max_line_bytes
            while end and line[end] & 0xC0 == 0x80:  # back to where a character starts
                end -= 1
            line = line[:end]
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            if self._invalid == "refuse":
                found = f"0x{line[error.start]:02x}"
                message = (
                    f"{self.name}:{self.num_lines}: byte {error.start + 1}: {found} is no UTF-8"
                )
                hint = "convert the file to UTF-8 (`iconv`) or remove the line on both sides"
                raise DataError(message, hint=hint) from error
            self.num_invalid += 1
            self._first.setdefault("invalid", self.num_lines)
            return line.decode("utf-8", errors="replace")


class _Prepended(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, first: bytes, stream: BinaryIO) -> None:
        self._first = first
        self._then = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._first:
            size = len(self._first) if size < 0 else size
            head, self._first = self._first[:size], self._first[size:]
            return head
        return self._then.read(size)


def _pausing_descriptor(stream: BinaryIO) -> int | None:
    """The descriptor of a pipe, socket or terminal; None for what is always ready or has none."""
    try:
        descriptor = stream.fileno()
        select.select([descriptor], [], [], 0)
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
    return descriptor


@contextlib.contextmanager
def open_lines(
    path: str | Path, *, invalid: Literal["refuse", "replace"] = "refuse"
) -> Iterator[LineReader]:
    """A LineReader over a file, or over standard input where the path is `-`.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if str(path) == "-":
        yield LineReader(sys.stdin.buffer, "standard input", invalid=invalid)
        return
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(path).open("rb"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        yield LineReader(stream, str(path), invalid=invalid)


def write_line(stream: BinaryIO, text: str) -> None:
    """Write one line; a line feed inside the text becomes a blank, so that it stays one."""
    stream.write(text.replace("\n", " ").encode("utf-8", errors="replace") + b"\n")


@contextlib.contextmanager
def open_output(path: str | Path) -> Iterator[BinaryIO]:
    """Standard output where the path is `-`, else a file that takes its place when it is whole."""
    if str(path) == "-":
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


def check_writable(path: str | Path) -> None:
    """Raise a ResourceError if a file or folder could not be made at `path`; before the long work.

    Missing parents are fine as long as the nearest one that exists can be written to.
    """
    if str(path) == "-":
        return
    place = Path(path)
    if place.is_file() and not os.access(place, os.W_OK):
        raise ResourceError(f"{path}: cannot be written: the file is read-only")
    parent = place if place.is_dir() else place.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ResourceError(f"{path}: cannot be written: `{parent}` is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError(f"{path}: cannot be written: no permission to write in `{parent}`")


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when it was written and synced whole.

    Raises:
        ResourceError: it could not be written; whatever stood under the name is untouched.
    """
    place = Path(path)
    if place.is_dir():
        raise ResourceError(f"{path}: cannot be written: it is a directory")
    aside = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(place)
        _sync_directory(place.parent)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when all in it was written and synced.

    Raises:
        ResourceError: it could not be written; a folder that stood under the name is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        for file in aside.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        _sync_directory(aside)
        remove_directory(path)
        aside.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Remove a folder; it loses its name first, so that half of it never looks like a whole one."""
    if path.exists():
        trash = path.with_name(f".{path.name}.{os.getpid()}.trash")
        path.replace(trash)
        shutil.rmtree(trash, ignore_errors=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
