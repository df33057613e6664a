import importlib
import io
import lzma
import random
import sys
import tracemalloc
from typing import Any

import pytest

from tfm_cli.errors import DataError, ResourceError
from tfm_cli.text.reader import LineReader

try:
    zstandard: Any = importlib.import_module("zstandard")
except ImportError:  # the extra `zst` is not installed
    zstandard = None

LINES = [f"line {number} é" for number in range(3000)]
RAW = "".join(f"{line}\n" for line in LINES).encode()

needs_zstandard = pytest.mark.skipif(zstandard is None, reason="needs the package zstandard")


def lines_of(raw: bytes) -> list[str]:
    return list(LineReader(io.BytesIO(raw), "corpus"))


def noise(size: int) -> bytes:
    """Return text that hardly compresses."""
    return random.Random(1).randbytes(size // 2).hex().encode() + b"\n"


def test_xz_is_recognized_by_its_bytes() -> None:
    assert lines_of(lzma.compress(RAW)) == LINES
    assert lines_of(lzma.compress(RAW) + lzma.compress(b"more")) == [*LINES, "more"]
    assert lines_of(lzma.compress(b"")) == []


@pytest.mark.parametrize("kept", [9, 40, -1, -30])
def test_xz_that_is_cut_off_is_an_error(kept: int) -> None:
    with pytest.raises(DataError, match="corpus: the xz data is damaged or cut off after line"):
        lines_of(lzma.compress(noise(4000))[:kept])


def test_xz_that_is_damaged_is_an_error() -> None:
    packed = bytearray(lzma.compress(noise(4000)))
    packed[100] ^= 0xFF

    with pytest.raises(DataError, match="the xz data is damaged"):
        lines_of(bytes(packed))


@needs_zstandard
def test_zstandard_is_recognized_by_its_bytes() -> None:
    packed = zstandard.compress(RAW)

    assert lines_of(packed) == LINES
    assert lines_of(packed + zstandard.compress(b"") + zstandard.compress(b"more")) == [
        *LINES,
        "more",
    ]
    assert lines_of(zstandard.compress(b"\xef\xbb\xbfone\r\ntwo\r\n")) == ["one", "two"]


@needs_zstandard
def test_zstandard_of_unknown_size_is_read() -> None:
    packer = zstandard.ZstdCompressor().compressobj()

    assert lines_of(packer.compress(RAW) + packer.flush()) == LINES


@needs_zstandard
@pytest.mark.parametrize("kept", [5, 40, 1500, -1])
def test_zstandard_that_is_cut_off_is_an_error(kept: int) -> None:
    whole = zstandard.compress(RAW)
    with pytest.raises(DataError, match="corpus: the zstd data is damaged or cut off after line"):
        lines_of(zstandard.compress(noise(4000))[:kept])
    with pytest.raises(DataError, match="the zstd data is damaged or cut off after line 3000"):
        lines_of(whole + whole[:-1])


@needs_zstandard
def test_zstandard_that_is_damaged_is_an_error() -> None:
    for damaged in (zstandard.compress(RAW) + b"junk", b"\x28\xb5\x2f\xfd" + b"\xff" * 50):
        with pytest.raises(DataError, match="the zstd data is damaged"):
            lines_of(damaged)


@needs_zstandard
def test_memory_is_bounded_for_any_expansion_of_zstandard() -> None:
    bomb = zstandard.compress(b"x" * (200 << 20), 1)
    assert len(bomb) < 1 << 16
    reader = LineReader(io.BytesIO(bomb), "corpus")

    tracemalloc.start()
    try:
        (line,) = reader
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(line) == 1 << 20
    assert peak < 120 << 20


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ResourceError, match="corpus: is compressed with Zstandard, and") as caught:
        lines_of(b"\x28\xb5\x2f\xfd1234567890")

    assert "zstandard" in str(caught.value.hint)
