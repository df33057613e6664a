import contextlib
import io
import json
import math
import os
import re
import sys
from pathlib import Path

import pytest

from tests.runs import metrics
from tfm_cli import console
from tfm_cli.errors import ResourceError
from tfm_cli.evaluation.scores import corpus_scores
from tfm_cli.files.faults import VARIABLE, reset_faults
from tfm_cli.training.events import Logged, Mark, Stopped, Validated
from tfm_cli.training.progress import (
    Display,
    MetricsFile,
    perplexity,
    progress_line,
    score_text,
    validation_line,
)
from tfm_cli.training.validation import Validation

SCORES = tuple(corpus_scores(["a b c d"], [["a b c d"]], metrics=["bleu"]))


def logged(update: int = 500, loss: float = 5.213) -> Logged:
    return Logged(
        update=update, epoch=1, loss=loss, learn_rate=3.1e-4, tokens_per_second=4120.4,
        gradient_norm=1.018, seconds=75,
    )  # fmt: skip


def validated(update: int = 500, *, best: bool = True, counted: bool = True) -> Validated:
    values = {"bleu": 34.214, "chrf": 61.5, "loss": 1.5}
    return Validated(update, 2, Validation(values, SCORES), best, counted, 3700)


def test_progress_line_is_greppable() -> None:
    assert progress_line(logged()) == (
        "update    500  epoch   1  loss  5.213  ppl   183.64  lr 3.10e-04  tgt-tok/s   4120  "
        "grad  1.02  time 1m15s"
    )


def test_progress_lines_stand_below_each_other() -> None:
    lines = [progress_line(logged(update, loss)) for update, loss in ((1, 9.5), (123_456, 0.001))]

    assert len({len(line) for line in lines}) == 1
    assert len({line.index("lr") for line in lines}) == 1


def test_validation_line_has_the_metrics_in_their_order() -> None:
    assert validation_line(validated()) == (
        "valid     500  epoch   2  bleu 34.21  chrf 61.50  loss 1.5000  ppl 4.48  time 1h01m  best"
    )
    assert not validation_line(validated(best=False)).endswith("best")


def test_perplexity_is_infinite_rather_than_an_error() -> None:
    assert perplexity(0) == 1
    assert perplexity(800) == math.inf
    assert score_text("loss", 800) == "loss 800.0000  ppl inf"


def test_metrics_are_json_lines_with_all_facts(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", update=0)

    file.add(logged())
    file.add(validated(counted=False))

    train, valid = metrics(tmp_path)
    assert train == {
        "event": "train", "update": 500, "epoch": 1, "loss": 5.213, "ppl": math.exp(5.213),
        "learn_rate": 3.1e-4, "target_tokens_per_second": 4120.4, "gradient_norm": 1.018,
        "seconds": 75,
    }  # fmt: skip
    assert valid == {
        "event": "valid", "update": 500, "epoch": 2, "bleu": 34.214, "chrf": 61.5, "loss": 1.5,
        "best": True, "scheduled": False, "signatures": {"BLEU": SCORES[0].signature},
        "seconds": 3700,
    }  # fmt: skip


def test_stops_and_resumes_have_lines(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", update=0)

    file.add(Mark(5, 2, 7.5, Stopped("2 epochs made", is_complete=True, validate_first=True)))
    file.add(Mark(5, 2, 7.5, None))

    assert metrics(tmp_path, marks=True) == [
        {"event": "stopped", "update": 5, "epoch": 2, "reason": "2 epochs made", "complete": True,
         "seconds": 7.5},
        {"event": "resumed", "update": 5, "epoch": 2, "seconds": 7.5},
    ]  # fmt: skip


def test_number_that_json_lacks_is_null(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.jsonl", update=0).add(logged(loss=1e4))

    (line,) = metrics(tmp_path)
    assert line["ppl"] is None
    assert line["loss"] == 1e4


def test_lines_of_a_run_that_was_cut_off_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, update=0)
    for update in (10, 20, 30):
        file.add(logged(update))
    with path.open("ab") as stream:
        stream.write(b'[]\nnull\n{"event": "train"}\n{"event": "train", "upd')

    MetricsFile(path, update=20).add(logged(25))

    assert [line["update"] for line in metrics(tmp_path)] == [10, 20, 25]


def test_lines_that_are_no_metrics_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = b'{"update": 1}\n'
    path.write_bytes(line + b"[" * 100_000 + b'\n\xff\n{"update": null}\n1\n')

    MetricsFile(path, update=1)

    assert path.read_bytes() == line


def test_metrics_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", update=0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()

    file.add(logged())

    with pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written: Is a directory"):
        file.sync()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "symbolic link", "hard link"])
