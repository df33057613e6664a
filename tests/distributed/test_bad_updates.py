"""R14 with several processes: they refuse the same updates, whichever of them met the number."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import ranks
from tests.distributed.test_train import in_double
from tests.runs import SMALL_RUN, checkpoints, metrics
from tests.tiers import representative
from tfm_cli.files import faults as failpoint
from tfm_cli.training import loop

pytestmark = pytest.mark.slow

RUN = [
    *SMALL_RUN,
    "--max-updates",
    "9",
    "--disp-freq",
    "2",
    "--valid-freq",
    "5",
    "--save-freq",
    "4",
]
RETRY = ["--set", "training.bad_updates=retry"]


def spoiled(faults: str, *, blind: bool = False) -> Callable[[int], None]:
    """Each process in double, with faults; `blind` as on a GPU, that nobody waits for."""

    def prepare(rank: int) -> None:
        os.environ[failpoint.VARIABLE] = faults
        failpoint.reset_faults()
        in_double()
        if blind:
            loop._is_check_free = lambda device: False

    return prepare


def learn(text: list[str], output: Path, faults: str, *flags: str, **how: Any) -> list[ranks.Ended]:
    world_size = how.pop("world_size", 2)
    return ranks.run(
        output.parent / f"streams-{output.name}",
        ["train", *text, *RUN, "-o", str(output), "--update-freq", str(2 // world_size), *flags],
        world_size=world_size, prepare=spoiled(faults, **how),
    )  # fmt: skip


def refused(output: Path) -> list[tuple[int, bool, list[int]]]:
    lines = [line for line in metrics(output) if line["event"] == "skipped"]
    return [(line["update"], line["retried"], line["pairs"]) for line in lines]


@representative(
    ("faults", "flags", "blind"),
    [
        ("gradient:3@1=nan,gradient:4@0=nan", [], False),
        ("gradient:3@1=nan,gradient:4@0=nan", [], True),
        ("gradient:3@1=nan,gradient:4@0=nan,gradient:7@1=nan", RETRY, False),
        ("gradient:3@1=nan", ["--set", "parallel.strategy=fsdp"], False),
    ],
)
def test_r14_all_processes_refuse_what_one_has_no_finite_gradient_for(
    faults: str, flags: list[str], blind: bool, text: list[str], tmp_path: Path
) -> None:
    anywhere = faults.replace("@0", "").replace("@1", "")
    single = learn(text, tmp_path / "one", anywhere, *flags, world_size=1)

    both = learn(text, tmp_path / "two", faults, *flags, blind=blind)

    assert [each.code for each in [*single, *both]] == [0, 0, 0], both
    assert both[1].err == ""
    assert refused(tmp_path / "two") == refused(tmp_path / "one") != []
    ours, theirs = (
        load_file(checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("two", "one")
    )
    for name, tensor in theirs.items():
        # Adam divides by moments, of which the smallest have few equal digits.
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-8)


def test_r14_all_processes_end_where_one_has_no_finite_gradient_too_often(
    text: list[str], tmp_path: Path
) -> None:
    few = ["--set", "training.max_bad_updates=3"]

    done = learn(text, tmp_path / "m", "gradient:6+@1=nan", *few)

    assert [each.code for each in done] == [6, 6]
    said = done[0].err + done[1].err
    assert said.count("error: ") == 1
    assert "update 8: the loss is " in said
    assert (
        "and the gradient norm nan, after 2 like it in a row; the weights were not changed" in said
    )
    good = tmp_path / "m" / "checkpoints" / "update-00000004"
    assert f"the last good checkpoint is `{good}`" in said
