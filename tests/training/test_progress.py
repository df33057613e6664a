import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.runs import metrics
from tfm_cli import console
from tfm_cli.console import display_width
from tfm_cli.errors import ResourceError
from tfm_cli.evaluation.scores import corpus_scores
from tfm_cli.files.faults import VARIABLE, reset_faults
from tfm_cli.training.events import Logged, Mark, Stopped, Updated, Validated
from tfm_cli.training.progress import (
    Display,
    MetricsFile,
    Pace,
    Plan,
    perplexity,
    plan_line,
    progress_line,
    sample_lines,
    score_text,
    validation_line,
)
from tfm_cli.training.validation import Sample, Validation

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


def test_validation_keeps_its_update_and_first_score_the_longest() -> None:
    shown = [validation_line(validated(), width) for width in (83, 65, 58, 45, 38, 26, 22, 10)]

    assert shown == [
        "valid 500  epoch 2  bleu 34.21  chrf 61.50  loss 1.5000 ppl 4.48  time 1h01m  best",
        "valid 500  bleu 34.21  chrf 61.50  loss 1.5000 ppl 4.48  best",
        "valid 500  bleu 34.21  chrf 61.50  best",
        "valid 500  bleu 34.21  chrf 61.50  best",
        "valid 500  bleu 34.21  best",
        "valid 500  bleu 34.21",
        "valid 500  bleu 34.21",
        "valid 500",
    ]


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


SAMPLES = (
    Sample("She reads an old book.", "Elle lit un vieux livre.", "Elle lit un livre."),
    Sample("a\tb\x1b[2J", "x " * 700, "猫が窓の外を見ている" * 9),
)


def test_samples_have_a_line_for_each_text_that_is_cut_to_the_width() -> None:
    lines = list(sample_lines(SAMPLES, 41))

    assert lines[:3] == [
        "  1 source       She reads an old book.",
        "  1 reference    Elle lit un vieux livre.",
        "  1 translation  Elle lit un livre.",
    ]
    assert lines[3] == "  2 source       a\\u0009b\\u001b[2J"
    assert lines[4].endswith("x x…")
    assert lines[5].endswith("…")
    assert len(lines) == 6
    assert all(display_width(line) <= 41 for line in lines)


