"""The files of a checkpoint, checked one by one."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tfm_cli.config.settings import TrainingConfig
from tfm_cli.errors import ModelError
from tfm_cli.model_directory.weights import write_tensors
from tfm_cli.training import checkpoint
from tfm_cli.training.checkpoint import Checkpoint, check_fits, read
from tfm_cli.training.optimizer import MovingAverage, make_optimizer
from tfm_cli.training.state import TrainState


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, 2)


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> Path:
    """A checkpoint after one update."""
    optimizer = make_optimizer(model, TrainingConfig())
    average = MovingAverage(model, 0.5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return checkpoint.save(
        tmp_path, model=model, average=average, optimizer=optimizer, state=TrainState(update=1),
        text_sha256={"training text": "a"}, retention=checkpoint.Retention(2),
    )  # fmt: skip


def rewrite(path: Path, content: bytes) -> None:
    """Change a file of a checkpoint, and the manifest so that it knows of it."""
    path.write_bytes(content)
    manifest = json.loads((path.parent / "manifest.json").read_bytes())
    manifest["sha256"][path.name] = hashlib.sha256(content).hexdigest()
    (path.parent / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def parts(saved: Path, model: nn.Module) -> tuple[Checkpoint, dict[str, Tensor]]:
    return read(saved), dict(model.named_parameters())


def test_checkpoint_of_the_model_fits(saved: Path, model: nn.Module) -> None:
    result, parameters = parts(saved, model)

    check_fits(result, parameters, result.average)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("weights", lambda t: t.pop("bias"), "model.safetensors: bias: missing"),
        (
            "weights", lambda t: t.update(weight=torch.ones(3, 2)),
            "model.safetensors: weight: has shape (3, 2), expected (2, 3)",
        ),
        ("weights", lambda t: t.update(more=torch.ones(1)), "model.safetensors: more: unknown"),
        ("average", lambda t: t.pop("weight"), "average.safetensors: weight: missing"),
        ("optimizer", lambda t: t.pop("bias/step"), "optimizer.safetensors: bias/step: missing"),
        (
            "optimizer", lambda t: t.update({"weight/exp_avg": torch.ones(1)}),
            "optimizer.safetensors: weight/exp_avg: has shape (1,), expected (2, 3)",
        ),
    ],
)  # fmt: skip
def test_error_names_the_tensors_that_do_not_fit(
    saved: Path, model: nn.Module, table: str, change: Callable[[Any], object], message: str
) -> None:
    result, parameters = parts(saved, model)
    average = dict(result.average)
    change(getattr(result, table))

    with pytest.raises(ModelError) as caught:
        check_fits(result, parameters, average)

    title = f"{saved}: its tensors are not those of this model"
    assert str(caught.value).split("\n  ") == [title, message]


def test_error_names_only_the_first_tensors(saved: Path, model: nn.Module) -> None:
    result, parameters = parts(saved, model)
    result.optimizer.clear()
    result.weights.clear()
    average = dict(result.average)
    result.average.clear()

    with pytest.raises(ModelError, match=r"… and 2 more"):
        check_fits(result, parameters, average)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "has other tables than `state` and `text_sha256`"),
        (b'{"state": {}, "text_sha256": {}, "x": 1}', "has other tables than"),
        (b'{"state": {}, "text_sha256": {"a": 1}}', "`text_sha256` is no table of hashes"),
        (b'{"state": {"uptate": 1}, "text_sha256": {}}', "unknown counter `uptate`"),
        (b'{"state": {"update": "1"}, "text_sha256": {}}', "the counter `update` is 1"),
        (b'{"state": {"update": -1}, "text_sha256": {}}', "the counter `update` is -1"),
        (b'{"state": {"update": true}, "text_sha256": {}}', "the counter `update` is True"),
        (b'{"state": {"window_nll": null}, "text_sha256": {}}', "the counter `window_nll` is None"),
        (b'{"state": {"window_nll": NaN}, "text_sha256": {}}', "NaN is not a finite number"),
        (b" " * (1 << 20) + b"{}", "has 1048578 bytes, expected at most 1048576"),
    ],
)
def test_invalid_counters_are_refused(saved: Path, content: bytes, message: str) -> None:
    rewrite(saved / "state.json", content)

    with pytest.raises(ModelError) as caught:
        read(saved)

    assert str(caught.value).startswith(f"{saved / 'state.json'}: is damaged or not a checkpoint: ")
    assert message in str(caught.value)


def test_counter_that_an_earlier_version_had_not_has_its_default(saved: Path) -> None:
    rewrite(saved / "state.json", b'{"state": {"update": 7, "best_score": 2}, "text_sha256": {}}')

    assert read(saved).state == TrainState(update=7, best_score=2)


def test_empty_tensor_is_read(saved: Path) -> None:
    with (saved / "model.safetensors").open("wb") as stream:
        write_tensors(stream, {"none": torch.empty(0, 3), "one": torch.ones(1)})
    rewrite(saved / "model.safetensors", (saved / "model.safetensors").read_bytes())

    assert read(saved).weights["none"].shape == (0, 3)
