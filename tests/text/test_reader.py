import io
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO, cast

import pytest

from tfm_cli.errors import DataError
from tfm_cli.text.reader import LineReader, Repairs


class Pieces(io.RawIOBase):
    """A stream that returns its bytes in given chunks, as a pipe may."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = iter(pieces)
        self.left = b""

    def readable(self) -> bool:
        return True

    def read1(self, size: int) -> bytes:
        self.left = self.left or next(self.pieces, b"")
        piece, self.left = self.left[:size], self.left[size:]
        return piece

    read = read1  # type: ignore[assignment]


def reader_of(*pieces: bytes, **options: object) -> LineReader:
    stream = cast(BinaryIO, Pieces(pieces))
    return LineReader(stream, "corpus.en", **options)  # type: ignore[arg-type]


def lines_of(*pieces: bytes, **options: object) -> list[str]:
    return list(reader_of(*pieces, **options))


def test_empty_input_has_no_lines() -> None:
    assert lines_of(b"") == []


def test_lone_line_feed_is_a_blank_line() -> None:
    assert lines_of(b"\n") == [""]


def test_last_line_needs_no_line_feed() -> None:
    assert lines_of(b"one\ntwo") == lines_of(b"one\ntwo\n") == ["one", "two"]


def test_blank_lines_are_lines() -> None:
    assert lines_of(b"\n\none\n\n") == ["", "", "one", ""]


@pytest.mark.parametrize("character", list("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
def test_only_a_line_feed_ends_a_line(character: str) -> None:
    line = f"one{character}two"

    assert lines_of(f"{line}\n{line}".encode()) == [line, line]


def test_carriage_returns_end_lines_where_they_end_the_first() -> None:
    assert lines_of(b"one\r\ntwo\r\n\r\nth\rree\r\n") == ["one", "two", "", "th\rree"]


def test_carriage_returns_stay_where_the_first_line_has_none() -> None:
    assert lines_of(b"one\ntwo\r\n") == ["one", "two\r"]


def test_carriage_return_before_no_line_feed_stays() -> None:
    assert lines_of(b"one\r\ntwo\r") == ["one", "two\r"]
    assert lines_of(b"one\r") == ["one\r"]


def test_first_line_that_comes_in_pieces_still_tells_of_carriage_returns() -> None:
    assert lines_of(b"on", b"e\r", b"\ntwo\r\n") == ["one", "two"]


def test_byte_order_mark_at_the_start_is_dropped() -> None:
    assert lines_of(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo") == ["one", "\ufefftwo"]
    assert lines_of(b"\xef", b"\xbb", b"\xbf", b"one") == ["one"]
    assert lines_of(b"\xef\xbb\xbf") == []


@pytest.mark.parametrize("invalid", ["refuse", "replace"])
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_refused(codec: str, invalid: str) -> None:
    raw = "\ufeffone\ntwo\n".encode(codec)

    for pieces in ([raw], [raw[:1], raw[1:]]):
        with pytest.raises(DataError, match=r"corpus\.en: is UTF-16, expected UTF-8") as caught:
            lines_of(*pieces, invalid=invalid)

        assert caught.value.hint == "convert it with `iconv -f UTF-16 -t UTF-8`"


def test_nul_is_removed_and_counted() -> None:
    reader = reader_of(b"x" * 500 + b"\none\0two\n\0\n")

    assert list(reader)[1:] == ["onetwo", ""]
    assert reader.repairs.counts["nul"] == 2
    assert reader.notes() == ["lines with NUL characters, removed: 2 (first: line 2)"]


def test_binary_input_is_refused_only_if_invalid_bytes_are() -> None:
    raw = b"\x7fELF\0\0\0\n\0"

    with pytest.raises(DataError, match=r"corpus\.en: looks binary \(NUL bytes\), expected UTF-8"):
        lines_of(raw)

    assert lines_of(raw, invalid="replace") == ["\x7fELF", ""]


@pytest.mark.parametrize(
    ("line", "at", "byte"),
    [
        (b"ab\xffcd", 3, "0xff"),
        (b"\xc3\xa9\xed\xa0\x80", 3, "0xed"),  # a lone surrogate
        (b"caf\xc3", 4, "0xc3"),  # truncated
        (b"\xc0\xaf", 1, "0xc0"),  # an overlong encoding
    ],
)
def test_invalid_utf_8_is_refused_with_file_line_and_byte(line: bytes, at: int, byte: str) -> None:
    message = rf"^corpus\.en:2: byte {at}: {byte} is not UTF-8$"

    with pytest.raises(DataError, match=message) as caught:
        lines_of(b"one\n" + line + b"\nthree\n")

    assert "iconv" in str(caught.value.hint)


def test_byte_is_counted_in_the_unchanged_line() -> None:
    with pytest.raises(DataError, match=r"corpus\.en:2: byte 5:"):
        lines_of(b"x" * 500 + b"\na\0\0b\xff\n")


def test_invalid_utf_8_is_replaced_and_counted() -> None:
    reader = reader_of(b"one\ntw\xff\xfeo\n\xe2\x82\nfour\n", invalid="replace")

    assert list(reader) == ["one", "tw\ufffd\ufffdo", "\ufffd", "four"]
    assert reader.repairs.counts["invalid"] == 2
    assert reader.notes() == ["lines with invalid UTF-8, replaced by U+FFFD: 2 (first: line 2)"]


def test_overlong_line_is_cut_where_a_character_ends() -> None:
    reader = reader_of("aé\naéé\naéééé\nb\n".encode(), max_line_bytes=4)

    assert list(reader) == ["aé", "aé", "aé", "b"]
    assert reader.repairs.counts["clipped"] == 2
    assert reader.notes() == ["lines cut at 4 bytes: 2 (first: line 2)"]


def test_line_of_just_the_longest_length_is_whole() -> None:
    for raw in (b"abcd\nabcd", b"abcd\r\nabcd\r\n"):
        for pieces in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
            reader = reader_of(*pieces, max_line_bytes=4)

            assert list(reader) == ["abcd", "abcd"]
            assert reader.repairs.counts["clipped"] == 0


def test_truncation_is_counted_with_other_repairs() -> None:
    for raw in (b"ab\0\0\0cdef\n", b"x\r\nabcd\re\r\n"):
        for pieces in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
            reader = reader_of(*pieces, max_line_bytes=4, invalid="replace")

            list(reader)

            assert reader.repairs.counts["clipped"] == 1


def test_invalid_continuation_bytes_are_truncated_like_others() -> None:
    assert lines_of(b"\x80" * 9, invalid="replace", max_line_bytes=4) == ["\ufffd" * 4]


def test_endless_line_needs_little_memory() -> None:
    piece = "é".encode() * (1 << 15)
    fifty_megabytes = cast(BinaryIO, Pieces(piece for _ in range(800)))
    reader = LineReader(fifty_megabytes, "corpus.en", max_line_bytes=1 << 18)
    tracemalloc.start()

    (line,) = list(reader)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(line) == 1 << 17
    assert reader.repairs.counts["clipped"] == 1
    assert peak < 4 << 20


def test_line_ends_of_the_other_kind_are_counted_and_the_last_line_has_none() -> None:
    for raw, kind, count, first in (
        (b"a\nb\r\nc\r\nd\r", "crlf", 2, 2),
        (b"a\r\nb\nc\r\nd\ne", "bare", 2, 2),
        (b"a\r\nb\r\nc", "bare", 0, None),
        (b"a\nb\nc\r", "crlf", 0, None),
    ):
        for pieces in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
            reader = reader_of(*pieces)

            list(reader)

            assert reader.repairs.counts[kind] == count
            assert reader.repairs.first.get(kind) == first


def test_cut_line_is_not_said_to_end_in_a_carriage_return() -> None:
    reader = reader_of(b"a\nbcd\r\refgh\nabcd\r\n", max_line_bytes=4)

    assert list(reader) == ["a", "bcd\r", "abcd"]
    assert reader.repairs.counts["crlf"] == 1  # the last line, which was read whole


def test_counts_of_later_parts_are_added_and_the_first_line_stays() -> None:
    first, later = Repairs(), Repairs()
    for line in (3, 5):
        first.add("nul", line)
    later.add("nul", 9)
    later.add("clipped", 11)

    first.merge(later)

    assert first.notes(7) == [
        "lines with NUL characters, removed: 3 (first: line 3)",
        "lines cut at 7 bytes: 1 (first: line 11)",
    ]
    assert Repairs().notes(7) == []


def test_lines_may_be_counted_together_and_called_by_another_name() -> None:
    repairs = Repairs()

    repairs.add("invalid", 7, 3)
    repairs.add("invalid", 9)
    repairs.count_as("invalid", "left_out")

    assert repairs == Repairs(Counter(left_out=4), {"left_out": 7})
    assert repairs.notes(9) == [
        "lines with invalid UTF-8, left out together with their pair: 4 (first: line 7)"
    ]
