"""Text as lines, whatever the locale: only a line feed ends one, and line i stays line i.

Files are read as bytes, compression is told by the first of them, and a line is UTF-8.
"""

import contextlib
import io
import select
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, Self, TypeVar

from tfm_cli.errors import DataError
from tfm_cli.text.byte_streams import (
    MAGIC,
    OTHER_BOMS,
    UTF8_BOM,
    DamagedError,
    clipped,
    decompressed,
    kind_of,
    other_encoding,
    pausing_descriptor,
    share_read,
    why_binary,
)
from tfm_cli.text.repairs import Repairs

Invalid = Literal["refuse", "replace"]
MAX_LINE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16
_PAUSE_SECONDS = 0.02
_WINDOW_SECONDS = 0.5  # a pipe that never pauses but is slow is answered this often
_WINDOW_CHARACTERS = 1 << 23
_SIGNATURES = (*MAGIC, UTF8_BOM, *OTHER_BOMS)


# Of a text that is held as a whole, such as that of a validation.
MOST_HELD_LINES = 1_000_000
MOST_HELD_CHARACTERS = 1 << 30

TextT = TypeVar("TextT", str, tuple[str, str])


class LineReader:
    """Lines of a byte stream as text, without their line feed; a class because it counts.

    Only LF ends a line; U+2028, U+0085, a lone CR and their like are characters. A last line
    without LF is a line. A byte order mark at the start is dropped. Where the first line ends in
    CRLF, a CR before any LF belongs to the line end; lines that end in the other way are counted.
    NUL is removed and counted.

    Args:
        stream: binary, at its start.
        name: what messages call it.
        invalid: what becomes of bytes that are no UTF-8: `refuse` raises a DataError with file,
            line and byte; `replace` puts U+FFFD in their place and counts the line. `refuse` also
            refuses what looks binary by what is read first.
        max_line_bytes: a longer line keeps its first bytes, up to a whole character, and is
            counted, so that memory stays bounded on any input.
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
        self.has_crlf = False  # the first line ends in CRLF, so a CR before any LF belongs to it
        self.has_bom = False  # a byte order mark of UTF-8, which is dropped
        self.looks_binary = ""  # why it does
        self.lacks_last_feed = False
        self.first_invalid = ""  # the first byte that is no UTF-8, and where in its line it stands
        self._stream = stream
        self._given = stream
        self._invalid = invalid
        self._max_line_bytes = max_line_bytes
        self._ready: list[bytes] = []  # whole lines, last first
        self._rest = b""  # the beginning of a line whose end was not read yet
        self._overlong = False
        self.crlf: bool | None = None  # None before the end of the first line is seen
        self._packed = ""  # how it is compressed
        self._started = False
        self._ended = False
        self._watched: int | None = None  # file descriptor that tells when input pauses

    def __iter__(self) -> Iterator[str]:
        while self._has_next():
            yield self._text(self._ready.pop())

    def window(self, max_lines: int, *, wait: bool = True) -> list[str]:
        """Up to `max_lines` lines; fewer when the input ends or pauses; none at its end.

        Without `wait`, none as well where the input pauses.

        A person who types a line, or a slow pipe, is thus answered before the next line comes.
        Very long lines also make a window of fewer, so that its memory is bounded.
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
        """Whole lines as they stand in the file, of at least `size` bytes unless it ends.

        Of a line that is too long there is enough to tell that it is. `within` reads and counts
        them; iteration would miss them.
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
        """The reader of a block that another reader gave.

        Args:
            block: whole lines.
            name: what messages call the file.
            num_lines: those before the block.
            crlf: whether the file's lines end in CRLF, as its first one tells.
            invalid: as of the class.
        """
        reader = cls(io.BytesIO(block), name, invalid=invalid)
        reader.num_lines, reader.crlf, reader._started = num_lines, crlf, True
        return reader

    def share(self) -> float | None:
        """How much of a file was read, from 0 to 1, compressed or not; None where none can tell."""
        return share_read(self._given)

    def notes(self) -> list[str]:
        """What was repaired while reading, a sentence for each kind, with the first such line."""
        return self.repairs.notes(self._max_line_bytes)

    def _has_next(self, since: float | None = None) -> bool:
        """Whether a line is ready; with `since`, only until the input pauses or is slow."""
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
            return self._stream.read1(_CHUNK_BYTES)  # type: ignore[attr-defined, no-any-return] # BinaryIO lacks it, what comes here has it
        except DamagedError as error:
            message = f"the {self._packed} data is damaged or cut off after line {self.num_lines}"
            hint = "fetch or compress the file again"
            raise DataError(f"{self.name}: {message}", hint=hint) from error
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror}") from error

    def _read_more(self) -> None:
        chunk = self._read_chunk() if self._started else self._start()
        if not chunk:
            self._ended = True
            self.crlf = False  # there is no LF after the last line
            if self._rest:
                self._ready = [self._rest]
                self._rest = b""
                self.lacks_last_feed = True
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
        # A byte more tells that the line is too long; one that is too long by a CR alone may
        # still be whole, and two tell that it is not.
        if len(self._rest) > self._max_line_bytes + 1:
            self._rest, self._overlong = self._rest[: self._max_line_bytes + 2], True

    def _start(self) -> bytes:
        self._started = True
        chunk = self._peek()
        self._packed = kind_of(chunk)
        if self._packed:
            self._stream = decompressed(self._packed, chunk, self._stream, name=self.name)
            chunk = self._peek()
        else:
            self._watched = pausing_descriptor(self._stream)
        if found := other_encoding(chunk):
            hint = f"convert it with `iconv -f {found} -t UTF-8`"
            raise DataError(f"{self.name}: is {found}, wanted UTF-8", hint=hint)
        self.looks_binary = why_binary(chunk)
        if self._invalid == "refuse" and self.looks_binary:
            told = f"looks binary ({self.looks_binary}), wanted UTF-8 text"
            hint = "give a text file; `iconv` converts other encodings"
            raise DataError(f"{self.name}: {told}", hint=hint)
        if chunk.startswith(UTF8_BOM):
            self.has_bom = True
            chunk = chunk[len(UTF8_BOM) :] or self._read_chunk()
        return chunk

    def _peek(self) -> bytes:
        """The first chunk, with enough bytes to tell what it begins: a pipe may give one by one."""
        chunk = self._read_chunk()
        while chunk and any(s.startswith(chunk) and s != chunk for s in _SIGNATURES):
            more = self._read_chunk()
            if not more:
                break
            chunk += more
        return chunk

    def _text(self, line: bytes) -> str:
        self.num_lines += 1
        if not line and self.crlf is False:  # there may be millions of them
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
            line = clipped(line, self._max_line_bytes)
        text = self._decoded(line)
        if "\0" in text:
            self.repairs.add("nul", self.num_lines)
            text = text.replace("\0", "")
        return text

    def _is_ended(self, line: bytes) -> bool:
        """Whether a line feed follows the last of these bytes."""
        return not self.lacks_last_feed and len(line) <= self._max_line_bytes + 1

    def _decoded(self, line: bytes) -> str:
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            if "invalid" not in self.repairs.first:
                self.first_invalid = f"byte {error.start + 1}: 0x{line[error.start]:02x}"
            if self._invalid == "refuse":
                message = f"{self.name}:{self.num_lines}: {self.first_invalid} is no UTF-8"
                hint = "convert the file to UTF-8 (`iconv`) or remove the line on both sides"
                raise DataError(message, hint=hint) from error
            self.repairs.add("invalid", self.num_lines)
            return line.decode("utf-8", errors="replace")


def is_typed(path: str | Path) -> bool:
    """Return True if a path is that of standard input, and a person types it at a terminal."""
    return str(path) == "-" and sys.stdin is not None and sys.stdin.isatty()


@contextlib.contextmanager
def open_lines(path: str | Path, *, invalid: Invalid = "refuse") -> Iterator[LineReader]:
    """A LineReader over a file, or over standard input where the path is `-`.

    Raises:
        DataError: there is no such file, or it cannot be read.
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
        lines: are counted while they are read, so that a small compressed file fills no memory.
        name: of the text, for messages.

    Raises:
        DataError: there are more than a million, or more than a gigabyte of them.
    """
    held: list[TextT] = []
    characters = 0
    for line in lines:
        held.append(line)
        characters += len(line) if isinstance(line, str) else sum(map(len, line))
        if len(held) > MOST_HELD_LINES or characters > MOST_HELD_CHARACTERS:
            found = f"{MOST_HELD_LINES:,} lines"
            if characters > MOST_HELD_CHARACTERS:
                found = f"{MOST_HELD_CHARACTERS:,} characters"
            raise DataError(
                f"{name}: has more than {found}, which is more than is held in memory at once",
                hint="give a part of it: a few thousand lines measure as well",
            )
    return held
