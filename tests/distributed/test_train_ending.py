"""Processes that train together end together, and one of them says why."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.distributed import ranks
from tests.runs import SMALL_RUN, checkpoints, metrics, write_part

OFTEN = ["--disp-freq", "1", "--valid-freq", "50", "--save-freq", "5", "--update-freq", "1"]


@pytest.fixture(scope="module")
def text(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_part(tiny_corpus, tmp_path_factory.mktemp("text"), pairs=55)


def command(text: list[str], output: Path, *more: str, updates: int = 12) -> list[str]:
    flags = ["-o", str(output), "--max-updates", str(updates)]
    return ["train", *text, *SMALL_RUN, *OFTEN, *flags, *more]


def codes(done: list[ranks.Ended]) -> list[int]:
    return [each.code for each in done]


def errors(done: list[ranks.Ended]) -> list[str]:
    """What all of them together say went wrong."""
    lines = [line for each in done for line in each.err.split("\n")]
    return [line for line in lines if line.startswith("error: ")]


def fail_at(number: int, error: Exception, *, rank: int) -> Callable[[int], None]:
    """Let one process meet an error in an update."""

    def prepare(this: int) -> None:
        from tfm_cli.training import loop, update

        def watched(*arguments: Any, **named: Any) -> Any:
            if named["number"] == number and this == rank:
                raise error
            return update.update(*arguments, **named)

        loop.update = watched  # type: ignore[attr-defined]  # imported there

    return prepare


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in metrics(output) if line["event"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "rank", "strategy"),
    [(signal.SIGTERM, 1, "ddp"), (signal.SIGINT, 0, "ddp"), (signal.SIGTERM, 1, "fsdp")],
)
def test_signal_to_one_stops_all_after_the_same_update(
    number: signal.Signals, rank: int, strategy: str, text: list[str], tmp_path: Path
) -> None:
    more = ["--set", f"parallel.strategy={strategy}"]
    unbroken = ranks.run(tmp_path / "s", command(text, tmp_path / "whole", *more, updates=40))
    assert codes(unbroken) == [0, 0]

    at_work = ranks.start(tmp_path / "s", command(text, tmp_path / "parts", *more, updates=40))
    at_work.wait_for("update      7")
    at_work.signal(rank, number)
    stopped = at_work.ended()
    newest = int(checkpoints(tmp_path / "parts")[-1].name.removeprefix("update-"))
    gone_on = ranks.run(tmp_path / "s", command(text, tmp_path / "parts", *more, updates=40))

    assert codes(stopped) == [128 + number] * 2, stopped
    assert f"stopped after update {newest}: {number.name} was received; " in stopped[0].err
    assert "the same command goes on" in stopped[0].err
    assert "stopped" not in stopped[1].err
    assert errors(stopped) == []
    assert codes(gone_on) == [0, 0]
    assert 7 <= newest < 40
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "left"), [(1, 0), (0, 1)])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_process_that_is_killed_ends_the_others_with_words(
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
    assert errors(done) == [
        f"error: rank {left} of 2: another process ended before the work was done"
    ]
    assert "hint: see what it said, and start the same again" in done[left].err
    assert codes(gone_on) == [0, 0]
    assert f"going on after update {newest} of " in gone_on[0].err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
def test_want_of_memory_of_one_ends_all(
    rank: int, strategy: str, text: list[str], tmp_path: Path
) -> None:
    done = ranks.run(
        tmp_path / "s",
        command(text, tmp_path / "model", "--set", f"parallel.strategy={strategy}"),
        prepare=fail_at(4, torch.OutOfMemoryError("out of memory"), rank=rank),
    )

    assert codes(done) == [5, 5]
    who = "rank 1 of 2: " if rank else ""
    assert errors(done) == [f"error: {who}cpu: out of memory"]
    assert "hint: compute less at once, such as `--set training.micro_batch=" in done[rank].err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_loss_of_one_that_is_no_number_is_found_where_only_the_device_knows_of_it(
    strategy: str, text: list[str], tmp_path: Path
) -> None:
    """As on a GPU, which is not waited for between progress lines."""

    def prepare(rank: int) -> None:
        from tfm_cli.training import learner, loop

        exact, calls = learner.batch_loss, iter(range(1000))

        def infinite(*arguments: Any, **named: Any) -> Any:
            loss, nll = exact(*arguments, **named)
            return loss, nll / 0 if rank == 1 and next(calls) == 5 else nll

        loop._can_look = lambda device: False
        learner.batch_loss = infinite

    more = ["--set", f"parallel.strategy={strategy}", "--disp-freq", "9", "--save-freq", "9"]
    more += ["--set", "training.bad_updates=stop"]
    done = ranks.run(tmp_path / "s", command(text, tmp_path / "model", *more), prepare=prepare)

    assert codes(done) == [6, 6], done
    (error,) = errors(done)
    assert "update 6: the loss is " in error
    assert " and the gradient norm nan; the weights were not touched" in error


@pytest.mark.slow
def test_fault_of_ours_in_one_ends_all(text: list[str], tmp_path: Path) -> None:
    done = ranks.run(
        tmp_path / "s",
        command(text, tmp_path / "model"),
        prepare=fail_at(4, RuntimeError("shapes do not match"), rank=1),
    )

    assert codes(done) == [70, 70]
    assert "RuntimeError: rank 1 of 2: shapes do not match" in done[1].err
    assert "Traceback" not in done[0].err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_loss_of_one_that_is_no_number_ends_all_with_the_weights_as_they_were(
    strategy: str, text: list[str], tmp_path: Path
) -> None:
    def prepare(rank: int) -> None:
        from tfm_cli.training import learner

        exact, calls = learner.batch_loss, iter(range(100))

        def infinite(*arguments: Any, **named: Any) -> Any:
            loss, nll = exact(*arguments, **named)
            return loss, nll / 0 if rank == 1 and next(calls) == 6 else nll

        learner.batch_loss = infinite

    done = ranks.run(
        tmp_path / "s",
        command(
            text, tmp_path / "model", "--set", f"parallel.strategy={strategy}",
            "--set", "training.bad_updates=stop",
        ),
        prepare=prepare,
    )  # fmt: skip

    assert codes(done) == [6, 6]
    (error,) = errors(done)
    assert ": the loss is inf and the gradient norm nan; the weights were not touched" in error
    assert "last good checkpoint is `" in done[0].err + done[1].err


def test_other_settings_are_refused_by_name(text: list[str], tmp_path: Path) -> None:
    def its_own(rank: int) -> list[str]:
        more = ["--seed", "2", "--cpu-threads", "2"] if rank else ["--disp-freq", "9"]
        return command(text, tmp_path / "model", *more)

    done = ranks.run(tmp_path / "s", its_own)

    assert codes(done) == [2, 2]
    assert errors(done)[0].endswith("error: the processes do not agree on what to do")
    told = done[0].err + done[1].err
    assert "  rank 1: training.seed is 2, on rank 0 1\n" in told
    assert "  rank 1: training.disp_freq is 1, on rank 0 9\n" in told
    assert "cpu_threads" not in told
    assert "hint: give all of them the same settings and the same text" in told
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_other_text_is_refused_by_name(
    text: list[str], tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = write_part(tiny_corpus, tmp_path / "other", pairs=54)

    done = ranks.run(
        tmp_path / "s", lambda rank: command(other if rank else text, tmp_path / "model")
    )

    assert codes(done) == [2, 2]
    told = done[0].err + done[1].err
    assert "  rank 1: training text is " in told
    assert "validation text" not in told.partition("error: ")[2]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["corpus"]


@pytest.mark.slow
def test_file_that_one_lacks_ends_all(text: list[str], tmp_path: Path) -> None:
    missing = [str(tmp_path / "none.en") if each == text[1] else each for each in text]

    done = ranks.run(
        tmp_path / "s", lambda rank: command(missing if rank else text, tmp_path / "model")
    )

    assert codes(done) == [3, 3]
    (error,) = errors(done)
    assert error.startswith(f"error: rank 1 of 2: {tmp_path / 'none.en'}: ")


@pytest.mark.slow
def test_another_machine_needs_no_more_than_the_text(text: list[str], tmp_path: Path) -> None:
    def first_of_its_machine(rank: int) -> None:
        os.environ["LOCAL_RANK"] = "0"

    def run(updates: int) -> list[ranks.Ended]:
        return ranks.run(
            tmp_path / "s",
            lambda rank: command(text, tmp_path / f"of {rank}", updates=updates),
            prepare=first_of_its_machine,
        )

    begun, gone_on = run(3), run(6)

    assert codes(begun) == codes(gone_on) == [0, 0], gone_on
    assert "going on after update 3 of " in gone_on[0].err
    assert [path.name for path in (tmp_path / "of 1").iterdir()] == ["corpus"]


def test_standard_input_is_refused(text: list[str], tmp_path: Path) -> None:
    done = ranks.run(tmp_path / "s", ["train", "--pairs", "-", "-o", str(tmp_path / "model")])

    assert codes(done) == [2, 2]
    (error,) = errors(done)
    assert error.endswith("`--pairs -`: 2 processes cannot all read it")
    assert "hint: name a file that each of them can read" in done[0].err + done[1].err


@pytest.mark.slow
def test_refusal_of_rank_0_ends_all(text: list[str], tmp_path: Path) -> None:
    assert codes(ranks.run(tmp_path / "s", command(text, tmp_path / "model", updates=2))) == [0, 0]

    refused = ranks.run(tmp_path / "s", command(text, tmp_path / "model", "--dropout", "0.3"))
    again = ranks.run(
        tmp_path / "s", command(text, tmp_path / "model", "--dropout", "0.3", "--overwrite")
    )

    assert codes(refused) == [2, 2]
    (error,) = errors(refused)
    assert "holds a run with other settings; 1 change" in error
    assert codes(again) == [0, 0]
    assert len(losses(tmp_path / "model")) == 12


@pytest.mark.slow
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

    assert codes(done) == [0, 0]
    assert "stopped after update 1: 60s passed (--max-time)" in done[0].err
