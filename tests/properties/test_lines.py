"""Lines under any bytes that come in any pieces."""

import gzip
import io
from typing import BinaryIO, cast

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tfm_cli.text.reader import LineReader
from tfm_cli.text.writer import write_lines

# Mostly what has a meaning somewhere; sometimes anything.
MEANINGFUL = [
    b"\n", b"\r\n", b"\r", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xc3", "é".encode(), "😀".encode(),
    "\u2028".encode(), "\x85".encode(), b"\v\f\x1c", b"\xed\xa0\x80", b" ", b"\t", b"word",
]  # fmt: skip
# UTF-16, gzip, xz and Zstandard.
OTHER_KINDS = (b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
texts = (
    st.lists(st.one_of(st.sampled_from(MEANINGFUL), st.binary(max_size=4)))
    .map(b"".join)
    .filter(lambda raw: not raw.startswith(OTHER_KINDS))
)
pieces = st.lists(st.integers(1, 9), min_size=1)
LONGEST = 6
in_its_own_time = settings(deadline=None)  # machines have other things to do


class Pieces(io.BytesIO):
    """Gives at most as many bytes at a time as it was told, in turn."""

    def __init__(self, raw: bytes, sizes: list[int]) -> None:
        super().__init__(raw)
        self.sizes = sizes
        self.reads = 0

    def read1(self, size: int | None = -1) -> bytes:
        self.reads += 1
        return self.read(self.sizes[self.reads % len(self.sizes)])


def reader_of(raw: bytes, sizes: list[int], **options: int) -> LineReader:
    stream = cast(BinaryIO, Pieces(raw, sizes))
    return LineReader(stream, "text", invalid="replace", **options)


def reference(raw: bytes) -> list[bytes]:
    """The lines, by the rules and nothing else."""
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    *ended, last = raw.split(b"\n")
    if ended and ended[0].endswith(b"\r"):
        ended = [line.removesuffix(b"\r") for line in ended]
    return ended + ([last] if last else [])


def as_text(line: bytes) -> str:
    return line.decode("utf-8", "replace").replace("\0", "")


@in_its_own_time
@given(texts, pieces)
def test_lines_are_what_line_feeds_separate(raw: bytes, sizes: list[int]) -> None:
    reader = reader_of(raw, sizes)

    assert list(reader) == [as_text(line) for line in reference(raw)]
    assert reader.num_lines == len(reference(raw))


@in_its_own_time
@given(texts, pieces, st.integers(1, 5))
def test_windows_have_the_lines_in_order(raw: bytes, sizes: list[int], most: int) -> None:
    reader, lines = reader_of(raw, sizes), list[str]()

    while window := reader.window(most):
        assert len(window) <= most
        lines += window

    assert lines == list(reader_of(raw, sizes))
    assert reader.window(most) == []


@in_its_own_time
@given(texts, pieces)
def test_gzip_makes_no_difference(raw: bytes, sizes: list[int]) -> None:
    assert list(reader_of(gzip.compress(raw), sizes)) == list(reader_of(raw, [1]))


@in_its_own_time
@given(texts, pieces)
def test_long_lines_are_cut_and_the_others_stay(raw: bytes, sizes: list[int]) -> None:
    raw = raw.replace(b"\r", b"")  # a first line that is cut cannot tell of CRLF
    assume(not raw.startswith(OTHER_KINDS))  # as without its CR it might
    reader = reader_of(raw, sizes, max_line_bytes=LONGEST)

    lines = list(reader)

    whole = reference(raw)
    assert len(lines) == len(whole)
    assert reader.repairs.counts["clipped"] == sum(len(line) > LONGEST for line in whole)
    for line, kept in zip(whole, lines, strict=True):
        assert kept == as_text(line) or (len(line) > LONGEST >= len(kept))


@in_its_own_time
@given(st.lists(st.text()))
def test_written_lines_are_as_many(lines: list[str]) -> None:
    stream = io.BytesIO()

    for line in lines:
        write_lines(stream, [line])

    assert stream.getvalue().count(b"\n") == len(lines)


@in_its_own_time
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0\ufeff"))))
def test_written_lines_are_read_again(lines: list[str]) -> None:
    stream = io.BytesIO()

    for line in lines:
        write_lines(stream, [line])

    assert list(reader_of(stream.getvalue(), [100])) == lines
