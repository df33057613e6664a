"""R15 with several processes: one that memory fails changes nothing, and keeps none waiting."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.ranks_run import command, fault
from tests.distributed.test_train import in_double
from tests.runs import checkpoints, left_behind
from tests.tiers import representative
from tests.training.test_out_of_memory import RUN, assert_same_weights
from tfm_cli.files import faults


def with_faults(text: str) -> Callable[[int], None]:
    def prepare(rank: int) -> None:
        os.environ[faults.VARIABLE] = text
        faults.reset_faults()
        in_double()

    return prepare


@pytest.mark.slow
@representative("where", ["2@1", "3@0", "4", "2@1=memory,micro_batch:3@1"])
def test_r15_lack_of_one_process_changes_nothing_for_all(
    where: str, text: list[str], tmp_path: Path
) -> None:
    command = ["train", *text, *RUN]
    single = ranks.run(
        tmp_path / "s", [*command, "-o", str(tmp_path / "one"), "--update-freq", "2"], world_size=1,
        prepare=with_faults(""),
    )  # fmt: skip

    done = ranks.run(
        tmp_path / "s", [*command, "-o", str(tmp_path / "two"), "--update-freq", "1"],
        prepare=with_faults(f"micro_batch:{where}=memory"),
    )  # fmt: skip

    assert [each.code for each in [*single, *done]] == [0, 0, 0], done
    assert_same_weights(tmp_path / "two", tmp_path / "one", atol=1e-8)


@pytest.mark.torture
@pytest.mark.parametrize("rank", [0, 1])
def test_r10_run_in_which_one_process_lacked_memory_goes_on_to_the_same_bits(
    rank: int, text: list[str], tmp_path: Path
) -> None:
    """All compute no more at once from then on, whoever of them goes on."""
    lack = fault(f"micro_batch:2@{rank}=memory")

    def learn(name: str, updates: int, prepare: ranks.Prepare) -> None:
        run = command(text, tmp_path / name, "--set", "training.micro_batch=64", updates=updates)
        done = ranks.run(tmp_path / "s", run, prepare=prepare)
        assert [each.code for each in done] == [0, 0], done

    learn("unbroken", 10, lack)
    learn("broken", 4, lack)
    learn("broken", 10, fault(""))

    state = json.loads((checkpoints(tmp_path / "broken")[-1] / "state.json").read_bytes())["state"]
    assert state["memory_splits"] == 1
    assert state["max_positions_per_pass"] > 0
    assert left_behind(tmp_path / "broken") == left_behind(tmp_path / "unbroken")


@pytest.mark.torture
def test_r15_lack_where_weights_are_in_shards_is_told_and_ends_all(
    text: list[str], tmp_path: Path
) -> None:
    command = ["train", *text, *RUN, "-o", str(tmp_path / "m"), "--set", "parallel.strategy=fsdp"]

    done = ranks.run(tmp_path / "s", command, prepare=with_faults("micro_batch:3@1=memory"))

    assert [each.code for each in done] == [5, 5]
    said = done[0].err + done[1].err
    assert re.search("^error: rank 1 of 2, in update 2: cpu: out of memory$", said, re.MULTILINE)
    assert "hint: use smaller micro-batches, such as `--set training.micro_batch=1024`" in said
