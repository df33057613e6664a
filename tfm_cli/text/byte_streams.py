"""Byte streams: byte order marks, binary input, pipes, truncation, and gzip, xz and Zstandard."""

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

from tfm_cli.errors import ResourceError, install_extra

UTF8_BOM = b"\xef\xbb\xbf"
# The mark of UTF-32 (little endian) begins with that of UTF-16, so it is tried first.
OTHER_BOMS = {b"\xff\xfe\0\0": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_MIN_SAMPLE_BYTES = 256  # with fewer, a single damaged line looks like another encoding
_MAX_NUL_SHARE = 0.01
_MAX_INVALID_SHARE = 0.3  # Latin-1 text in any European language has far less, an image has more

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
COMPRESSION_MAGICS = tuple(_COMPRESSIONS)
# Compressed bytes read from a Zstandard stream at a time. Four bytes may expand to 128 KiB, so this
# bounds the memory that a hostile file can claim.
_ZSTD_INPUT_BYTES = 1024


# Byte order marks, and streams that are not text.


def bom_encoding(first: bytes) -> str:
    """Return the encoding that a byte order mark indicates, except UTF-8; "" without a mark."""
    return next((name for mark, name in OTHER_BOMS.items() if first.startswith(mark)), "")


def binary_reason(first: bytes) -> str:
    """Return the reason why a stream that begins with these bytes is not text; "" if it may be."""
    if first.count(b"\0") > _MAX_NUL_SHARE * len(first):
        return "NUL bytes"
    if len(first) < _MIN_SAMPLE_BYTES:
        return ""
    # Each undecodable sequence becomes U+FFFD; those of the text itself are not counted.
    marks = first.decode("utf-8", "replace").count("\ufffd") - first.count("\ufffd".encode())
    return "bytes that are not UTF-8" if marks > _MAX_INVALID_SHARE * len(first) else ""


# Streams that are read in parts.


class Prepended(io.RawIOBase):
    """A stream with bytes put back that were read from it before."""

    def __init__(self, first: bytes, stream: BinaryIO) -> None:
        self._first = first
        self._stream = stream

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes: first those put back, then those of the stream."""
        if self._first:
            size = len(self._first) if size < 0 else size
            head, self._first = self._first[:size], self._first[size:]
            return head
        return self._stream.read(size)


def pausing_descriptor(stream: BinaryIO) -> int | None:
    """Return the file descriptor of a pipe, socket or terminal; None if reading never blocks."""
    try:
        descriptor = stream.fileno()
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        select.select([descriptor], [], [], 0)
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
    return descriptor


def fraction_read(stream: BinaryIO) -> float | None:
    """Return the fraction of a file that was read, from 0 to 1; None if its size is unknown."""
    try:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return None
        return min(1.0, stream.tell() / status.st_size)
    except (OSError, ValueError, io.UnsupportedOperation):
        return None


def truncate_utf8(line: bytes, size: int) -> bytes:
    """Return at most `size` bytes of a longer line, ending at a character boundary.

    A line that is not UTF-8 around that place is cut at exactly `size` bytes.
    """
    end = size
    while end > max(0, size - 3) and line[end] & 0xC0 == 0x80:  # a character has at most 4 bytes
        end -= 1
    return line[: size if line[end] & 0xC0 == 0x80 else end]


# Decompression.


class DamagedError(Exception):
    """Compressed data that is damaged or truncated."""


def compression_of(first: bytes) -> str:
    """Return `gzip`, `xz` or `zstd`, by the first bytes of a stream; "" for anything else."""
    return next((kind for magic, kind in _COMPRESSIONS.items() if first.startswith(magic)), "")


def decompressed(kind: str, first: bytes, stream: BinaryIO, *, name: str) -> BinaryIO:
    """Return the decompressed stream; concatenated members are read as one.

    Args:
        kind: as `compression_of` returns it.
        first: bytes that were already read from the stream.
        stream: the rest of it.
        name: name of the stream in messages.

    Raises:
        ResourceError: the package for Zstandard is not installed.
    """
    raw: Any = Prepended(first, stream)  # has every method that the decoders call
    opened: Any
    if kind == "gzip":
        opened = gzip.GzipFile(fileobj=raw)
    elif kind == "xz":
        opened = lzma.LZMAFile(raw)  # noqa: SIM115 - closed with its stream
    else:
        opened = _Zstandard(raw, name)
    return _Checked(opened)  # type: ignore[return-value] # callers only use `read1`


class _Checked:
    """A stream that converts every decoder error to DamagedError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read1(self, size: int) -> bytes:
        try:
            chunk: bytes = self._stream.read1(size)
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise DamagedError from error
        return chunk


class _Zstandard:
    """A reader of concatenated Zstandard frames; a truncated frame is damage, not the end."""

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
    """Return a factory of decompressors of one frame each, and their error for damaged data."""
    with contextlib.suppress(ImportError):  # in the standard library since Python 3.14
        standard: Any = importlib.import_module("compression.zstd")
        return standard.ZstdDecompressor, standard.ZstdError
    try:
        package: Any = importlib.import_module("zstandard")
    except ImportError as error:
        raise ResourceError(
            f"{name}: is compressed with Zstandard, and the package `zstandard` is not installed",
            hint=f"{install_extra('zst')}, or compress the file with gzip",
        ) from error
    return package.ZstdDecompressor().decompressobj, package.ZstdError
