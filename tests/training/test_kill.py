"""Killed at any operation on the disk, or at any time, the same command ends with the same bits."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests import forked
from tests.conftest import invoke
from tests.runs import checkpoints, left_behind
from tests.training.small_run import SmallRun, unfinished
from tfm_cli.files.durable import Operation, watched
from tfm_cli.files.faults import VARIABLE

PARTS = 16  # of all operations, so that several processes share them


def killed(small: SmallRun, output: Path, number: int, action: str = "kill") -> None:
    """Let the command be killed at an operation, and check that it was."""
    result = forked.run(
        output.with_name("words"), small.command(output), {VARIABLE: f"durable:{number}={action}"}
    )
    assert result.code == -signal.SIGKILL, result.err


def goes_on(small: SmallRun, output: Path, committed: int) -> None:
    """Check that the same command ends with the same bits, and loses no checkpoint on the way."""
    result = forked.run(output.with_name("words"), small.command(output))

    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert left_behind(output) == small.left
    assert unfinished(output) == []
    if committed:
        _, _, position = result.err.partition("resuming after update ")
        assert int(position.split()[0]) >= committed, result.err


@pytest.mark.parametrize("number", [1, 60, 100])
def test_r01_kill_at_some_operations(number: int, small: SmallRun, tmp_path: Path) -> None:
    killed(small, tmp_path / "model", number)

    goes_on(small, tmp_path / "model", small.newest_committed(number - 1))


def test_r01_kill_in_the_middle_of_a_write(small: SmallRun, tmp_path: Path) -> None:
    number = next(
        number
        for number, each in enumerate(small.operations, 1)
        if each.path.name == "optimizer.safetensors" and each.kind == "write"
    )
    killed(small, tmp_path / "model", number, "tear")

    goes_on(small, tmp_path / "model", small.newest_committed(number - 1))


@pytest.mark.torture
@pytest.mark.parametrize("action", ["kill", "eio"])
def test_r01_fault_while_the_best_weights_by_schedule_are_taken_back(
    action: str, small: SmallRun, tmp_path: Path
) -> None:
    operations: list[Operation] = []
    unbroken = shutil.copytree(small.output, tmp_path / "unbroken" / "model")
    with watched(operations.append):
        assert invoke(small.command(unbroken, "--max-updates", "9")).code == 0
    places = [f"{each.path} {each.target}" for each in operations]
    numbers = [number for number, place in enumerate(places, 1) if "best-on-schedule" in place]
    assert len(numbers) >= 4  # two files, and their folder, which is renamed and removed

    for number in numbers:
        output = shutil.copytree(small.output, tmp_path / f"{number}" / "model")
        command = small.command(output, "--max-updates", "9")
        broken = forked.run(tmp_path / "words", command, {VARIABLE: f"durable:{number}={action}"})
        result = forked.run(tmp_path / "words", command)

        assert broken.code in (-signal.SIGKILL, 5, 0)
        assert "Traceback" not in broken.err
        assert result.code == 0, result.err
        assert left_behind(output) == left_behind(unbroken)


@pytest.mark.torture
@pytest.mark.parametrize("part", range(PARTS))
def test_r01_kill_at_every_operation(part: int, small: SmallRun, tmp_path: Path) -> None:
    for number in range(part + 1, len(small.operations) + 1, PARTS):
        output = tmp_path / f"{number}" / "model"
        killed(small, output, number)
        goes_on(small, output, small.newest_committed(number - 1))


@pytest.mark.torture
def test_r01_kill_in_the_middle_of_writes(small: SmallRun, tmp_path: Path) -> None:
    kinds = [each.kind for each in small.operations]
    numbers = [number for number, kind in enumerate(kinds, 1) if kind == "write"]
    for number in numbers[::4]:
        output = tmp_path / f"{number}" / "model"
        killed(small, output, number, "tear")
        goes_on(small, output, small.newest_committed(number - 1))


@pytest.mark.torture
def test_r01_kill_at_random_times(small: SmallRun, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)  # shown if the test fails
    chance, kills, runs = random.Random(seed), 0, 0
    while kills < 50:
        output = tmp_path / f"{runs}" / "model"
        runs += 1
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            words = output.with_name("words")
            pid = forked.start(words, small.command(output))
            time.sleep(chance.uniform(0, 1))
            os.kill(pid, signal.SIGKILL)  # it waits to be asked for its end, so this is it
            result = forked.ended(pid, words)
            code, kills = result.code, kills + (result.code == -signal.SIGKILL)
            assert code in (0, -signal.SIGKILL), result.err
        assert left_behind(output) == small.left
        assert unfinished(output) == []


def test_r03_second_signal_ends_it_at_once(small: SmallRun, tmp_path: Path) -> None:
    output, words = tmp_path / "model", tmp_path / "words"
    syncs = [
        number
        for number, each in enumerate(small.operations, 1)
        if each.kind == "sync" and each.path.parent.name.startswith(".update-00000004.")
    ]
    # The save of update 4 takes seconds, so that there is time for another signal.
    slow = ",".join(f"durable:{number}=sleep" for number in syncs)
    pid = forked.start(words, small.command(output), {VARIABLE: slow})
    forked.wait_for(lambda: "update      4" in (words / "err").read_text())
    forked.wait_for(lambda: any(output.glob("checkpoints/.update-00000004.*/manifest.json")))

    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    forked.wait_for(lambda: "a second signal ends it at once" in (words / "err").read_text())
    os.kill(pid, signal.SIGTERM)
    result = forked.ended(pid, words)

    assert result.code == -signal.SIGTERM
    assert time.monotonic() - began < len(syncs)  # it did not wait for the save
    assert [path.name for path in checkpoints(output)] == ["update-00000002"]
    goes_on(small, output, 2)
