import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tfm_cli.errors import DataError, ResourceError
from tfm_cli.text.reader import LineReader, open_lines
from tfm_cli.text.writer import open_output, write_lines


def test_window_has_at_most_the_requested_lines() -> None:
    reader = LineReader(io.BytesIO(b"1\n2\n3\n4\n5\n"), "corpus.en")

    assert [reader.window(2) for _ in range(4)] == [["1", "2"], ["3", "4"], ["5"], []]


def test_window_of_very_long_lines_has_few() -> None:
    line = b"x" * (1 << 20) + b"\n"
    reader = LineReader(io.BytesIO(line * 20), "corpus.en")

    sizes = [len(reader.window(100)) for _ in range(4)]

    assert sizes == [8, 8, 4, 0]


@pytest.fixture
def pipe() -> Iterator[tuple[LineReader, int]]:
    """Yield a reader of a pipe, and the end to write to."""
    reading, writing = os.pipe()
    with open(reading, "rb") as stream:  # noqa: PTH123 - a descriptor has no path
        yield LineReader(stream, "standard input"), writing


def test_window_ends_when_the_input_pauses(pipe: tuple[LineReader, int]) -> None:
    reader, writing = pipe

    for sent, received in ((b"1\n", ["1"]), (b"2\n3\n4", ["2", "3"]), (b"4\n", ["44"])):
        os.write(writing, sent)
        assert reader.window(100) == received
    os.close(writing)
    assert reader.window(100) == []


def test_window_that_is_not_waited_for_is_empty_while_the_input_pauses(
    pipe: tuple[LineReader, int],
) -> None:
    reader, writing = pipe

    for sent, received in ((b"1\n", ["1"]), (b"2", []), (b"2\n3\n", ["22", "3"])):
        os.write(writing, sent)
        assert reader.window(100, wait=False) == received
    assert reader.window(100, wait=False) == []
    os.close(writing)
    assert reader.window(100, wait=False) == []


def test_window_does_not_wait_for_the_rest_of_a_line(pipe: tuple[LineReader, int]) -> None:
    reader, writing = pipe
    os.write(writing, b"1\n")
    threading.Timer(0.01, os.write, (writing, b"2")).start()  # before this counts as a pause

    assert reader.window(100) == ["1"]
    os.close(writing)


def test_window_ends_though_a_slow_input_never_pauses(pipe: tuple[LineReader, int]) -> None:
    reader, writing = pipe

    def drip() -> None:
        for _ in range(120):
            os.write(writing, b"line\n")
            time.sleep(0.008)
        os.close(writing)

    threading.Thread(target=drip).start()

    assert len(reader.window(120)) < 100
    while reader.window(120):
        pass


def test_file_is_read_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "corpus.en").write_bytes(b"one\ntwo")

    with open_lines(tmp_path / "corpus.en") as reader:
        assert list(reader) == ["one", "two"]


def test_missing_file_and_directory_are_refused_by_name(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        message = f"{path}: cannot be read: {reason}"
        with pytest.raises(DataError, match=message), open_lines(path) as reader:
            list(reader)


def test_closed_standard_streams_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", None)

    with pytest.raises(DataError, match="standard input: cannot be read: it is closed"):
        open_lines("-").__enter__()
    with pytest.raises(ResourceError, match="standard output: cannot be written: it is closed"):
        open_output("-").__enter__()


def test_written_text_stays_one_line() -> None:
    stream = io.BytesIO()

    write_lines(stream, ["one\ntwo\u2028three\r\x1b[2J"])
    write_lines(stream, ["half a pair \ud800"])

    assert stream.getvalue() == "one two\u2028three\r\x1b[2J\nhalf a pair ?\n".encode()


def test_terminal_is_not_steered_by_text() -> None:
    stream = io.BytesIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]

    write_lines(stream, ["score\ta\x1b]52;c;eA==\x07 \x9b2J \u202eetihw\r"])

    assert stream.getvalue().decode() == (
        "score\ta\\u001b]52;c;eA==\\u0007 \\u009b2J \\u202eetihw\\u000d\n"
    )


def test_output_called_hyphen_is_standard_output(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    with open_output("-") as stream:
        write_lines(stream, ["ü"])

    assert capsysbinary.readouterr().out == "ü\n".encode()


def test_full_disk_behind_standard_output_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb", buffering=0) as device:
        full = io.TextIOWrapper(io.BufferedWriter(device))
        monkeypatch.setattr(sys, "stdout", full)

        with (
            pytest.raises(ResourceError, match="standard output: cannot be written: No space left"),
            open_output("-") as stream,
        ):
            write_lines(stream, ["one"])


def test_lines_go_through_a_buffer_where_python_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []

    class Unbuffered(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, text: object) -> int:
            calls.append(bytes(cast(bytes, text)[:3]))  # an incomplete write, as of a system call
            return len(calls[-1])

    class Stdout:
        buffer = Unbuffered()

    monkeypatch.setattr(sys, "stdout", Stdout)

    with open_output("-") as stream:
        write_lines(stream, ["one", "two"])
        assert calls == []

    assert b"".join(calls) == b"one\ntwo\n"
    assert not Stdout.buffer.closed


def test_share_is_of_the_bytes_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * 99 + b"\n")
    (tmp_path / "empty").touch()
    with (
        open_lines(tmp_path / "in") as reader,
        open_lines("/dev/zero") as endless,
        open_lines(tmp_path / "empty") as empty,
    ):
        assert [reader.share(), endless.share(), empty.share()] == [0.0, None, None]
        reader.window(1)
        assert reader.share() == 1.0
