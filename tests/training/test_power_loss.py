"""After a loss of power, whatever is gone of the unsynced, a run goes on from a checkpoint."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch

from tests import forked
from tests.runs import left_behind, metrics
from tests.tiers import representative
from tests.training.disk_model import Tree, put, states
from tests.training.small_run import SmallRun, unfinished
from tfm_cli.errors import ModelError
from tfm_cli.model_directory.weights import load_model, weights_facts
from tfm_cli.training import checkpoint

PARTS = 16  # of all states, so that several processes share them


def different_states(small: SmallRun) -> list[tuple[int, Tree]]:
    """Each state once, with the most operations that may lead to it."""
    found = {
        frozenset(tree.items()): (done, tree)
        for done, tree in states(small.operations, small.output)
    }
    return list(found.values())


def test_model_of_the_disk_has_all_that_is_reachable(small: SmallRun) -> None:
    result = different_states(small)

    # More than one for each operation, and the last is what the run left.
    assert len(result) > len(small.operations) > 150
    _, tree = result[-1]
    real = {
        str(path.relative_to(small.output)): path.read_bytes() if path.is_file() else None
        for path in small.output.rglob("*")
    }
    assert {name: content for name, content in tree.items() if name != "."} == real


@pytest.mark.slow
@representative("part", range(PARTS))
def test_r02_every_state_after_a_loss_of_power_has_a_whole_checkpoint(
    part: int, small: SmallRun, tmp_path: Path
) -> None:
    for number, (done, tree) in list(enumerate(different_states(small)))[part::PARTS]:
        output = tmp_path / f"{number}"
        put(tree, output)

        newest = checkpoint.newest(output / "checkpoints") if has_checkpoints(tree) else None

        update = 0 if newest is None else newest.state.update
        assert update >= small.newest_committed(done), (done, sorted(tree))
        # What the checkpoint knows of was made sure of before: progress lines, and the best model.
        if update:
            updates = [line["update"] for line in metrics_of(output) if line["update"] <= update]
            assert updates == [line["update"] for line in small.left["metrics"]][: len(updates)]
            assert updates[-1] >= update - 1, updates
        if (output / "config.json").exists() and (output / "model.safetensors").exists():
            facts = weights_facts(output)
            assert facts is not None
            assert load_model(output, torch.device("cpu"))
        shutil.rmtree(output)


def has_checkpoints(tree: Tree) -> bool:
    return any(name.startswith("checkpoints/update-") for name in tree)


def metrics_of(output: Path) -> list[dict[str, int]]:
    with contextlib.suppress(AssertionError, ValueError):
        return metrics(output)
    lines = (output / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    (output / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return metrics(output)


@pytest.mark.slow
@representative("part", range(PARTS))
def test_r02_run_goes_on_from_states_after_a_loss_of_power(
    part: int, small: SmallRun, tmp_path: Path
) -> None:
    for number, (_, tree) in list(enumerate(different_states(small)))[part * 9 :: PARTS * 9]:
        output = tmp_path / f"{number}" / "model"
        put(tree, output)

        result = forked.run(output.with_name("words"), small.command(output))

        assert result.code == 0, result.err
        assert "Traceback" not in result.err
        assert left_behind(output) == small.left
        assert unfinished(output) == []


def test_r02_checkpoint_that_got_out_of_the_way_is_taken_back(
    small: SmallRun, tmp_path: Path
) -> None:
    run = tmp_path / "checkpoints"
    shutil.copytree(small.output / "checkpoints", run)
    (run / "update-00000005").rename(run / ".update-00000005.123.trash")

    result = checkpoint.newest(run)

    assert result is not None
    assert result.state.update == 5
    names = sorted(path.name for path in run.iterdir())
    assert names == ["best-on-schedule", "update-00000004", "update-00000005"]


def test_r02_half_removed_checkpoint_is_not_taken_back(small: SmallRun, tmp_path: Path) -> None:
    run = tmp_path / "checkpoints"
    shutil.copytree(small.output / "checkpoints", run)
    (run / "update-00000005").rename(run / ".update-00000005.123.trash")
    (run / ".update-00000005.123.trash" / "optimizer.safetensors").unlink()

    result = checkpoint.newest(run)

    assert result is not None
    assert result.state.update == 4
    with pytest.raises(ModelError):
        checkpoint.read(run / ".update-00000005.123.trash")
