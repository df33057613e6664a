"""`tfm translate --workers`: the same output, and no process that outlives the command."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TFM, RunTfm, TinyCorpus
from tests.tiers import representative
from tfm_cli.translation import worker_pool as module

PATIENCE = 120  # seconds, for a machine that has much else to do

Start = Callable[..., "subprocess.Popen[bytes]"]


def test_output_is_the_same_with_any_number_of_processes(
    tiny_model: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    command = ["translate", "-m", str(tiny_model), "--input", tiny_corpus.path("test.en"), "-q"]
    command += ["--device", "cpu", "--precision", "fp32", "--n-best", "2", "--max-tokens", "200"]

    alone, together = (run_tfm([*command, "--workers", count]) for count in ("1", "2"))

    assert (together.code, together.err) == (0, "")
    assert together.out == alone.out


def test_scores_are_the_same_with_any_number_of_processes(
    tiny_model: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    command = ["evaluate", tiny_corpus.path("test.de"), "--model", str(tiny_model)]
    command += ["--source", tiny_corpus.path("test.en"), "--device", "cpu"]

    alone, together, by_itself = (
        run_tfm([*command, *flags]) for flags in (["--workers", "1"], ["--workers", "2"], [])
    )

    assert together.code == 0
    assert together.out == alone.out == by_itself.out


@pytest.mark.parametrize("value", ["-1", "x", "1025"])
def test_number_that_makes_no_sense_is_a_usage_error(run_tfm: RunTfm, value: str) -> None:
    result = run_tfm(["translate", "--workers", value])

    assert (result.code, result.out) == (2, "")
    assert "--workers" in result.err


def test_workers_need_a_model_in_evaluation(tiny_corpus: TinyCorpus, run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", tiny_corpus.path("test.de"), "--workers", "2"])

    assert (result.code, result.err) == (2, "error: `--workers` needs `--model`\n")


# --- processes -----------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = place.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(place.parent.name))
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)


def are_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture
def start(tiny_model: Path) -> Iterator[Start]:
    """`start(stdin, flags…)`: a command in a process group of its own."""
    started = []

    def popen(stdin: int, *flags: str) -> "subprocess.Popen[bytes]":
        command = [*TFM, "translate", "--model", str(tiny_model)]
        command += ["--device", "cpu", "--precision", "fp32", "--workers", "2"]
        process = subprocess.Popen(
            [*command, *flags], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def at_work(start: Start, tmp_path: Path) -> tuple["subprocess.Popen[bytes]", list[int]]:
    """A command that has minutes to go, and the processes that it has started."""
    (tmp_path / "input").write_text("one two three four five six\n" * 500_000, encoding="utf-8")
    process = start(subprocess.DEVNULL, "--input", str(tmp_path / "input"), "--output", os.devnull)
    wait_until(lambda: len(children(process.pid)) == 2)
    return process, children(process.pid)


@pytest.mark.slow
def test_killed_process_ends_the_command_with_a_word(
    at_work: tuple["subprocess.Popen[bytes]", list[int]],
) -> None:
    process, pids = at_work

    os.kill(pids[0], signal.SIGKILL)

    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (5, b"")
    assert err == (
        b"error: a process that translates was killed by signal 9\n"
        b"hint: if memory ran out, lower `--workers` or `--max-tokens`\n"
    )
    assert are_gone(pids)


@pytest.mark.slow
@representative(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, b"interrupted\n"), (signal.SIGTERM, 143, b"terminated\n"),
        (signal.SIGHUP, 129, b"hung up\n"),
    ],
)  # fmt: skip
@representative("group", [False, True])
def test_signal_is_told_once_and_ends_all(
    at_work: tuple["subprocess.Popen[bytes]", list[int]],
    group: bool, number: signal.Signals, code: int, word: bytes,
) -> None:  # fmt: skip
    process, pids = at_work

    (os.killpg if group else os.kill)(process.pid, number)

    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (code, b"", word)
    wait_until(lambda: are_gone(pids))


@pytest.mark.slow
def test_processes_end_with_a_command_that_was_killed(
    at_work: tuple["subprocess.Popen[bytes]", list[int]],
) -> None:
    process, pids = at_work

    process.kill()

    process.communicate(timeout=PATIENCE)  # the pipes are open for as long as one lives
    wait_until(lambda: are_gone(pids))


@pytest.mark.slow
def test_what_came_through_a_pipe_is_answered_before_more_comes(start: Start) -> None:
    process = start(subprocess.PIPE, "--max-tokens", "100")
    assert process.stdin is not None
    assert process.stdout is not None

    received = []
    for count in (1, 200, 1):
        process.stdin.write(b"one two three\n" * count)
        process.stdin.flush()
        received.append([process.stdout.readline() for _ in range(count)])
    assert len(children(process.pid)) == 2
    waiting = select.select([process.stdout], [], [], 0)[0]
    out, err = process.communicate(timeout=PATIENCE)

    assert received == [[b"eins zwei drei\n"] * count for count in (1, 200, 1)]
    assert (waiting, out, process.returncode) == ([], b"", 0)
    assert err.startswith(b"translated 202 lines in ")


@pytest.mark.slow
def test_reader_that_has_enough_ends_all(start: Start, tmp_path: Path) -> None:
    (tmp_path / "input").write_text("one two three four five six\n" * 500_000, encoding="utf-8")
    process = start(subprocess.DEVNULL, "--input", str(tmp_path / "input"))
    assert process.stdout is not None
    wait_until(lambda: len(children(process.pid)) == 2)
    pids = children(process.pid)

    process.stdout.close()

    assert process.wait(PATIENCE) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert are_gone(pids)
