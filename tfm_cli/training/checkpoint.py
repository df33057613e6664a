"""Checkpoints: all that is needed to go on with a run, to the bit.

A checkpoint is a folder with weights, their moving average, the optimizer's moments and the
counters, and a manifest with the hash of each file, written last. It is written aside, synced and
renamed, and only then is an older one removed. Nothing is pickled.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.files import atomic_directory, remove_directory
from tfm_cli.training.optim import MovingAverage
from tfm_cli.training.state import TrainState

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_STATE = "state.json"
_WEIGHTS, _AVERAGE, _OPTIMIZER = (
    "model.safetensors",
    "average.safetensors",
    "optimizer.safetensors",
)


class _NewerFormatError(ModelError):
    """Not torn, but for a later version: to go back behind it would throw work away."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint, read into memory."""

    path: Path
    state: TrainState
    text_sha256: dict[str, str]  # of what was learned from, by what it is for
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save(
    directory: Path,
    *,
    model: nn.Module,
    average: MovingAverage,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    text_sha256: Mapping[str, str],
    keep: int,
) -> Path:
    """Write a checkpoint into `directory` and remove all but the `keep` newest; returns its path.

    One that seems newer is removed too: it was not whole, or the run would have gone on from it.

    Raises:
        ResourceError: it could not be written; older checkpoints are untouched.
    """
    path = directory / f"update-{state.update:08d}"
    tensors: dict[str, dict[str, Tensor]] = {
        _WEIGHTS: {n: p.data for n, p in model.named_parameters()},
        _AVERAGE: average.weights,
        _OPTIMIZER: optimizer_tensors(model, optimizer),
    }
    with _disk_errors(path), atomic_directory(path) as aside:
        for name, table in tensors.items():
            save_file({n: t.detach().cpu().contiguous() for n, t in table.items()}, aside / name)
        counters = {"state": state.to_json(), "text_sha256": dict(text_sha256)}
        (aside / _STATE).write_text(json.dumps(counters, indent=2) + "\n", encoding="utf-8")
        manifest = {
            "format_version": FORMAT_VERSION,
            "torch_version": torch.__version__,
            "sha256": {file.name: _sha256(file) for file in sorted(aside.iterdir())},
        }
        (aside / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    paths = all_paths(directory)
    newest_index = paths.index(path)
    for old in paths[: max(0, newest_index + 1 - keep)] + paths[newest_index + 1 :]:
        try:
            remove_directory(old)
        except OSError as error:
            logger.warning("%s: cannot be removed: %s", old, error.strerror)
    return path


def all_paths(directory: Path) -> list[Path]:
    """The checkpoints in a directory, whole or not, oldest first."""
    return sorted(directory.glob("update-*"))


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """What safetensors could not write becomes a ResourceError."""
    try:
        yield
    except SafetensorError as error:
        raise ResourceError(f"{path}: cannot be written: {error}") from error


def newest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    One that is not whole is passed over with a warning.

    Raises:
        ModelError: there are checkpoints, but none of them is whole; or the newest is of a newer
            format.
    """
    paths = all_paths(directory)
    for path in reversed(paths):
        try:
            return read(path)
        except _NewerFormatError:
            raise
        except ModelError as error:
            logger.warning("%s; passing over this checkpoint", error)
    if paths:
        raise ModelError(
            f"{directory}: none of the {len(paths)} checkpoints is whole",
            hint="start again with `--overwrite`",
        )
    return None


def read(path: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Raises:
        ModelError: it is torn, changed, or of a newer format; names the file.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        version, hashes = manifest["format_version"], manifest["sha256"]
        if version > FORMAT_VERSION:
            told = f"{path}: has format {version}, wanted at most {FORMAT_VERSION}"
            raise _NewerFormatError(told, hint="install a newer tfm")
        for name in (_WEIGHTS, _AVERAGE, _OPTIMIZER, _STATE):
            if _sha256(path / name) != hashes[name]:
                raise ModelError(f"{path / name}: is not what was saved: its SHA-256 differs")
        counters = json.loads((path / _STATE).read_text(encoding="utf-8"))
        return Checkpoint(
            path,
            TrainState.from_json(counters["state"]),
            dict(counters["text_sha256"]),
            load_file(path / _WEIGHTS),
            load_file(path / _AVERAGE),
            load_file(path / _OPTIMIZER),
        )
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
        raise ModelError(f"{path}: is torn or no checkpoint: {reason}") from error
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{path}: is torn or no checkpoint: {error!r}") from error


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    average: MovingAverage,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Give a model, its average and its optimizer the values of a checkpoint."""
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    if wanted != found:
        raise ModelError(f"{checkpoint.path}: its weights are not of this model's shape")
    model.load_state_dict(checkpoint.weights)
    for name, tensor in average.weights.items():
        tensor.copy_(checkpoint.average[name])
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            # The fused optimizer wants its step count where the parameter is. A copy, since what
            # was read is a view of the file.
            key: checkpoint.optimizer[f"{name}/{key}"].to(parameter.device, copy=True)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts, by parameter name; empty before the first update."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        moments: dict[str, Any] = optimizer.state.get(parameter, {})
        tensors.update({f"{name}/{key}": value for key, value in moments.items()})
    return tensors


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
