"""`--max-time` bounds a command whatever it does, and what it cuts off is made by the next one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TFM, TinyCorpus, invoke
from tests.runs import SMALL_RUN, left_behind, metrics, write_part
from tests.tiers import representative
from tfm_cli.decoding.constraints import is_loop
from tfm_cli.errors import OutOfTime
from tfm_cli.training.events import Stopped
from tfm_cli.training.state import TrainState
from tfm_cli.training.time_limit import TimeLimit

pytestmark = pytest.mark.slow

UPDATES = 12
OFTEN = ["--valid-freq", "3", "--save-freq", "6", "--disp-freq", "2", "--early-stopping", "9"]
MOST_LATE = 10.0  # seconds


@dataclass(frozen=True)
class Unbroken:
    """A run that never stopped."""

    text: list[str]
    left: dict[str, Any]

    def command(self, output: Path, *more: str) -> list[str]:
        """Return the arguments of `tfm`."""
        run = ["train", *self.text, *SMALL_RUN, *OFTEN, "--max-updates", str(UPDATES)]
        return [*run, "-o", str(output), *more]


@pytest.fixture(scope="module")
def unbroken(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    directory = tmp_path_factory.mktemp("unbroken")
    run = Unbroken(write_part(tiny_corpus, directory, pairs=55), {})
    result = invoke(run.command(directory / "model"))
    assert result.code == 0, result.err
    return Unbroken(run.text, left_behind(directory / "model"))


def let_time_be_up_at(call: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Let there be no more time from a call of `check` on; how many calls there were."""
    calls = [0]

    def check(self: TimeLimit) -> None:
        calls[0] += 1
        if calls[0] >= call:
            raise OutOfTime("1h passed (--max-time)")

    patch.setattr(TimeLimit, "check", check)
    return calls


