"""Tests of learning curves: what is read of runs, and what pages and text show of it."""

import fcntl
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest

from tfm_cli.errors import DataError
from tfm_cli.pictures import curves
from tfm_cli.pictures.curves import MAX_POINTS, Run, curves_page, read_runs, scale_of
from tfm_cli.pictures.curves_text import blocks, curves_text, resampled


def train_line(update: int, loss: float = 2.0, **more: Any) -> dict[str, Any]:
    return {
        "event": "train", "update": update, "epoch": update // 100 + 1, "loss": loss,
        "ppl": math.exp(loss), "learn_rate": 1e-3, "target_tokens_per_second": 1000.5,
        "gradient_norm": 1.5, "seconds": update / 10, **more,
    }  # fmt: skip


def valid_line(update: int, bleu: float, *, best: bool = True) -> dict[str, Any]:
    return {
        "event": "valid", "update": update, "epoch": update // 100 + 1, "bleu": bleu, "loss": 1.5,
        "best": best, "scheduled": True, "signatures": {}, "seconds": update / 10,
    }  # fmt: skip


LINES = [
    train_line(50, 4.0),
    {"event": "skipped", "update": 60, "epoch": 1, "loss": None, "gradient_norm": None},
    train_line(100, 3.0),
    valid_line(100, 20.0),
    {"event": "stopped", "update": 120, "epoch": 2, "reason": "SIGTERM was received",
     "complete": False, "seconds": 12.0},
    {"event": "resumed", "update": 120, "epoch": 2, "seconds": 12.0},
    train_line(200, 2.0),
    valid_line(200, 30.0),
    train_line(300, 1.0),
    valid_line(300, 25.0, best=False),
    {"event": "stopped", "update": 300, "epoch": 4, "reason": "300 updates made", "complete": True,
     "seconds": 30.0},
]  # fmt: skip


def write(directory: Path, lines: list[dict[str, Any]]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text, "utf-8")
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write(tmp_path / "model", LINES)


@pytest.fixture
def run(directory: Path) -> Run:
    return read_runs([directory])[0]


def test_run_has_its_lines_by_kind(run: Run) -> None:
    assert run.name == "model"
    assert [line.update for line in run.training] == [50, 100, 200, 300]
    assert [line.values["bleu"] for line in run.validations] == [20, 30, 25]
    assert [(line.event, line.update) for line in run.marks] == [
        ("skipped", 60), ("stopped", 120), ("resumed", 120), ("stopped", 300),
    ]  # fmt: skip
    assert run.best is run.validations[1]
    assert run.training[0].values["ppl"] == pytest.approx(math.exp(4))
    assert not run.is_running


def test_file_may_be_named_instead_of_its_directory(directory: Path) -> None:
    (run,) = read_runs([directory / "metrics.jsonl"])

    assert (run.name, len(run.training)) == ("model", 4)


def test_name_of_the_speed_in_older_runs_is_read(tmp_path: Path) -> None:
    line = train_line(10)
    line["target_pieces_per_second"] = line.pop("target_tokens_per_second")

    (run,) = read_runs([write(tmp_path, [line])])

    assert run.training[0].values["target_tokens_per_second"] == 1000.5


def test_runs_of_one_name_are_told_apart_by_more_of_their_paths(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name / "model", LINES) for name in "ab")

    assert [run.name for run in read_runs([first, second])] == ["a/model", "b/model"]
    assert [run.name for run in read_runs([first, first])] == ["model (1)", "model (2)"]


