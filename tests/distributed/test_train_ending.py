"""Ranks end together, and one of them reports the reason."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.distributed import ranks
from tests.runs import SMALL_RUN, checkpoints, metrics, write_part
from tests.tiers import representative
from tfm_cli.errors import OutputError

OFTEN = ["--disp-freq", "1", "--valid-freq", "50", "--save-freq", "5", "--update-freq", "1"]


@pytest.fixture(scope="module")
def unbroken(text: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of 40 updates of two ranks, which do not depend on sharding."""
    directory = tmp_path_factory.mktemp("unbroken")
    done = ranks.run(directory / "s", command(text, directory / "model", updates=40))
    assert ranks.codes(done) == [0, 0], done
    return losses(directory / "model")


def command(text: list[str], output: Path, *more: str, updates: int = 12) -> list[str]:
    flags = ["-o", str(output), "--max-updates", str(updates)]
    return ["train", *text, *SMALL_RUN, *OFTEN, *flags, *more]


def fail_at(number: int, error: Exception, *, rank: int) -> Callable[[int], None]:
    """Raise an error in an update of one rank."""

    def prepare(this: int) -> None:
        from tfm_cli.training import loop, update

        def watched(*arguments: Any, **named: Any) -> Any:
            if arguments[3].number == number and this == rank:
                raise error
            return update.update(*arguments, **named)

        loop.update = watched  # type: ignore[attr-defined]  # imported there

    return prepare


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in metrics(output) if line["event"] == "train"]


@pytest.mark.slow
@representative(
    ("number", "rank", "strategy"),
    [(signal.SIGTERM, 1, "ddp"), (signal.SIGINT, 0, "ddp"), (signal.SIGTERM, 1, "fsdp")],
)
def test_signal_to_one_stops_all_after_the_same_update(
    number: signal.Signals,
    rank: int,
    strategy: str,
    text: list[str],
    unbroken: list[float],
    tmp_path: Path,
) -> None:
    more = ["--set", f"parallel.strategy={strategy}"]
    at_work = ranks.start(tmp_path / "s", command(text, tmp_path / "parts", *more, updates=40))
    at_work.wait_for("update      7")
    at_work.signal(rank, number)
    stopped = at_work.ended()
    newest = int(checkpoints(tmp_path / "parts")[-1].name.removeprefix("update-"))
    gone_on = ranks.run(tmp_path / "s", command(text, tmp_path / "parts", *more, updates=40))

    assert ranks.codes(stopped) == [128 + number] * 2, stopped
    assert f"stopped after update {newest}: {number.name} was received; " in stopped[0].err
    assert "repeat the command to resume" in stopped[0].err
    assert "stopped" not in stopped[1].err
    assert ranks.errors(stopped) == []
    assert ranks.codes(gone_on) == [0, 0]
    assert 7 <= newest < 40
    assert losses(tmp_path / "parts") == pytest.approx(unbroken, rel=1e-6)


@pytest.mark.slow
def test_slow_rank_0_still_reports_the_signal(text: list[str], tmp_path: Path) -> None:
    def prepare(rank: int) -> None:
        from tfm_cli.training import run

        closing_line = run._closing_line

        def delayed(*arguments: Any) -> str:
            time.sleep(1.5)
            return closing_line(*arguments)

        vars(run)["_closing_line"] = delayed

    train = command(text, tmp_path / "m", updates=9999)
    at_work = ranks.start(tmp_path / "s", train, prepare=prepare)
    at_work.wait_for("update      7")
    at_work.signal(1, signal.SIGTERM)
    stopped = at_work.ended()

    assert ranks.codes(stopped) == [143, 143], stopped
    assert ": SIGTERM was received; " in stopped[0].err
    assert ranks.errors(stopped) == []
    assert "of 2" not in stopped[1].err