def test_samples_follow_their_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    event = dataclasses.replace(
        validated(), validation=Validation({"bleu": 34.214}, SCORES, SAMPLES[:1])
    )
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    console.setup()

    with Display(Plan()) as display:
        display.show_validation(event)

    assert stream.getvalue().split("\n") == [
        validation_line(event), *sample_lines(SAMPLES[:1], 1000), "",
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def updated(update: int, *, tokens: int = 1000, seconds: float = 0.5) -> Updated:
    return Updated(update, 1, tokens, 5.0, seconds, update * seconds)


def shown_on(
    stream: io.StringIO,
    patch: pytest.MonkeyPatch,
    level: int = console.NORMAL,
    *,
    columns: int = 80,
    term: str = "xterm",
) -> str:
    """Return the output of a short run on a terminal."""
    patch.setattr(sys, "stderr", stream)
    patch.setenv("TERM", term)
    patch.setenv("COLUMNS", str(columns))
    console.setup(level)
    with Display(Plan(total=100_000)) as display:
        display.show_progress(logged())
        display.show_validation(validated())
        display.show_progress(logged(600))
    return stream.getvalue()


def plain(shown: str) -> str:
    """Return text without the control sequences of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def test_without_a_terminal_each_event_is_a_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_on(io.StringIO(), monkeypatch)

    lines = [progress_line(logged()), validation_line(validated()), progress_line(logged(600))]
    assert shown == "".join(f"{line}\n" for line in lines)


def test_on_a_terminal_progress_is_a_bar_and_validations_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)

    shown = shown_on(Terminal(), monkeypatch)

    assert f"{validation_line(validated(), 80)}\n" in shown
    assert progress_line(logged()) not in shown
    assert "update 600/100000 ━" in plain(shown)
    assert "━ loss 5.21  ppl 184  lr 3.1e-04  BLEU 34.2" in plain(shown)
    assert "…" not in plain(shown)
    assert plain(shown).endswith(f"{progress_line(logged(600), 80)}\n")  # it stays
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is shown again


@pytest.mark.parametrize("columns", [30, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = plain(shown_on(Terminal(), monkeypatch, columns=columns))

    lines = [line.split("\r")[-1] for line in shown.split("\n")]
    assert max(map(len, lines)) <= columns
    bars = [line for line in re.split("[\r\n]", shown) if "600/" in line]
    assert bars
    assert all(len(line) >= columns - 1 for line in bars)  # the bar takes the room that is left
    assert all(line.count("━") >= 8 for line in bars)
    facts = {part.split(" ")[0] for part in progress_line(logged()).split("  ") if part}
    kept = [part.split(" ")[0] for part in progress_line(logged(), columns).split("  ") if part]
    assert kept[0] == "update"
    assert set(kept) <= facts


def test_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = shown_on(Terminal(), monkeypatch, term="dumb", columns=200)
    narrow = shown_on(Terminal(), monkeypatch, term="dumb", columns=60)

    assert wide.startswith(f"{progress_line(logged())}\n")
    assert narrow.startswith(f"{progress_line(logged(), 60)}\n")
    assert max(map(len, narrow.split("\n"))) <= 60


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_quiet_run_shows_nothing(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown_on(stream(), monkeypatch, console.QUIET) == ""


def test_terminal_without_color_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    shown = shown_on(Terminal(), monkeypatch)

    assert "600/100000" in plain(shown)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def paced(plan: Plan, clock: Clock, updates: Iterable[Updated]) -> Pace:
    """Return the pace after updates, each of which takes its time."""
    pace = Pace(plan, clock)
    for each in updates:
        clock.now += each.update_seconds
        pace.add(each)
    return pace


def test_time_left_is_that_of_the_updates_left_without_the_slow_first_one() -> None:
    updates = [updated(1, seconds=60.0), *(updated(n) for n in range(2, 12))]
    pace = paced(Plan(total=111), clock := Clock(), updates)

    assert pace.seconds_left() == pytest.approx(100 * 0.5)
    assert pace.tokens_per_second == pytest.approx(2000)
    assert pace.share() == pytest.approx(11 / 111)

    clock.now += 5  # a validation, such as others will follow
    assert pace.seconds_left() == pytest.approx(100 * (0.5 + 5 / 10))


def test_time_left_is_known_after_one_update_and_ends_at_the_limit_of_time() -> None:
    clock = Clock()
    by_updates = paced(Plan(total=5), clock, [updated(1)])
    by_time = Plan(total=100_000, max_time="1m", began=1000.0, deadline=1060.0)
    pace = paced(by_time, clock := Clock(), [updated(1), updated(2)])

    assert by_updates.seconds_left() == pytest.approx(4 * 0.5)
    assert pace.seconds_left() == pytest.approx(59)
    assert pace.share() == pytest.approx(1 / 60)
    clock.now += 100
    assert (pace.seconds_left(), pace.share()) == (0, 1)


def test_without_a_known_end_nothing_is_estimated() -> None:
    pace = paced(Plan(), Clock(), [updated(1), updated(2)])

    assert pace.seconds_left() == math.inf
    assert pace.share() is None


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        (
            {"total": 750},
            "750 updates = 12.9 epochs, about 6m10s at 2,000 target tokens a second, "
            "plus validations",
        ),
        (
            {"total": 750, "max_time": "1h", "deadline": 4600.0},
            "750 updates = 12.9 epochs, about 6m10s at 2,000 target tokens a second, "
            "plus validations",
        ),
        (
            {"total": 100_000, "max_time": "20m", "deadline": 2200.0},
            "--max-time 20m = about 2,400 updates, 41.4 epochs, at 2,000 target tokens a second",
        ),
        (
            {"max_time": "20m", "deadline": 2200.0},
            "--max-time 20m = about 2,400 updates, 41.4 epochs, at 2,000 target tokens a second",
        ),
        ({}, "an epoch = 58 updates, about 29s at 2,000 target tokens a second"),
    ],
)
def test_plan_says_what_the_settings_mean(plan: dict[str, Any], line: str) -> None:
    settings = Plan(updates_per_epoch=58, began=1000.0, **plan)
    pace = paced(settings, clock := Clock(), [updated(n) for n in range(1, 11)])

    assert plan_line(settings, pace, 10, clock.now) == line


def test_plan_of_a_resumed_run_is_of_what_is_left() -> None:
    settings = Plan(made=700, total=750, updates_per_epoch=100)
    pace = paced(settings, clock := Clock(), [updated(n) for n in range(701, 711)])

    assert plan_line(settings, pace, 710, clock.now).startswith(
        "50 more updates = 0.5 epochs, about 20s at"
    )


@pytest.mark.parametrize(("seconds", "after"), [(0.1, 10), (3.0, 7), (90.0, 1)])
def test_plan_comes_once_after_ten_updates_or_twenty_seconds(
    seconds: float, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, clock, seen = io.StringIO(), Clock(), []
    monkeypatch.setattr(sys, "stderr", stream)
    console.setup()

    with Display(Plan(total=1000, updates_per_epoch=9), clock=clock) as display:
        for number in range(1, 40):
            clock.now += seconds
            display.show_update(updated(number, seconds=seconds))
            seen.append(stream.getvalue().count("1,000 updates = "))

    assert seen == [0] * (after - 1) + [1] * (40 - after)


def test_run_of_slow_updates_has_a_first_line_within_the_first_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, clock = io.StringIO(), Clock()
    monkeypatch.setattr(sys, "stderr", stream)
    console.setup()

    with Display(Plan(total=1000), clock=clock) as display:
        for number in range(1, 30):
            clock.now += 5
            display.show_update(updated(number, seconds=5))

    assert re.findall("^update.*", stream.getvalue(), re.M) == [
        "update      9  epoch   1  loss  5.000  tgt-tok/s    200  time 45s"
    ]


def test_bar_moves_at_updates_but_only_a_few_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    console.setup()

    with Display(Plan(total=2000), clock=clock) as display:
        for number in range(1, 1001):
            clock.now += 0.01
            display.show_update(updated(number, seconds=0.01))

    shown = plain(stream.getvalue())
    drawn = sorted(set(map(int, re.findall(r"update (\d+)/2000 ", shown))))
    assert 36 <= len(drawn) <= 42  # in ten seconds
    assert drawn[:2] == [0, 1]
    assert "loss 5.00  ppl 148  100000 tok/s  10s left" in shown


def test_metrics_line_has_no_line_feed_inside(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", update=0)

    file.add(validated())

    (line, rest) = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    assert rest == b""
    assert json.loads(line)["event"] == "valid"
