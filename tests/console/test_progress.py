import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tfm_cli.console import TimeLeft, progress_display

logger = logging.getLogger("tfm_cli.some")


def test_time_left_is_that_of_the_rest_at_the_same_speed() -> None:
    times = iter([100.0, 110.0, 130.0])
    left = TimeLeft(lambda: next(times))

    # It went on in the middle: half of the input took no time of this run.
    assert left.seconds(0.5) is None
    assert left.seconds(0.6) == pytest.approx(40)
    assert left.seconds(1.0) == 0


def test_time_left_of_an_input_without_a_size_is_not_told() -> None:
    assert TimeLeft(lambda: 0.0).seconds(None) is None


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_elsewhere_than_on_a_terminal_it_is_a_line_a_minute(log_messages: list[str]) -> None:
    clock = Clock()

    with progress_display("working", logger, clock=clock) as show:
        for second in range(0, 200, 10):
            clock.now = second
            show(f"{second} things", second / 200)

    assert log_messages == [
        "working: 60 things (30 %), 2m20s left",
        "working: 120 things (60 %), 1m20s left",
        "working: 180 things (90 %), 20s left",
    ]


def test_share_that_cannot_be_told_is_left_out(log_messages: list[str]) -> None:
    clock = Clock()

    with progress_display("working", logger, clock=clock) as show:
        show("1 thing", None)
        clock.now = 61
        show("2 things", None)

    assert log_messages == ["working: 2 things"]


def test_nothing_is_shown_where_only_warnings_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(logger, "isEnabledFor", lambda level: False)

    with progress_display("working", logger) as show:
        show("1 thing", 0.5)

    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_it_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(logger, "isEnabledFor", lambda level: True)
    monkeypatch.setenv("TERM", "xterm")

    with progress_display("working", logger) as show:
        show("1 [b]thing", 0.5)

    out, err = capsys.readouterr()
    assert out == ""
    assert "working: 1 [b]thing (50 %)" in err


@pytest.mark.parametrize(("words", "has_room"), [("x" * 30, True), ("x" * 60, False)])
def test_time_so_far_is_whole_or_left_out(
    words: str,
    has_room: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(logger, "isEnabledFor", lambda level: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    with progress_display("working", logger) as show:
        show(words, 0.5)

    frames = re.split(r"\r|\n", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err))
    shown = [frame for frame in frames if "50 %" in frame]
    assert shown
    assert all(("0:00:00" in frame) == has_room for frame in shown)
    assert not any("…" in frame for frame in shown)


def test_lines_stand_on_a_terminal_where_a_pipe_may_print_there_too(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    log_messages: list[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = Clock()

    with progress_display("working", logger, in_lines=True, clock=clock) as show:
        clock.now = 61
        show("2 things", 0.5)

    assert log_messages == ["working: 2 things (50 %)"]
    assert "\x1b" not in capsys.readouterr().err


def test_pipe_is_told_from_a_file(tmp_path: Path) -> None:
    program = "import sys; from tfm_cli import console; print(console.writes_to_pipe())"
    command = [sys.executable, "-c", program]

    piped = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with (tmp_path / "file").open("wb") as file:
        subprocess.run(command, stdout=file, check=True)

    assert (piped, (tmp_path / "file").read_bytes()) == (b"True\n", b"False\n")