def test_metrics_that_are_no_file_of_the_run_are_refused(kind: str, tmp_path: Path) -> None:
    path, victim = tmp_path / "metrics.jsonl", tmp_path / "victim"
    victim.write_bytes(b"mine\n")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "hard link":
        path.hardlink_to(victim)
    else:
        path.symlink_to(victim)

    with pytest.raises(ResourceError, match=rf"metrics\.jsonl: cannot be written: .*{kind}"):
        MetricsFile(path, update=0)

    assert victim.read_bytes() == b"mine\n"
    assert path.is_symlink() == (kind == "symbolic link")


def test_backup_by_a_link_that_is_made_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", update=0)
    file.add(logged(1))
    (tmp_path / "backup").hardlink_to(tmp_path / "metrics.jsonl")
    before = (tmp_path / "backup").read_bytes()

    file.add(logged(2))
    file.sync()

    assert (tmp_path / "backup").read_bytes() == before
    assert [line["update"] for line in metrics(tmp_path)] == [1, 2]


def test_line_that_is_too_long_is_dropped_and_not_held(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first, last = b'{"update": 1}\n', b'{"update": 2}'
    path.write_bytes(first + b'{"update": 1, "x": "' + b"x" * (3 << 20) + b'"}\n' + last)

    MetricsFile(path, update=2)

    assert path.read_bytes() == first + last + b"\n"


def test_metrics_that_could_not_be_written_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", update=0)
    file.add(logged(10))
    with monkeypatch.context() as inside:
        # The disk takes half of a line, and then nothing.
        inside.setenv(VARIABLE, "write:1=short,write:2+=enospc")
        reset_faults()
        with contextlib.suppress(ResourceError):
            file.add(logged(20))
        file.add(logged(30))
    reset_faults()

    file.add(logged(40))
    file.sync()

    assert [line["update"] for line in metrics(tmp_path)] == [10, 20, 30, 40]


def test_validations_off_schedule_can_be_dropped(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", update=0)
    file.add(logged(10))
    file.add(validated(10))
    file.add(validated(15, counted=False))

    file.drop_unscheduled()

    assert [line["update"] for line in metrics(tmp_path)] == [10, 10]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on(stream: io.StringIO, patch: pytest.MonkeyPatch, level: int = console.NORMAL) -> str:
    """Return the output of a short run on a terminal."""
    patch.setattr(sys, "stderr", stream)
    patch.setenv("TERM", "xterm")
    patch.setenv("COLUMNS", "80")
    console.setup(level)
    with Display(total=100_000, done=0) as display:
        display.show_progress(logged())
        display.show_validation(validated())
        display.show_progress(logged(600))
    return stream.getvalue()


def test_without_a_terminal_each_event_is_a_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_on(io.StringIO(), monkeypatch)

    lines = [progress_line(logged()), validation_line(validated()), progress_line(logged(600))]
    assert shown == "".join(f"{line}\n" for line in lines)


def test_on_a_terminal_progress_is_a_bar_and_validations_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)

    shown = shown_on(Terminal(), monkeypatch)

    assert f"{validation_line(validated())}\n" in shown
    assert progress_line(logged()) not in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "600/100000 " in plain
    assert " loss 5.21 ppl 184 lr 3.1e-04 4120 tok/s BLEU 34.2 " in plain
    assert "…" not in plain
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is shown again


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_quiet_run_shows_nothing(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown_on(stream(), monkeypatch, console.QUIET) == ""


def test_terminal_without_color_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    shown = shown_on(Terminal(), monkeypatch)

    assert "600/100000" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)


def test_metrics_line_has_no_line_feed_inside(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", update=0)

    file.add(validated())

    (line, rest) = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    assert rest == b""
    assert json.loads(line)["event"] == "valid"
