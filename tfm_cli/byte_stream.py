"""Byte streams: whether they pause, how much was read, what the first bytes tell, a cut."""

import io
import os
import select
import stat
from typing import BinaryIO

UTF8_BOM = b"\xef\xbb\xbf"
# UTF-32 in the usual order of bytes begins like UTF-16, so it stands first.
OTHER_BOMS = {b"\xff\xfe\0\0": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_ENOUGH_BYTES = 256  # to tell text in another encoding from a line that is broken
_MOST_NUL = 0.01
_MOST_INVALID = 0.3  # Latin-1 of any European language has far less, a picture has more


def other_encoding(first: bytes) -> str:
    """The encoding that a byte order mark tells of, but for UTF-8; empty without one."""
    return next((name for mark, name in OTHER_BOMS.items() if first.startswith(mark)), "")


def why_binary(first: bytes) -> str:
    """Why a stream that begins with these bytes looks like no text; empty if it looks like one."""
    if first.count(b"\0") > _MOST_NUL * len(first):
        return "NUL bytes"
    if len(first) < _ENOUGH_BYTES:
        return ""
    # What cannot be decoded becomes a mark each; those that were there before do not count.
    marks = first.decode("utf-8", "replace").count("\ufffd") - first.count("\ufffd".encode())
    return "bytes that are no UTF-8" if marks > _MOST_INVALID * len(first) else ""


class Prepended(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, first: bytes, stream: BinaryIO) -> None:
        self._first = first
        self._then = stream

    def readable(self) -> bool:
        """Always."""
        return True

    def read(self, size: int = -1) -> bytes:
        """What comes next: the first bytes, then those of the stream."""
        if self._first:
            size = len(self._first) if size < 0 else size
            head, self._first = self._first[:size], self._first[size:]
            return head
        return self._then.read(size)


def pausing_descriptor(stream: BinaryIO) -> int | None:
    """The descriptor of a pipe, socket or terminal; None for what is always ready or has none."""
    try:
        descriptor = stream.fileno()
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        select.select([descriptor], [], [], 0)
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
    return descriptor


def share_read(stream: BinaryIO) -> float | None:
    """How much of a file was read, from 0 to 1; None for what has no size or cannot tell."""
    try:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return None
        return min(1.0, stream.tell() / status.st_size)
    except (OSError, ValueError, io.UnsupportedOperation):
        return None


def clipped(line: bytes, size: int) -> bytes:
    """At most `size` bytes of a longer line of UTF-8, up to where a character ends."""
    end = size
    while end > max(0, size - 3) and line[end] & 0xC0 == 0x80:  # a character has 4 bytes at most
        end -= 1
    # What continues further back is no UTF-8 anyway, and stays.
    return line[: size if line[end] & 0xC0 == 0x80 else end]
