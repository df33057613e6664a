"""Compressed streams, told by their first bytes: gzip, xz and Zstandard."""

import contextlib
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from tfm_cli.byte_stream import Prepended
from tfm_cli.errors import ResourceError

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
