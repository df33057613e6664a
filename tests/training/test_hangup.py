"""A dropped connection saves what there is, as SIGTERM does; `nohup` lets a run go on."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tests.forked import PATIENCE
from tests.runs import SMALL_RUN, checkpoints, write_part
from tests.tiers import representative

# Progress is kept at once, however fast a tiny model is.
EAGER = """
import tfm_cli.translation.resumable_output
from tfm_cli.cli import main
tfm_cli.translation.resumable_output.COMMIT_SECONDS = 0.0
main()
"""


@pytest.fixture
def training(tiny_corpus: TinyCorpus, tmp_path: Path) -> list[str]:
    text = write_part(tiny_corpus, tmp_path, pairs=60, valid=4)
    return [
        "train", *text, *SMALL_RUN, "--disp-freq", "5", "--max-updates", "100000",
        "--output", str(tmp_path / "model"),
    ]  # fmt: skip


@pytest.fixture
def translation(tiny_model: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "in").write_bytes(b"".join(b"one two\nfive\n\n" for _ in range(1500)))
    return [
        "translate", "--model", str(tiny_model), "--buffer-size", "8", "--with-score",
        "--workers", "1", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"),
    ]  # fmt: skip


def started(
    arguments: list[str], *, prepare: Callable[[], object] = lambda: None, terminal: int = -1
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", EAGER, *arguments],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE if terminal < 0 else terminal,
        start_new_session=terminal >= 0,
        preexec_fn=prepare,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.01)


def trains(place: Path) -> Callable[[], bool]:
    metrics = place / "model" / "metrics.jsonl"
    return lambda: metrics.exists() and metrics.stat().st_size > 0


def lines_done(place: Path) -> int:
    journal = place / ".out.progress"
    return int(json.loads(journal.read_bytes())["position"]["lines"]) if journal.exists() else 0


def test_r03_dropped_connection_saves_and_the_same_command_goes_on(
    training: list[str], tmp_path: Path, run_tfm: RunTfm
) -> None:
    process = started(training)
    wait_until(trains(tmp_path), process)

    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)  # from the shell, and from the system
    stderr = process.communicate(timeout=PATIENCE)[1].decode()
    updates = int(checkpoints(tmp_path / "model")[-1].name.removeprefix("update-"))
    again = run_tfm([*training, "--max-updates", str(updates + 2)])

    assert process.returncode == 129
    assert "SIGHUP: saving after this update" in stderr
    assert f"stopped after update {updates}: SIGHUP was received; " in stderr
    assert again.code == 0
    assert f"resuming after update {updates} of " in again.err


def test_r03_translation_keeps_what_was_done(translation: list[str], tmp_path: Path) -> None:
    process = started(translation)
    wait_until(lambda: lines_done(tmp_path) > 50, process)

    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    stderr = process.communicate(timeout=PATIENCE)[1].decode()

    assert process.returncode == 129
    assert f"{lines_done(tmp_path)} lines are written" in stderr
    assert stderr.endswith("\nhung up\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@representative("command", ["train", "translate"])
def test_r03_nohup_lets_it_go_on(
    command: str, training: list[str], translation: list[str], tmp_path: Path
) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    if command == "train":
        process = started([*training, "--max-updates", "60"], prepare=ignore)
        wait_until(trains(tmp_path), process)
    else:
        process = started(translation, prepare=ignore)
        wait_until(lambda: lines_done(tmp_path) > 50, process)

    process.send_signal(signal.SIGHUP)
    stderr = process.communicate(timeout=PATIENCE)[1].decode()

    assert process.returncode == 0, stderr
    assert "SIGHUP" not in stderr
    assert "hung up" not in stderr


@pytest.mark.slow
@representative("command", ["train", "translate"])
def test_r03_terminal_that_is_gone_costs_nothing_that_was_done(
    command: str, training: list[str], translation: list[str], tmp_path: Path
) -> None:
    """The signal comes from the system, and no word can be written any more."""
    ours, terminal = pty.openpty()

    def control() -> None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = started(
        training if command == "train" else translation, prepare=control, terminal=terminal
    )
    os.close(terminal)
    if command == "train":
        wait_until(trains(tmp_path), process)
    else:
        wait_until(lambda: lines_done(tmp_path) > 50, process)

    os.close(ours)  # as a dropped connection does
    process.wait(timeout=PATIENCE)

    assert process.returncode == 129
    if command == "train":
        assert checkpoints(tmp_path / "model")
    else:
        assert lines_done(tmp_path) > 50


@pytest.mark.torture
def test_r03_words_for_a_terminal_that_is_gone_stop_no_training(
    training: list[str], tmp_path: Path
) -> None:
    """The shell keeps the signal from the job, as after `disown`."""
    ours, terminal = pty.openpty()
    process = started([*training, "--max-updates", "60"], terminal=terminal)
    os.close(terminal)
    wait_until(trains(tmp_path), process)

    os.close(ours)
    process.wait(timeout=PATIENCE)

    assert process.returncode == 0
    assert checkpoints(tmp_path / "model")[-1].name == "update-00000060"
