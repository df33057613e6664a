"""A signal to one of several processes, or to all, stops all of them after the same update."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.distributed import ranks, torchrun
from tests.distributed.ranks_run import RanksRun, fault
from tests.runs import checkpoints, left_behind
from tests.tiers import representative

pytestmark = pytest.mark.slow


def newest(output: Path) -> int:
    return int(checkpoints(output)[-1].name.removeprefix("update-"))


@representative("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_r03_signal_to_the_launcher_and_to_all_saves_and_leaves_nothing(
    number: signal.Signals, whole: RanksRun, tmp_path: Path
) -> None:
    """SIGTERM comes to the ranks twice, by themselves and from the launcher: it is one."""
    output = tmp_path / "model"
    command = whole.command(output, "--save-freq", "500", updates=99_999)

    with torchrun.start(tmp_path / "job", command) as job:
        job.wait_for("update      7 ")
        shared, ports = job.shared_memory(), job.ports()
        if number == signal.SIGTERM:
            for pid in job.ranks().values():
                os.kill(pid, number)
        job.launcher.send_signal(number)
        code = job.ended()
        words, left = job.words(), job.left(shared, ports)

    assert code != 0
    assert newest(output) >= 7
    assert f"stopped after update {newest(output)}: {number.name} was received" in words
    assert words.count("saving after this update; a second signal ends it at once") == 1
    assert left == []


@pytest.mark.torture
@pytest.mark.parametrize("rank", [0, 1])
def test_r03_second_signal_ends_all_at_once_with_the_old_checkpoint_whole(
    rank: int, whole: RanksRun, tmp_path: Path
) -> None:
    output = tmp_path / "model"

    at_work = ranks.start(
        tmp_path / "s", whole.command(output), prepare=fault(f"update:8@{1 - rank}=stop")
    )
    at_work.wait_for("update      7 ")
    at_work.signal(rank, signal.SIGTERM)
    time.sleep(0.3)
    at_work.signal(rank, signal.SIGTERM)
    at_work.wait_for_end(rank)
    with contextlib.suppress(ProcessLookupError):  # it may have ended before it was to stop
        at_work.signal(1 - rank, signal.SIGCONT)
    done = at_work.ended()
    again = ranks.run(tmp_path / "s", whole.command(output))

    assert done[rank].code == 128 + signal.SIGTERM
    assert done[1 - rank].code == 5
    assert f"rank {rank} exited before the work was done" in done[1 - rank].err
    assert "resuming after update 5 of " in again[0].err
    assert left_behind(output) == whole.left
