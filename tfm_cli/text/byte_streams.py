"""Compressed streams, told by their first bytes: gzip, xz and Zstandard."""

import contextlib
import gzip
import importlib
import io
import lzma
import os
import select
import stat
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from tfm_cli.errors import ResourceError

# Byte streams: whether they pause, how much was read, what the first bytes tell, a cut.

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


_KINDS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MAGIC = tuple(_KINDS)
# What is read of a Zstandard stream at a time: four bytes may stand for 128 KiB, so this bounds
# the memory that a hostile file can ask for.
_ZSTD_INPUT_BYTES = 1024


class DamagedError(Exception):
    """The compressed data is damaged, or ends before its end."""


def kind_of(first: bytes) -> str:
    """`gzip`, `xz` or `zstd`, by the first bytes of a stream; empty for anything else."""
    return next((kind for magic, kind in _KINDS.items() if first.startswith(magic)), "")


def decompressed(kind: str, first: bytes, stream: BinaryIO, *, name: str) -> BinaryIO:
    """What a compressed stream holds; concatenated ones are one.

    Args:
        kind: as `kind_of` tells it.
        first: bytes that were read from the stream already.
        stream: the rest of it.
        name: what messages call it.

    Raises:
        ResourceError: the package for Zstandard is not installed.
    """
    raw: Any = Prepended(first, stream)  # which has what is asked of it
    opened: Any
    if kind == "gzip":
        opened = gzip.GzipFile(fileobj=raw)
    elif kind == "xz":
        opened = lzma.LZMAFile(raw)  # noqa: SIM115 - it lives as long as what reads from it
    else:
        opened = _Zstandard(raw, name)
    return _Checked(opened)  # type: ignore[return-value] # it reads like a BinaryIO


class _Checked:
    """Says of any kind of damage that it is damage."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read1(self, size: int) -> bytes:
        try:
            chunk: bytes = self._stream.read1(size)
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise DamagedError from error
        return chunk


class _Zstandard:
    """Frames of Zstandard one after the other; one that is cut off is damage, not an end."""

    def __init__(self, raw: io.RawIOBase, name: str) -> None:
        self._raw = raw
        self._new_frame, self._error = _zstandard(name)
        self._frame: Any = None

    def read1(self, size: int) -> bytes:
        parts, held = [], 0
        while held < size:
            packed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            packed = packed or self._raw.read(_ZSTD_INPUT_BYTES) or b""
            if not packed:
                if not held and self._frame is not None and not self._frame.eof:
                    raise EOFError
                break
            if self._frame is None or self._frame.eof:
                self._frame = self._new_frame()
            try:
                parts.append(self._frame.decompress(packed))
            except self._error as error:
                raise DamagedError from error
            held += len(parts[-1])
        return b"".join(parts)


def _zstandard(name: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes a decompressor of one frame, and the error that tells of damage."""
    with contextlib.suppress(ImportError):  # the standard library's, from Python 3.14 on
        standard: Any = importlib.import_module("compression.zstd")
        return standard.ZstdDecompressor, standard.ZstdError
    try:
        package: Any = importlib.import_module("zstandard")
    except ImportError as error:
        raise ResourceError(
            f"{name}: is compressed with Zstandard, and the package `zstandard` is not installed",
            hint="install it by `pip install 'tfm-cli[zst]'`, or compress the file with gzip",
        ) from error
    return package.ZstdDecompressor().decompressobj, package.ZstdError
