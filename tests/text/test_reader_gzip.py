import gzip
import io
import tracemalloc
from pathlib import Path

import pytest

from tfm_cli.errors import DataError
from tfm_cli.text.reader import LineReader, open_lines


def lines_of(raw: bytes) -> list[str]:
    return list(LineReader(io.BytesIO(raw), "corpus.gz"))


def test_gzip_is_recognized_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "packed.txt").write_bytes(gzip.compress(b"one\ntwo\n"))
    (tmp_path / "plain.gz").write_bytes(b"one\ntwo\n")

    for name in ("packed.txt", "plain.gz"):
        with open_lines(tmp_path / name) as reader:
            assert list(reader) == ["one", "two"]


def test_gzip_that_comes_byte_by_byte_is_read() -> None:
    class Bytewise(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return self.read(1)

    raw = gzip.compress(b"one\ntwo\n")

    assert list(LineReader(Bytewise(raw), "standard input")) == ["one", "two"]


def test_concatenated_members_are_one_text() -> None:
    raw = gzip.compress(b"one\ntw") + gzip.compress(b"") + gzip.compress(b"o\nthree\n")

    assert lines_of(raw) == ["one", "two", "three"]


def test_empty_member_has_no_lines() -> None:
    assert lines_of(gzip.compress(b"")) == []


def test_padding_with_zeros_is_no_text() -> None:
    assert lines_of(gzip.compress(b"one\n") + b"\0" * 100) == ["one"]


def test_marks_are_seen_inside_of_it() -> None:
    assert lines_of(gzip.compress(b"\xef\xbb\xbfone\r\ntwo\r\n")) == ["one", "two"]
    with pytest.raises(DataError, match="is UTF-16"):
        lines_of(gzip.compress("\ufeffone".encode("utf-16-le")))


@pytest.mark.parametrize("kept", [3, 15, 60, -1, -8])
def test_cut_off_gzip_is_an_error_and_no_short_corpus(kept: int) -> None:
    raw = gzip.compress(b"".join(b"line %d\n" % number for number in range(2000)))

    with pytest.raises(DataError, match=r"corpus\.gz: the gzip data is damaged or cut") as caught:
        lines_of(raw[:kept])

    assert caught.value.hint == "fetch or compress the file again"


def test_trailing_garbage_is_an_error() -> None:
    with pytest.raises(DataError, match="damaged or cut off after line 1"):
        lines_of(gzip.compress(b"one\n") + b"garbage")


@pytest.mark.parametrize("place", [12, -6, -2])
def test_flipped_byte_is_an_error(place: int) -> None:
    raw = bytearray(gzip.compress(b"one\ntwo\nthree\n"))
    raw[place] ^= 0xFF

    with pytest.raises(DataError, match="damaged"):
        lines_of(bytes(raw))


def test_bomb_needs_little_memory() -> None:
    hundred_megabytes = gzip.compress(b"x" * (100 << 20), compresslevel=1)
    reader = LineReader(io.BytesIO(hundred_megabytes), "corpus.gz")
    tracemalloc.start()

    (line,) = list(reader)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(line) == 1 << 20
    assert peak < 8 << 20
