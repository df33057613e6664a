import io
import logging
import sys
from pathlib import Path

import pytest

from tests.conftest import TinyCorpus
from tfm_cli.cli.translate import translate
from tfm_cli.console import TimeLeft
from tfm_cli.text.reader import open_lines
from tfm_cli.translation.progress import progress_text, shown_progress
from tfm_cli.translation.streaming import Work


def test_time_left_is_that_of_the_rest_at_the_same_speed() -> None:
    times = iter([100.0, 110.0, 130.0])
    left = TimeLeft(lambda: next(times))

    # It went on in the middle: half of the input took no time of this run.
    assert left.seconds(0.5) is None
    assert left.seconds(0.6) == pytest.approx(40)
    assert left.seconds(1.0) == 0


def test_time_left_of_an_input_without_a_size_is_not_told() -> None:
    assert TimeLeft(lambda: 0.0).seconds(None) is None


@pytest.mark.parametrize(
    ("share", "left", "text"),
    [
        (None, None, "3000 lines, 20.0 lines/s"),
        (0.25, None, "3000 lines (25 %), 20.0 lines/s"),
        (0.25, 7800, "3000 lines (25 %), 20.0 lines/s, 2h10m left"),
    ],
)
def test_progress_says_lines_share_speed_and_time_left(
    share: float | None, left: float | None, text: str
) -> None:
    assert progress_text(Work(3000, 9, 150.0, share), left) == text


def test_log_gets_a_line_a_minute(told: list[str]) -> None:
    now = 0.0
    with shown_progress("in", "out", clock=lambda: now) as progress:
        for step in range(1, 15):
            now = 10.0 * step
            progress(Work(step, 0, now, step / 20))

    assert told == [
        "6 lines (30 %), 0.1 lines/s, 2m20s left",
        "12 lines (60 %), 0.1 lines/s, 1m20s left",
    ]


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


def test_bar_on_a_terminal_shows_the_time_left(
    tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")

    caplog.set_level(logging.INFO, "tfm_cli")  # as a command has it
    with shown_progress("in", "out") as progress:
        progress(Work(10, 100, 1.0, 0.1))
        progress(Work(20, 200, 2.0, 0.2))
    translate(
        model=[tiny_model], input_path=tiny_corpus.path("test.en"),
        output_path=str(tmp_path / "out"), device="cpu",
    )  # fmt: skip

    assert isinstance(sys.stderr, Terminal)
    shown = sys.stderr.getvalue()
    assert "20 lines (20 %), 10.0 lines/s" in shown
    assert " left" in shown
    assert "translated 40 lines in " in shown