def test_damaged_lines_are_named_and_skipped(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = [
        b"[" * 100_000, b"\xff", b"[]", b"{}", b'{"event": "train"}', b'{"event": 3}',
        b'{"event": "train", "update": -1, "epoch": 1}',
        b'{"event": "train", "update": true, "epoch": 1}',
        b'{"event": "train", "update": 1, "epoch": 1, "loss": "low"}',
        b'{"event": "train", "update": 1, "epoch": 1, "loss": NaN}',
        b'{"event": "train", "update": 1, "epoch": 1, "loss": 1' + b"0" * 400 + b"}",
        b'{"event": "train", "update": 1, "update": 1, "epoch": 1}',
    ]  # fmt: skip
    with (directory / "metrics.jsonl").open("ab") as stream:
        stream.write(b"\n".join(damaged) + b'\n{"event": "tr')  # the last one is being written

    with caplog.at_level(logging.WARNING, logger="tfm_cli"):
        (run,) = read_runs([directory])

    assert len(run.training) == 4
    (record,) = caplog.records
    assert f"{directory}/metrics.jsonl, line 12: is damaged: it is nested" in record.getMessage()
    assert record.getMessage().endswith("it is skipped, as 11 other lines")


def test_unknown_events_are_left_out(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (directory / "metrics.jsonl").open("a") as stream:
        stream.write('{"event": "a later one", "update": 5}\n')

    assert len(list(read_runs([directory])[0].lines())) == len(LINES)
    assert caplog.records == []


def test_run_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing: does not exist") as error:
        read_runs([tmp_path / "nothing"])
    assert "a run of `tfm train`" in str(error.value.hint)
    with pytest.raises(DataError, match="has no learning curve"):
        read_runs([write(tmp_path / "empty", [])])


def test_pipe_in_place_of_metrics_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")

    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be read"):
        read_runs([tmp_path])


def test_memory_is_bounded_and_first_and_last_point_stay(tmp_path: Path) -> None:
    lines = [train_line(update, 3.0) for update in range(1, 5 * MAX_POINTS)]

    (run,) = read_runs([write(tmp_path, lines)])

    updates = [line.update for line in run.training]
    assert MAX_POINTS // 2 <= len(updates) <= MAX_POINTS + 1
    assert (updates[0], updates[-1]) == (1, 5 * MAX_POINTS - 1)
    assert run.stride == 8


def test_lock_that_is_held_is_a_run_that_goes_on(directory: Path) -> None:
    with (directory / ".tfm-train.lock").open("w") as lock:
        assert curves.is_training(directory)  # it is about to write its facts
        lock.write("{}")
        lock.flush()
        assert not curves.is_training(directory)  # it was killed
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert curves.is_training(directory)
        assert curves.state_of(read_runs([directory])[0]) == "running"
    assert not curves.is_training(directory.parent)


def test_state_of_a_run_that_was_killed(tmp_path: Path) -> None:
    (run,) = read_runs([write(tmp_path, [*LINES[:-1], train_line(400)])])

    assert curves.state_of(run) == "ended without a stop"


@pytest.mark.parametrize("per_epoch", [7, 40, 123])
def test_places_in_epochs_are_close_to_the_truth(per_epoch: int, tmp_path: Path) -> None:
    lines = []
    for update in range(10, 500, 10):
        lines.append(train_line(update) | {"epoch": math.ceil(update / per_epoch)})
    (run,) = read_runs([write(tmp_path, lines)])

    scale = scale_of(run, "epochs")

    for line in run.training:
        assert scale.place(line) == pytest.approx(line.update / per_epoch, abs=0.5, rel=0.1)


def test_time_is_refused_where_there_is_none(tmp_path: Path) -> None:
    lines = [train_line(1)]
    del lines[0]["seconds"]
    runs = read_runs([write(tmp_path, lines)])

    with pytest.raises(DataError, match="its metrics have no times") as error:
        curves_page(runs, "time")
    assert error.value.hint == "take `--x updates` or `--x epochs`"
    assert curves_text(runs, "updates")


@pytest.mark.parametrize("axis", curves.AXES)
def test_page_has_a_chart_of_each_quantity(axis: curves.Axis, directory: Path) -> None:
    other = write(directory.parent / "other", LINES[:4])
    page = curves_page(read_runs([directory, other]), axis)
    image = page.svg()

    for heading in ("Loss", "Perplexity", "BLEU", "Learning rate", "Gradient norm", "Speed"):
        assert f">{heading}</text>" in image
    assert ">TER</text>" not in image
    assert "× a skipped update, ■ a stop, ▶ a resume" in image
    assert ">other</text>" in image
    assert "stroke-dasharray" in image


def test_numbers_of_a_page_are_those_of_the_run(directory: Path) -> None:
    page = curves_page(read_runs([directory]), "time")

    training = list(page._data["training"].rows())
    assert [row["x"] for row in training] == [5, 10, 20, 30]
    assert [row["loss"] for row in training] == [4, 3, 2, 1]
    validations = list(page._data["validations"].rows())
    assert [row["best"] for row in validations] == [False, True, False]
    assert validations[1]["bleu"] == 30


def test_text_is_80_columns_wide(run: Run) -> None:
    lines = curves_text([run], "updates")

    assert lines[0] == "model: 300 updates, 4 epochs, 30s; stopped: 300 updates made"
    assert max(map(len, lines)) <= 80
    (loss,) = [line for line in lines if line.startswith("Loss, train")]
    assert loss.split() == ["Loss,", "train", "4", *loss.split()[3:-1], "1"]
    (events,) = [line for line in lines if line.startswith("events")]
    assert [mark for mark in events if mark in "×■▶"] == ["×", "■", "▶", "■"]


CHANGES = ["training.learn_rate: 0.001 → 0.0005", "training.max_updates: 300 → 400"]
WITH_CHANGE = [
    *LINES[:5],
    {"event": "changed", "update": 120, "epoch": 2, "seconds": 12.0, "changes": CHANGES,
     "settings_sha256": "0" * 64},
    *LINES[5:],
]  # fmt: skip


def test_text_marks_and_lists_changes_of_settings(directory: Path) -> None:
    other = write(directory.parent / "other", WITH_CHANGE)

    alone = curves_text(read_runs([other]), "updates")
    both = curves_text(read_runs([directory, other]), "updates")

    (events,) = [line for line in alone if line.startswith("events")]
    assert "■◆▶" in events
    assert alone[-2:] == [f"◆ after update 120: {change}" for change in CHANGES]
    assert both[-2:] == [f"◆ other, after update 120: {change}" for change in CHANGES]
    assert max(map(len, [*alone, *both])) <= 80
    assert not any("◆" in line for line in curves_text(read_runs([directory]), "updates"))


def test_page_marks_and_lists_changes_of_settings(directory: Path) -> None:
    page = curves_page(read_runs([write(directory.parent / "other", WITH_CHANGE)]), "updates")

    (row,) = [row for row in page._data["events"].rows() if row["event"] == "changed"]
    assert (row["x"], row["reason"]) == (120, "; ".join(CHANGES))
    assert "◆ a change of settings" in page.svg()
    html = page.html()
    for cell in ("training.learn_rate", "0.001", "0.0005", "Settings that were changed"):
        assert f">{cell}</" in html
    assert "◆" not in curves_page(read_runs([directory]), "updates").html()


def test_state_of_a_run_that_was_changed_is_that_of_its_stop(directory: Path) -> None:
    lines = [*LINES, WITH_CHANGE[5] | {"update": 300}]

    assert curves.state_of(read_runs([write(directory, lines)])[0]) == "stopped: 300 updates made"


@pytest.mark.parametrize("changes", ["x", [1], {"a": 1}])
def test_changes_that_are_no_texts_are_damage(
    changes: Any, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(directory, [*LINES, WITH_CHANGE[5] | {"changes": changes}])

    assert read_runs([directory])[0].changes == ()
    assert "`changes` is not a list of texts" in caplog.text


@pytest.mark.parametrize("end", [300, 121, 10**6])
def test_marks_of_one_update_are_all_visible(end: int, directory: Path) -> None:
    lines = [*WITH_CHANGE[:7], train_line(end)]

    text = curves_text(read_runs([write(directory, lines)]), "updates")

    (events,) = [line for line in text if line.startswith("events")]
    assert events.split()[-1].endswith("■◆▶") or end == 10**6


def test_text_of_several_runs_names_them(directory: Path) -> None:
    other = write(directory.parent / ("long" * 10), LINES[:4])
    lines = curves_text(read_runs([directory, other]), "epochs")

    assert max(map(len, lines)) <= 80
    assert [line[:12] for line in lines if line.startswith("model, train")] == ["model, train"] * 2
    assert any(line.startswith("longlong") and "…" in line for line in lines)


def test_blocks_are_between_an_eighth_and_full() -> None:
    assert blocks([0, 1, None, 2], 0, 2, 1) == ["▁▅ █"]
    assert blocks([0, 2], 0, 2, 2) == [" █", "▁█"]
    assert blocks([3, 3], 3, 3, 1) == ["▁▁"]
    assert blocks([1, 10, 100], 1, 100, 1, is_logarithmic=True) == ["▁▅█"]


def test_gaps_between_points_are_filled_and_ends_are_not() -> None:
    assert resampled([(2.5, 1.0), (2.9, 3.0), (4.5, 4.0)], 6, 6) == [None, None, 2, 3, 4, None]
