"""A rank that is suspended or hangs ends all of them in time, and is named."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import ranks
from tests.distributed.ranks_run import command, fault
from tests.tiers import representative

pytestmark = pytest.mark.slow

LIMIT = ["--dist-timeout", "6"]


def errors(words: str) -> list[str]:
    return [line for line in words.split("\n") if line.startswith("error: ")]


@representative(("stopped", "world_size"), [(1, 2), (0, 2), (1, 3)])
def test_r49_stopped_rank_ends_all_and_is_named(
    stopped: int, world_size: int, text: list[str], tmp_path: Path
) -> None:
    at_work = ranks.start(
        tmp_path / "s", command(text, tmp_path / "m", *LIMIT),
        world_size=world_size, prepare=fault(f"update:7@{stopped}=stop"),
    )  # fmt: skip
    others = [rank for rank in range(world_size) if rank != stopped]
    for rank in others:
        at_work.wait_for_end(rank)
    words = [at_work.error_output(rank) for rank in others]
    at_work.signal(stopped, signal.SIGCONT)
    done = at_work.ended()

    assert [done[rank].code for rank in others] == [5] * len(others), done
    assert done[stopped].code == 5
    (error,) = errors("".join(words))
    late = f"rank {stopped} has (sent no heartbeat|not answered) for 6 s"  # whichever is seen first
    assert re.fullmatch(rf"error: rank [0-2] of {world_size}, in update 7: {late}", error), error
    hint = "hint: check whether it is stopped or its machine is down, and repeat the command, "
    assert f"{hint}on slow machines with a longer `--dist-timeout`\n" in "".join(words)


@pytest.mark.torture
def test_r49_rank_that_hangs_in_an_update_ends_all_and_is_named(
    text: list[str], tmp_path: Path
) -> None:
    def hang(rank: int) -> None:
        from tfm_cli.training import loop, update

        def watched(*arguments: Any, **named: Any) -> Any:
            if arguments[3].number == 4 and rank == 1:
                time.sleep(100)
            return update.update(*arguments, **named)

        loop.update = watched  # type: ignore[attr-defined]  # imported there

    began = time.monotonic()
    # Each has two batches: the one that does not hang waits in the second.
    done = ranks.run(
        tmp_path / "s", command(text, tmp_path / "m", *LIMIT, "--update-freq", "2"), prepare=hang
    )

    assert time.monotonic() - began < 60
    assert [each.code for each in done] == [5, 5]
    (error,) = errors(done[0].err + done[1].err)
    assert re.fullmatch(
        r"error: rank . of 2, in update 4: rank . has made no progress for 6 s", error
    )


@pytest.mark.torture
def test_r49_rank_that_does_not_come_is_named(text: list[str], tmp_path: Path) -> None:
    def stop(rank: int) -> None:
        if rank == 1:
            signal.raise_signal(signal.SIGSTOP)

    at_work = ranks.start(
        tmp_path / "s", command(text, tmp_path / "m", *LIMIT), world_size=3, prepare=stop
    )
    at_work.wait_for_end(0)
    at_work.signal(1, signal.SIGCONT)
    done = at_work.ended()

    assert done[0].code == 5
    assert errors(done[0].err) == ["error: rank 0 of 3: rank 1 did not join within 6 s"]
    assert [each.code for each in done] == [5, 5, 5]


@pytest.mark.torture
def test_r49_processes_that_were_all_stopped_go_on(text: list[str], tmp_path: Path) -> None:
    at_work = ranks.start(
        tmp_path / "s", command(text, tmp_path / "m", "--dist-timeout", "2"),
        prepare=fault("update:7=stop"),
    )  # fmt: skip
    at_work.wait_for("update      6 ")
    time.sleep(3)
    for rank in (0, 1):
        at_work.signal(rank, signal.SIGCONT)

    assert [each.code for each in at_work.ended()] == [0, 0]
