"""The reader of lines: UTF-8 in any locale, only a line feed ends a line, and no line is lost.

A compressed file is recognized by its first bytes and decompressed.
"""

import contextlib
import io
import select
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Self, TypeVar

from tfm_cli.errors import DataError
from tfm_cli.text.byte_streams import (
    COMPRESSION_MAGICS,
    OTHER_BOMS,
    UTF8_BOM,
    DamagedError,
    binary_reason,
    bom_encoding,
    compression_of,
    decompressed,
    fraction_read,
    pausing_descriptor,
    truncate_utf8,
)

Invalid = Literal["refuse", "replace"]
MAX_LINE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16
_PAUSE_SECONDS = 0.02
_WINDOW_SECONDS = 0.5  # longest time that a window waits for a slow pipe that never pauses
_WINDOW_CHARACTERS = 1 << 23
_SIGNATURES = (*COMPRESSION_MAGICS, UTF8_BOM, *OTHER_BOMS)

# Limits of a text that is held in memory as a whole, such as a validation set.
MAX_HELD_LINES = 1_000_000
MAX_HELD_CHARACTERS = 1 << 30

TextT = TypeVar("TextT", str, tuple[str, str])


@dataclass(slots=True)
class Repairs:
    """Counts of repaired lines by kind, with the first line of each kind.

    The kinds are `invalid` (not UTF-8), `left_out` (not UTF-8, dropped with its pair), `clipped`
    (too long), `nul`, `columns` (more than two), `repeated` (a name in a JSON object), `bare` (ends
    in LF alone although the first line ends in CRLF) and `crlf` (the reverse).
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)  # line number of the first of each kind

    def add(self, kind: str, line: int, count: int = 1) -> None:
        """Count `count` lines, the first of which is number `line`."""
        self.counts[kind] += count
        self.first.setdefault(kind, line)

    def count_as(self, kind: str, other: str) -> None:
        """Rename a kind of lines to another kind, of which there must be none."""
        self.counts[other], self.first[other] = self.counts.pop(kind), self.first.pop(kind)

    def merge(self, later: "Repairs") -> None:
        """Add the counts of a later part of the same file."""
        self.counts += later.counts
        for kind, line in later.first.items():
            self.first.setdefault(kind, line)

    def notes(self, max_line_bytes: int) -> list[str]:
        """Return a sentence for each kind, with the count and the number of the first line."""
        sentences = {
            "invalid": "lines with invalid UTF-8, replaced by U+FFFD",
            "left_out": "lines with invalid UTF-8, left out together with their pair",
            "clipped": f"lines cut at {max_line_bytes} bytes",
            "nul": "lines with NUL characters, removed",
            "columns": "lines with more than two columns, of which the first two count",
            "repeated": "objects with a name more than once, of which the last value counts",
            "bare": "lines that end in LF, while the first one ends in CRLF",
            "crlf": "lines that end in CRLF, while the first one ends in LF; their CR is kept",
        }
        return [
            f"{sentences[kind]}: {self.counts[kind]} (first: line {line})"
            for kind, line in self.first.items()
        ]


class LineReader:
    """An iterator over the lines of a byte stream, as text without line feeds.

    Only LF ends a line; U+2028, U+0085, a lone CR and the like are ordinary characters. A last
    line without LF is a line. A byte order mark at the start is dropped. If the first line ends in
    CRLF, a CR before any LF belongs to the line end; lines with the other line end are counted in
    `repairs`. NUL is removed and counted.

    Args:
        stream: binary, at its start.
        name: name of the stream in messages.
        invalid: treatment of bytes that are not UTF-8: `refuse` raises a DataError with file, line
            and byte; `replace` substitutes U+FFFD and counts the line. `refuse` also refuses a
            stream whose first bytes look binary.
        max_line_bytes: a longer line is truncated at a character boundary and counted, so that
            memory is bounded on any input.
    """

    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        *,
        invalid: Invalid = "refuse",
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        self.name = name
        self.num_lines = 0
        self.repairs = Repairs()
        self.has_crlf = False  # the first line ends in CRLF
        self.has_bom = False  # a byte order mark of UTF-8 was dropped
        self.binary_reason = ""  # the reason why the stream looks binary; "" if it does not
        self.lacks_final_newline = False
        self.first_invalid = ""  # the first byte that is not UTF-8, and its place in the line
        self.crlf: bool | None = None  # as `has_crlf`; None before the first line end was read
        self._stream = stream
        self._raw_stream = stream
        self._invalid = invalid
        self._max_line_bytes = max_line_bytes
        self._ready: list[bytes] = []  # whole lines in reverse order
        self._rest = b""  # the beginning of a line whose end was not read yet
        self._overlong = False  # `_rest` is longer than a line may be, and its end was dropped
        self._compression = ""
        self._started = False
        self._ended = False
        self._watched: int | None = None  # file descriptor of input that may pause

    def __iter__(self) -> Iterator[str]:
        while self._has_next():
            yield self._text(self._ready.pop())

    def window(self, max_lines: int, *, wait: bool = True) -> list[str]:
        """Return up to `max_lines` lines; fewer if the input ends or pauses; none at its end.

        A line that is typed, or that comes from a slow pipe, is thus translated before the next one
        arrives. The number of characters in a window is limited too.

        Args:
            max_lines: at least 1.
            wait: wait for the first line; otherwise return no lines if the input pauses.
        """
        lines: list[str] = []
        characters = 0
        began = time.monotonic()
        while len(lines) < max_lines and characters < _WINDOW_CHARACTERS:
            if not self._ready and not self._has_next(since=None if wait and not lines else began):
                break
            lines.append(self._text(self._ready.pop()))
            characters += len(lines[-1])
        return lines

    def block(self, size: int) -> bytes:
        """Return whole lines as bytes, at least `size` bytes unless the input ends.

        The decompressed bytes are unchanged, except that a line longer than `max_line_bytes` is
        truncated to slightly more than that. Use `within` to read the lines of a block; iteration
        does not yield them again.
        """
        parts, held = [b""], 0
        while held < size and not self._ended:
            chunk = self._read_chunk() if self._started else self._start()
            if not chunk:
                self._ended = True
                parts.append(self._rest)
                self._rest = b""
                break
            end = chunk.rfind(b"\n") + 1
            if end:
                self.num_lines += chunk.count(b"\n")
                begin = chunk.index(b"\n") if self._overlong else 0
                parts += [self._rest, chunk[begin:end]]
                held += len(parts[-2]) + len(parts[-1])
                self._rest, self._overlong = chunk[end:], False
            elif not self._overlong:
                self._rest += chunk
            self._bound_rest()
        block = b"".join(parts)
        if self.crlf is None and block:
            self.crlf = block[: block.find(b"\n") + 1].endswith(b"\r\n")
        return block

    @classmethod
    def within(
        cls, block: bytes, name: str, *, num_lines: int, crlf: bool, invalid: Invalid = "refuse"
    ) -> Self:
        """Return a reader of a block that `block` returned.

        Args:
            block: whole lines.
            name: name of the file in messages.
            num_lines: lines of the file before the block.
            crlf: the first line of the file ends in CRLF.
            invalid: as for the class.
        """
        reader = cls(io.BytesIO(block), name, invalid=invalid)
        reader.num_lines, reader.crlf, reader._started = num_lines, crlf, True
        return reader

    def share(self) -> float | None:
        """Return the fraction of the file that was read; None if its size is unknown.

        It is between 0 and 1, and refers to the compressed size.
        """
        return fraction_read(self._raw_stream)

    def notes(self) -> list[str]:
        """Return a sentence for each kind of repair, with the number of the first such line."""
        return self.repairs.notes(self._max_line_bytes)

    def _has_next(self, since: float | None = None) -> bool:
        """Return True if a line is ready, after reading more of the input if necessary.

        Args:
            since: time at which the caller's window began; reading then ends as soon as the input
                pauses or the window has lasted too long. None waits without limit.
        """
        while not self._ready and not self._ended:
            if since is not None and self._pauses(since):
                return False
            self._read_more()
        return bool(self._ready)

    def _pauses(self, since: float) -> bool:
        if self._watched is None:
            return False
        if time.monotonic() - since > _WINDOW_SECONDS:
            return True
        return not select.select([self._watched], [], [], _PAUSE_SECONDS)[0]

    def _read_chunk(self) -> bytes:
        try:
            return self._stream.read1(_CHUNK_BYTES)  # type: ignore[attr-defined, no-any-return] # all streams here have it, but BinaryIO does not
        except DamagedError as error:
            message = f"the {self._compression} data is damaged or cut off after line"
            hint = "fetch or compress the file again"
            raise DataError(f"{self.name}: {message} {self.num_lines}", hint=hint) from error
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror}") from error

    def _read_more(self) -> None:
        chunk = self._read_chunk() if self._started else self._start()
        if not chunk:
            self._ended = True
            self.crlf = False  # the last line has no LF, so its CR belongs to the text
            if self._rest:
                self._ready = [self._rest]
                self._rest = b""
                self.lacks_final_newline = True
            return
        *whole, rest = chunk.split(b"\n")
        if whole:
            whole[0] = self._rest if self._overlong else self._rest + whole[0]
            self._rest, self._overlong = rest, False
        elif not self._overlong:
            self._rest += rest
        self._bound_rest()
        whole.reverse()
        self._ready = whole

    def _bound_rest(self) -> None:
        # A line that is too long by one byte may still fit if that byte is a CR. Two bytes too many
        # are enough to recognize an over-long line.
        if len(self._rest) > self._max_line_bytes + 1:
            self._rest, self._overlong = self._rest[: self._max_line_bytes + 2], True

    def _start(self) -> bytes:
        self._started = True
        chunk = self._peek()
        self._compression = compression_of(chunk)
        if self._compression:
            self._stream = decompressed(self._compression, chunk, self._stream, name=self.name)
            chunk = self._peek()
        else:
            self._watched = pausing_descriptor(self._stream)
        if encoding := bom_encoding(chunk):
            hint = f"convert it with `iconv -f {encoding} -t UTF-8`"
            raise DataError(f"{self.name}: is {encoding}, expected UTF-8", hint=hint)
        self.binary_reason = binary_reason(chunk)
        if self._invalid == "refuse" and self.binary_reason:
            message = f"{self.name}: looks binary ({self.binary_reason}), expected UTF-8 text"
            hint = "give a text file; `iconv` converts other encodings"
            raise DataError(message, hint=hint)
        if chunk.startswith(UTF8_BOM):
            self.has_bom = True
            chunk = chunk[len(UTF8_BOM) :] or self._read_chunk()
        return chunk

    def _peek(self) -> bytes:
        """Return the first chunk, long enough to recognize a signature even if a pipe is slow."""
        chunk = self._read_chunk()
        while chunk and any(s.startswith(chunk) and s != chunk for s in _SIGNATURES):
            more = self._read_chunk()
            if not more:
                break
            chunk += more
        return chunk

    def _text(self, line: bytes) -> str:
        self.num_lines += 1
        if not line and self.crlf is False:  # a fast path: there may be millions of blank lines
            return ""
        if self.crlf is None:
            self.crlf = self.has_crlf = line.endswith(b"\r")
        if self.crlf:
            if line.endswith(b"\r") and len(line) <= self._max_line_bytes + 1:
                line = line[:-1]
            elif len(line) <= self._max_line_bytes:
                self.repairs.add("bare", self.num_lines)
        elif line.endswith(b"\r") and self._is_ended(line):
            self.repairs.add("crlf", self.num_lines)
        if len(line) > self._max_line_bytes:
            self.repairs.add("clipped", self.num_lines)
            line = truncate_utf8(line, self._max_line_bytes)
        text = self._decoded(line)
        if "\0" in text:
            self.repairs.add("nul", self.num_lines)
            text = text.replace("\0", "")
        return text

    def _is_ended(self, line: bytes) -> bool:
        """Return True if a line feed follows the last of these bytes."""
        return not self.lacks_final_newline and len(line) <= self._max_line_bytes + 1

    def _decoded(self, line: bytes) -> str:
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            if "invalid" not in self.repairs.first:
                self.first_invalid = f"byte {error.start + 1}: 0x{line[error.start]:02x}"
            if self._invalid == "refuse":
                message = f"{self.name}:{self.num_lines}: {self.first_invalid} is not UTF-8"
                hint = "convert the file to UTF-8 (`iconv`) or remove the line on both sides"
                raise DataError(message, hint=hint) from error
            self.repairs.add("invalid", self.num_lines)
            return line.decode("utf-8", errors="replace")


def is_typed(path: str | Path) -> bool:
    """Return True if a path is that of standard input and standard input is a terminal."""
    return str(path) == "-" and sys.stdin is not None and sys.stdin.isatty()


@contextlib.contextmanager
def open_lines(path: str | Path, *, invalid: Invalid = "refuse") -> Iterator[LineReader]:
    """Yield a LineReader over a file, or over standard input if the path is `-`.

    Raises:
        DataError: the file does not exist or cannot be read.
    """
    if str(path) == "-":
        if sys.stdin is None:
            raise DataError("standard input: cannot be read: it is closed")
        yield LineReader(sys.stdin.buffer, "standard input", invalid=invalid)
        return
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(path).open("rb"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        yield LineReader(stream, str(path), invalid=invalid)


def held_in_memory(lines: Iterable[TextT], name: str) -> list[TextT]:
    """Return the lines, or pairs of lines, of a text that is held in memory as a whole.

    Args:
        lines: counted while they are read, so that a small compressed file cannot fill the memory.
        name: name of the text in messages.

    Raises:
        DataError: there are more than `MAX_HELD_LINES` lines or `MAX_HELD_CHARACTERS` characters.
    """
    held: list[TextT] = []
    characters = 0
    for line in lines:
        held.append(line)
        characters += len(line) if isinstance(line, str) else sum(map(len, line))
        if len(held) > MAX_HELD_LINES or characters > MAX_HELD_CHARACTERS:
            limit = f"{MAX_HELD_LINES:,} lines"
            if characters > MAX_HELD_CHARACTERS:
                limit = f"{MAX_HELD_CHARACTERS:,} characters"
            raise DataError(
                f"{name}: has more than {limit}, which is more than is held in memory at once",
                hint="give a part of it: a few thousand lines measure as well",
            )
    return held