@pytest.mark.slow
@representative(("killed", "left"), [(1, 0), (0, 1)])
@representative("strategy", ["ddp", "fsdp"])
def test_killed_rank_ends_the_others_with_a_message(
    killed: int, left: int, strategy: str, text: list[str], tmp_path: Path
) -> None:
    more = ["--set", f"parallel.strategy={strategy}"]
    at_work = ranks.start(tmp_path / "s", command(text, tmp_path / "m", *more, updates=9999))
    at_work.wait_for("update      7")
    at_work.signal(killed, signal.SIGKILL)
    done = at_work.ended()

    newest = int(checkpoints(tmp_path / "m")[-1].name.removeprefix("update-"))
    gone_on = ranks.run(tmp_path / "s", command(text, tmp_path / "m", *more, updates=newest + 2))

    assert (done[killed].code, done[left].code) == (137, 5)
    (error,) = ranks.errors(done)
    ended = f"rank {killed} exited before the work was done"
    assert re.fullmatch(rf"error: rank {left} of 2, (in|at) .*update [0-9]+: {ended}", error)
    assert "hint: see its own messages, and repeat the command" in done[left].err
    assert ranks.codes(gone_on) == [0, 0]
    assert f"resuming after update {newest} of " in gone_on[0].err


@pytest.mark.slow
@representative("strategy", ["ddp", "fsdp"])
@representative("rank", [0, 1])
def test_lack_of_memory_of_one_rank_ends_all(
    rank: int, strategy: str, text: list[str], tmp_path: Path
) -> None:
    done = ranks.run(
        tmp_path / "s",
        command(text, tmp_path / "model", "--set", f"parallel.strategy={strategy}"),
        prepare=fail_at(4, torch.OutOfMemoryError("out of memory"), rank=rank),
    )

    assert ranks.codes(done) == [5, 5]
    who = "rank 1 of 2, in update 4: " if rank else ""
    assert ranks.errors(done) == [f"error: {who}cpu: out of memory"]
    assert "hint: use smaller micro-batches, such as `--set training.micro_batch=" in done[rank].err


@pytest.mark.slow
@representative("strategy", ["ddp", "fsdp"])
def test_non_finite_loss_of_one_rank_is_found_on_the_device(
    strategy: str, text: list[str], tmp_path: Path
) -> None:
    """As on a GPU, which is not waited for between progress lines."""

    def prepare(rank: int) -> None:
        from tfm_cli.training import loop, parallel_model

        exact, calls = parallel_model.batch_loss, iter(range(1000))

        def infinite(*arguments: Any, **named: Any) -> Any:
            loss, nll = exact(*arguments, **named)
            return loss, nll / 0 if rank == 1 and next(calls) == 5 else nll

        loop._is_check_free = lambda device: False
        parallel_model.batch_loss = infinite

    more = ["--set", f"parallel.strategy={strategy}", "--disp-freq", "9", "--save-freq", "9"]
    more += ["--set", "training.bad_updates=stop"]
    done = ranks.run(tmp_path / "s", command(text, tmp_path / "model", *more), prepare=prepare)

    assert ranks.codes(done) == [6, 6], done
    (error,) = ranks.errors(done)
    assert "update 6: the loss is " in error
    assert " and the gradient norm nan; the weights were not changed" in error


