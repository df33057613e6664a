"""Byte streams: whether they pause, how much of them was read, a first part put back, a cut."""

import io
import os
import select
import stat
from typing import BinaryIO


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
