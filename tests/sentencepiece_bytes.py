"""SentencePiece models and defects of them, encoded byte by byte as Protocol Buffers."""

import struct
from collections.abc import Sequence


def _varint(value: int) -> bytes:
    digits = b""
    while value > 127:
        digits += bytes([value & 127 | 128])
        value >>= 7
    return digits + bytes([value])


def delimited(field: int, content: bytes) -> bytes:
    """Return a length-delimited field: bytes, text or another message."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    """Return a field of an integer."""
    return _varint(field << 3) + _varint(value)


def fixed32(field: int, value: float) -> bytes:
    """Return a field of a number in single precision."""
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def piece(text: bytes, *, score: float = -1.0, kind: int = 1) -> bytes:
    """Return a piece of type 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused or 6 byte."""
    written = number(3, kind) if kind != 1 else b""
    return delimited(1, delimited(1, text) + fixed32(2, score) + written)


PIECES = (
    piece(b"<unk>", kind=2), piece(b"<s>", kind=3), piece(b"</s>", kind=3), piece("▁a".encode()),
)  # fmt: skip
MODEL = b"".join(PIECES)


def charsmap(units: Sequence[int], *, texts: bytes = b"x\0", length: int | None = None) -> bytes:
    """Return the table of a normalizer: a trie of these units, and the texts."""
    table = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(table) if length is None else length) + table + texts


def trie(byte: int, *, text_at: int) -> list[int]:
    """Return the units of a trie that maps one byte to the text at an offset."""
    units = [0] * 512
    units[0] = 1 << 10  # steps go to 1 ^ byte
    child = 1 ^ byte
    units[child] = byte | 1 << 8 | 256 << 10  # has a value, which is at child ^ 256
    units[child ^ 256] = 1 << 31 | text_at
    return units
