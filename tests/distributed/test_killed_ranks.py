"""A process that is killed among several costs no bit; torchrun starts them again by itself."""

import signal
from pathlib import Path

import pytest

from tests.distributed import ranks, torchrun
from tests.distributed.ranks_run import RanksRun, fault
from tests.runs import checkpoints, left_behind
from tests.tiers import representative

pytestmark = pytest.mark.slow


@representative(("update", "rank"), [(1, 0), (6, 1), (11, 0), (12, 1)])
def test_r48_killed_at_an_update_the_same_command_ends_with_the_same_bits(
    update: int, rank: int, whole: RanksRun, tmp_path: Path
) -> None:
    command = whole.command(tmp_path / "model")

    killed = ranks.run(tmp_path / "s", command, prepare=fault(f"update:{update}@{rank}=kill"))
    again = ranks.run(tmp_path / "s", command)

    assert (killed[rank].code, killed[1 - rank].code) == (137, 5)
    words = f"error: rank {1 - rank} of 2, in update {update}: rank {rank} exited before the work"
    assert words in killed[1 - rank].err
    assert [each.code for each in again] == [0, 0], again
    assert left_behind(tmp_path / "model") == whole.left


@representative("before", [25, 4, 0])
def test_r48_killed_during_a_save_the_same_command_ends_with_the_same_bits(
    before: int, whole: RanksRun, tmp_path: Path
) -> None:
    number = whole.number_within_save(10) - before
    command = whole.command(tmp_path / "model")

    killed = ranks.run(tmp_path / "s", command, prepare=fault(f"durable:{number}@0=kill"))
    saved = checkpoints(tmp_path / "model")[-1].name
    again = ranks.run(tmp_path / "s", command)

    assert [each.code for each in killed] == [137, 5]
    assert saved == "update-00000005"
    assert [each.code for each in again] == [0, 0], again
    assert left_behind(tmp_path / "model") == whole.left


@pytest.mark.torture
@pytest.mark.parametrize("fails", ["save@0=kill", "update:8@1=stop"])
def test_r48_torchrun_starts_again_what_was_killed_or_stopped(
    fails: str, whole: RanksRun, tmp_path: Path
) -> None:
    """`--overwrite` is for the first start: the next one goes on."""
    failpoint = fails.replace("save", f"durable:{whole.number_within_save(10)}")
    command = whole.command(tmp_path / "model", "--overwrite", "--dist-timeout", "20")

    with torchrun.start(tmp_path / "job", command, max_restarts=3, failpoint=failpoint) as job:
        job.wait_for("update      1 ")
        shared, ports = job.shared_memory(), job.ports()
        code = job.ended()
        words, left = job.words(), job.left(shared, ports)

    assert code == 0, words
    assert f"resuming after update 5 of `{tmp_path / 'model'}`" in words
    assert words.count("tokenizer: learned") == 1
    assert words.count("of 2, ") == 1  # who ended is said once
    assert left_behind(tmp_path / "model") == whole.left
    assert left == []


@pytest.mark.torture
def test_r53_nothing_outlives_a_launcher_that_was_killed_at_the_start(
    whole: RanksRun, tmp_path: Path
) -> None:
    """While a tokenizer is learned, or processes prepare text."""
    command = whole.command(tmp_path / "model", "--data-workers", "2", updates=99_999)

    with torchrun.start(tmp_path / "job", command) as job:
        job.wait_for("tokenizer: learned ")
        ports = job.ports()
        job.launcher.send_signal(signal.SIGKILL)
        job.ended()

        assert job.left(set(), ports) == []
    assert ports


def test_r53_nothing_outlives_a_launcher_that_was_killed(whole: RanksRun, tmp_path: Path) -> None:
    command = whole.command(tmp_path / "model", "--save-freq", "500", updates=99_999)

    with torchrun.start(tmp_path / "job", command) as job:
        job.wait_for("update      7 ")
        shared, ports = job.shared_memory(), job.ports()
        job.launcher.send_signal(signal.SIGKILL)
        job.ended()
        left, words = job.left(shared, ports), job.words()
    (saved,) = checkpoints(tmp_path / "model")
    newest = int(saved.name.removeprefix("update-"))

    assert left == []
    assert ports
    assert "warning: the launcher is gone\n" in words
    assert newest >= 7  # there was time to save
    assert f"stopped after update {newest}: SIGTERM was received" in words