@pytest.mark.slow
def test_disk_that_refuses_the_model_once_does_not_part_the_processes(
    tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    """The others, which do not write, bring their shards for a checkpoint that is not written."""

    def refuse(rank: int) -> None:
        from tfm_cli.training import artifacts

        exact = artifacts.save_weights  # type: ignore[attr-defined]  # imported there
        calls = iter(range(100))

        def full(*arguments: Any, **named: Any) -> None:
            if next(calls) == 0:
                full_disk = OSError(28, "No space left on device")
                raise OutputError("no room", os_error=full_disk)
            exact(*arguments, **named)

        artifacts.save_weights = full  # type: ignore[attr-defined]  # imported there

    text = write_part(tiny_corpus, tmp_path, pairs=55, valid=0)
    flags = ["--set", "parallel.strategy=fsdp"]
    done = ranks.run(tmp_path / "s", command(text, tmp_path / "model", *flags), prepare=refuse)

    assert ranks.codes(done) == [0, 0]
    assert "warning: no room; training continues" in done[0].err
    assert [path.name for path in checkpoints(tmp_path / "model")] == [
        "update-00000010",
        "update-00000012",
    ]


@pytest.mark.torture
def test_fault_of_ours_in_one_ends_all(text: list[str], tmp_path: Path) -> None:
    done = ranks.run(
        tmp_path / "s",
        command(text, tmp_path / "model"),
        prepare=fail_at(4, RuntimeError("shapes do not match"), rank=1),
    )

    assert ranks.codes(done) == [70, 70]
    assert "RuntimeError: shapes do not match\nrank 1 of 2, in update 4\n" in done[1].err
    assert "Traceback" not in done[0].err


@pytest.mark.torture
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_loss_of_one_that_is_no_number_ends_all_with_the_weights_as_they_were(
    strategy: str, text: list[str], tmp_path: Path
) -> None:
    def prepare(rank: int) -> None:
        from tfm_cli.training import parallel_model

        exact, calls = parallel_model.batch_loss, iter(range(100))

        def infinite(*arguments: Any, **named: Any) -> Any:
            loss, nll = exact(*arguments, **named)
            return loss, nll / 0 if rank == 1 and next(calls) == 6 else nll

        parallel_model.batch_loss = infinite

    done = ranks.run(
        tmp_path / "s",
        command(
            text, tmp_path / "model", "--set", f"parallel.strategy={strategy}",
            "--set", "training.bad_updates=stop",
        ),
        prepare=prepare,
    )  # fmt: skip

    assert ranks.codes(done) == [6, 6]
    (error,) = ranks.errors(done)
    assert ": the loss is inf and the gradient norm nan; the weights were not changed" in error
    assert "last good checkpoint is `" in done[0].err + done[1].err


@pytest.mark.torture
def test_time_that_is_up_for_one_stops_all(text: list[str], tmp_path: Path) -> None:
    def late(rank: int) -> None:
        from tfm_cli.training import interruption, run

        def watched(*arguments: Any, **named: Any) -> Any:
            late = named | {"began": named["began"] - 99 * rank}
            return interruption.interruption(*arguments, **late)

        run.interruption = watched  # type: ignore[attr-defined]  # imported there

    done = ranks.run(
        tmp_path / "s", command(text, tmp_path / "model", "--max-time", "60s"), prepare=late
    )

    assert ranks.codes(done) == [0, 0]
    assert "stopped after update 1: 60s passed (--max-time)" in done[0].err


@pytest.mark.slow
def test_decay_by_time_begins_and_ends_after_the_same_updates_on_all_ranks(
    text: list[str], tmp_path: Path
) -> None:
    def on_another_clock(rank: int) -> None:
        from tfm_cli.training import run, timed_decay

        class Watched(timed_decay.TimedDecay):
            def _num_updates(self) -> int:  # rank 0 decides
                return 6 if self._state.update == 5 - 2 * rank else 0

        run.TimedDecay = Watched  # type: ignore[attr-defined]  # imported there

    flags = ["--max-time", "1h", "--schedule", "wsd", "--lr-warmup", "2"]
    run = command(text, tmp_path / "model", *flags)
    end = run.index("--max-updates")
    done = ranks.run(tmp_path / "s", run[:end] + run[end + 2 :], prepare=on_another_clock)

    assert ranks.codes(done) == [0, 0], done
    assert "stopped after update 11: 11 updates made (--max-time)" in done[0].err
    (line,) = [line for line in metrics(tmp_path / "model") if line["event"] == "decay"]
    assert (line["update"], line["last_update"]) == (5, 11)