@pytest.fixture(scope="module")
def num_checks(unbroken: Unbroken, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return the number of checks of the time during the validations of a whole run."""
    with pytest.MonkeyPatch.context() as patch:
        calls = let_time_be_up_at(10**9, patch)
        invoke(unbroken.command(tmp_path_factory.mktemp("count") / "model"))
    return calls[0]


@representative("share", [0.4, 0.0, 0.2, 0.6, 0.8, 1.0])
def test_r10_validation_that_was_cut_off_is_made_by_the_run_that_goes_on(
    share: float,
    unbroken: Unbroken,
    num_checks: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        let_time_be_up_at(1 + round(share * (num_checks - 1)), patch)
        stopped = invoke(unbroken.command(tmp_path / "model"))
    left = left_behind(tmp_path / "model")

    result = invoke(unbroken.command(tmp_path / "model"))

    assert stopped.code == 0, stopped.err
    assert "1h passed (--max-time) during the validation" in stopped.err
    assert "repeat the command to resume" in stopped.err
    assert (tmp_path / "model/model.safetensors").exists()
    update = left["state"]["update"]
    assert update % 3 == 0
    assert left["state"]["validated_update"] == max(0, update - 3)
    assert [line["update"] for line in left["metrics"] if line["event"] == "valid"] == [
        *range(3, update, 3)
    ]
    assert result.code == 0, result.err
    assert left_behind(tmp_path / "model") == unbroken.left


def stop_after(updates: int, patch: pytest.MonkeyPatch) -> None:
    """Let the time be up after an update, early enough for a validation."""

    def interruption(state: TrainState, *_: Any, **__: Any) -> Callable[[], Stopped | None]:
        stop = Stopped("1h passed (--max-time)", is_complete=False, validate_first=True)
        return lambda: stop if state.update == updates else None

    patch.setattr("tfm_cli.training.run.interruption", interruption)


def test_r10_last_weights_are_validated_when_time_is_up_and_the_run_goes_on_as_if_not(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = []
    for updates in (1, 4, 8, 9):
        with monkeypatch.context() as patch:
            stop_after(updates, patch)
            stopped = invoke(unbroken.command(tmp_path / "model"))
        assert stopped.code == 0, stopped.err
        assert f"stopped after update {updates}: 1h passed (--max-time); " in stopped.err
        lines = [each for each in metrics(tmp_path / "model") if each["event"] == "valid"]
        validated.append([(each["update"], each["scheduled"]) for each in lines])

    result = invoke(unbroken.command(tmp_path / "model"))

    assert validated == [
        [(1, False)],
        [(3, True), (4, False)],
        [(3, True), (6, True), (8, False)],
        [(3, True), (6, True), (9, True)],  # nothing is validated twice
    ]
    assert result.code == 0, result.err
    assert left_behind(tmp_path / "model") == unbroken.left


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_r03_signal_ends_a_validation_which_the_run_that_goes_on_makes(
    share: float,
    unbroken: Unbroken,
    num_checks: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call, calls, check = 1 + round(share * (num_checks - 1)), [0], TimeLimit.check

    def signalling(limit: TimeLimit) -> None:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # it reaches the main thread
        check(limit)

    with monkeypatch.context() as patch:
        patch.setattr(TimeLimit, "check", signalling)
        stopped = invoke(unbroken.command(tmp_path / "model"))
    left = left_behind(tmp_path / "model")

    result = invoke(unbroken.command(tmp_path / "model"))

    assert stopped.code == 143, stopped.err
    assert "SIGTERM was received during the validation; " in stopped.err
    update = left["state"]["update"]
    assert left["state"]["validated_update"] == update - 3
    assert result.code == 0, result.err
    assert left_behind(tmp_path / "model") == unbroken.left


@pytest.mark.torture
def test_r10_validation_that_is_cut_off_again_and_again_changes_nothing(
    unbroken: Unbroken, num_checks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in (1, 2, 1 + num_checks // 2, 1, 3):
        with monkeypatch.context() as patch:
            let_time_be_up_at(call, patch)
            stopped = invoke(unbroken.command(tmp_path / "model"))
        assert stopped.code == 0, stopped.err

    again = invoke(unbroken.command(tmp_path / "model"))

    assert again.code == 0, again.err
    assert left_behind(tmp_path / "model") == unbroken.left


def test_r10_checkpoint_of_a_validation_that_was_made_late_is_that_of_the_unbroken_run(
    unbroken: Unbroken, num_checks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last validation is at the last update: nothing else would save what it found."""
    with monkeypatch.context() as patch:
        let_time_be_up_at(num_checks, patch)
        invoke(unbroken.command(tmp_path / "model"))
    invoke(unbroken.command(tmp_path / "model"))

    again = invoke(unbroken.command(tmp_path / "model"))

    assert again.code == 0, again.err
    assert f"stopped after update {UPDATES}: {UPDATES} updates made" in again.err
    assert left_behind(tmp_path / "model") == unbroken.left


def test_r10_command_without_time_for_a_validation_says_that_it_needs_more(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            let_time_be_up_at(1, patch)
            lines.append(invoke(unbroken.command(tmp_path / "model")).err)

    assert "stopped after update 3: 1h passed (--max-time) during the validation; " in lines[0]
    assert (
        "stopped after update 3: 1h passed (--max-time) during the validation, which " in lines[1]
    )


def most_seconds(max_time: float) -> float:
    """When a command has to have ended: machines that are busy take their time to start one."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return max_time + MOST_LATE + (time.monotonic() - began)


def ended_after(
    arguments: list[str], **named: Any
) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds that `tfm` took, and how it ended; no process of its group is left."""
    began = time.monotonic()
    process = subprocess.Popen(
        [*TFM, *arguments],
        stderr=subprocess.PIPE, text=True, start_new_session=True, **named,
    )  # fmt: skip
    _, err = process.communicate(timeout=120)
    seconds = time.monotonic() - began
    return seconds, subprocess.CompletedProcess(arguments, process.returncode, None, err)


def test_r03_time_that_is_up_ends_a_wait_for_text(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as pipe:
        pipe.write(b"a\tb\n" * 100)
        pipe.flush()

        seconds, done = ended_after(
            ["train", "--pairs", "-", "--pairs-format", "tsv", "-o", str(tmp_path / "model"),
             "--max-time", "1s"],
            stdin=read_end,
        )  # fmt: skip
    os.close(read_end)

    assert done.returncode == 0, done.stderr
    assert "stopped before the first update: 1s passed (--max-time)" in done.stderr
    assert seconds < most_seconds(1)
    assert not (tmp_path / "model").exists()


@pytest.mark.torture
def test_r03_time_that_is_up_ends_the_learning_of_a_tokenizer(tmp_path: Path) -> None:
    """SentencePiece needs minutes for this text, whether it is asked to end or not."""
    random_text = os.urandom(6_000_000).hex()
    lines = [random_text[start : start + 120] for start in range(0, len(random_text), 120)]
    for name in ("s", "t"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")

    seconds, done = ended_after(
        ["train", "-s", str(tmp_path / "s"), "-t", str(tmp_path / "t"), "-o",
         str(tmp_path / "model"), "--set", "tokenizer.vocab_size=32000", "--max-time", "4s"]
    )  # fmt: skip
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    processes = [
        path.read_bytes().split(b"\0")
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.parent.exists()
    ]

    assert done.returncode == 0, done.stderr
    assert "stopped before the first update: 4s passed (--max-time)" in done.stderr
    assert seconds < most_seconds(4)
    assert not [words for words in processes if b"tfm_cli.tokenizer.training" in words]


@pytest.mark.torture
def test_r03_time_that_is_up_ends_a_validation(tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    """An untrained model, more and longer validation text than there is time for."""
    text = write_part(tiny_corpus, tmp_path, pairs=55, valid=8)
    for name in ("valid.en", "valid.de"):
        lines = (tmp_path / name).read_text(encoding="utf-8").split("\n")[:8]
        long_lines = [" ".join(lines) for _ in range(16_000)]
        (tmp_path / name).write_text("\n".join(long_lines) + "\n", encoding="utf-8")

    seconds, done = ended_after(
        ["train", *text, "--preset", "small", "--vocab-size", "300", "--valid-freq", "1",
         "--valid-metrics", "bleu", "-o", str(tmp_path / "model"), "--max-time", "35s"]
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "stopped after update 1: 35s passed (--max-time) during the validation" in done.stderr
    assert seconds < most_seconds(35)
    assert (tmp_path / "model/model.safetensors").exists()


def test_r10_loops_are_ended_whatever_the_time(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow clock shortens nothing: the scores of two runs of different speed are the same."""
    ended = []

    def slow(ids: list[int]) -> bool:
        time.sleep(0.001)
        ended.append(is_loop(ids))
        return ended[-1]

    monkeypatch.setattr("tfm_cli.decoding.greedy.is_loop", slow)
    result = invoke(unbroken.command(tmp_path / "model", "--max-time", "1h"))

    assert result.code == 0, result.err
    assert left_behind(tmp_path / "model") == unbroken.left
