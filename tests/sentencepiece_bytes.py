"""SentencePiece models, and what is wrong with them, written byte by byte."""

import struct
from collections.abc import Sequence


def _varint(value: int) -> bytes:
    digits = b""
    while value > 127:
        digits += bytes([value & 127 | 128])
        value >>= 7
    return digits + bytes([value])


def delimited(field: int, content: bytes) -> bytes:
    """A field of bytes, text or another message."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    """A field of a whole number."""
    return _varint(field << 3) + _varint(value)


def fixed32(field: int, value: float) -> bytes:
    """A field of a number in single precision."""
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def piece(text: bytes, *, score: float = -1.0, kind: int = 1) -> bytes:
    """A piece, of the type 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused or 6 byte."""
    written = number(3, kind) if kind != 1 else b""
    return delimited(1, delimited(1, text) + fixed32(2, score) + written)


PIECES = (
    piece(b"<unk>", kind=2), piece(b"<s>", kind=3), piece(b"</s>", kind=3), piece("▁a".encode()),
)  # fmt: skip
MODEL = b"".join(PIECES)


def charsmap(units: Sequence[int], *, texts: bytes = b"x\0", length: int | None = None) -> bytes:
    """A normalizer's table of these units and texts."""
    table = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(table) if length is None else length) + table + texts


def trie(byte: int, *, text_at: int) -> list[int]:
    """Units that lead from one byte to the text at some place."""
    units = [0] * 512
    units[0] = 1 << 10  # steps go to 1 ^ byte
    child = 1 ^ byte
    units[child] = byte | 1 << 8 | 256 << 10  # has a value, which stands at child ^ 256
    units[child ^ 256] = 1 << 31 | text_at
    return units
