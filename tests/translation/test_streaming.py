import io
import itertools
import json
import tracemalloc
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, cast

import pytest

from tfm_cli.errors import DataError
from tfm_cli.parallel import Parallel
from tfm_cli.text.reader import LineReader
from tfm_cli.translation.resumable_output import Position, StreamOutput
from tfm_cli.translation.streaming import (
    TranslatedWindow,
    TranslationStats,
    Window,
    WindowReader,
    merge_ranks,
    write_windows,
)


def reader_of(num_lines: int) -> LineReader:
    return LineReader(io.BytesIO(b"".join(b"%d\n" % i for i in range(num_lines))), "in")


def windows_of(num_lines: int, *, size: int, start: Position = Position()) -> list[Window]:  # noqa: B008 - it cannot be changed
    return list(WindowReader(reader_of(num_lines), start, deque(), buffer_size=size))


def upper(windows: Iterator[Window]) -> Iterator[TranslatedWindow]:
    """A predictable translator."""
    for window in windows:
        yield TranslatedWindow(window, [f"<{text}>" for text in window.texts], len(window.texts))


class Told(Parallel):
    """A rank that records the messages it sends and receives recorded ones."""

    def __init__(self, rank: int, world_size: int, others: dict[int, deque[bytes]]) -> None:
        super().__init__(rank, world_size)
        self.sent: deque[bytes] = deque()
        self._others = others

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def receive(self, rank: int) -> bytes:
        return self._others[rank].popleft()


def test_windows_grow_and_tell_where_they_end() -> None:
    windows = windows_of(200, size=100)

    assert [len(window.texts) for window in windows] == [16, 64, 100, 20]
    assert [window.start.lines for window in windows] == [0, 16, 80, 180]
    assert [window.end for window in windows[:-1]] == [window.start for window in windows[1:]]


@pytest.mark.parametrize("stop", range(4))
def test_windows_from_a_position_on_are_the_rest_of_them(stop: int) -> None:
    windows = windows_of(200, size=100)

    rest = windows_of(200, size=100, start=windows[stop].end)

    assert [(each.texts, each.end) for each in rest] == [
        (each.texts, each.end) for each in windows[stop + 1 :]
    ]


def test_other_lines_before_a_position_are_refused() -> None:
    end = windows_of(40, size=1)[0].end

    message = "in: the first 1 line changed since the translation"
    with pytest.raises(DataError, match=message):
        list(WindowReader(LineReader(io.BytesIO(b"x\ny\n"), "in"), end, deque(), buffer_size=9))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_lines", [0, 1, 16, 17, 100, 129])
@pytest.mark.parametrize("ahead", [1, 3])
def test_ranks_together_write_the_output_of_one(
    world_size: int, num_lines: int, ahead: int
) -> None:
    def translate(windows: Iterator[Window]) -> Iterator[TranslatedWindow]:
        while some := list(itertools.islice(windows, ahead)):  # some are in flight
            yield from upper(iter(some))

    written: list[bytes] = []
    others: dict[int, deque[bytes]] = {}
    for rank in reversed(range(world_size)):  # rank 0 gets what the others sent
        parallel = Told(rank, world_size, others)
        stream = io.BytesIO()
        windows = WindowReader(reader_of(num_lines), Position(), deque(), buffer_size=20)
        work = write_windows(
            merge_ranks(iter(windows), translate, parallel),
            StreamOutput(stream), waited=lambda: 0.0, progress=lambda work: None,
        )  # fmt: skip
        others[rank] = parallel.sent
        written.append(stream.getvalue())

    assert written[-1] == b"".join(b"<%d>\n" % i for i in range(num_lines))
    assert not any(written[:-1])
    assert (work.lines, work.tokens) == (num_lines, num_lines)


def test_rank_with_another_input_is_an_error() -> None:
    other = json.dumps({"sha256": "x", "tokens": 1}).encode() + b"\n<0>"
    parallel = Told(0, 2, {1: deque([other])})

    with pytest.raises(DataError, match="rank 1 has read another input than rank 0, up to line 32"):
        list(merge_ranks(iter(windows_of(50, size=16)), upper, parallel))


def test_memory_is_bounded_by_the_window() -> None:
    class Endless(io.RawIOBase):
        """A stream of twenty megabytes, generated on demand."""

        left = 20_000_000

        def readable(self) -> bool:
            return True

        def read1(self, size: int) -> bytes:
            self.left -= size
            return b"three four five\n" * (size // 16) if self.left > 0 else b""

    reader = LineReader(cast(BinaryIO, Endless()), "in")
    windows = WindowReader(reader, Position(), deque(), buffer_size=1000)
    written = 0

    class Sink(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, text: object) -> int:
            nonlocal written
            written += len(cast(bytes, text))
            return len(cast(bytes, text))

    translated = merge_ranks(iter(windows), upper, Parallel())
    for _ in itertools.islice(translated, 5):
        pass
    tracemalloc.start()
    write_windows(
        itertools.islice(translated, 50), StreamOutput(cast(BinaryIO, Sink())),
        waited=lambda: 0.0, progress=lambda work: None,
    )  # fmt: skip
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert written == 50 * 1000 * len("<three four five>\n")
    assert peak < 3_000_000  # some windows of 16 kB, and the chunk of lines that was read last


def test_progress_has_lines_and_speed() -> None:
    assert TranslationStats(3000, 9, 150.0).progress_text == "3000 lines, 20.0 lines/s"
    assert TranslationStats(1).progress_text.startswith("1 line, ")
