"""Checkpoints: all that is needed to go on with a run, to the bit.

However many processes trained, and whether they had the weights whole or in shards, a checkpoint is
the same: whole tensors by name, written by rank 0, which any number of processes can go on from.

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
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.wrapping import fill, full
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
    parallel: Parallel | None = None,
) -> Path:
    """Write a checkpoint into `directory` and remove all but the `keep` newest; returns its path.

    One that seems newer is removed too: it was not whole, or the run would have gone on from it.
    All processes have to come here, to bring their shards; only rank 0 writes.

    Raises:
        ResourceError: it could not be written; older checkpoints are untouched.
    """
    path = directory / f"update-{state.update:08d}"
    is_writer = parallel is None or parallel.is_main
    tensors: dict[str, dict[str, Tensor]] = {
        _WEIGHTS: whole(dict(model.named_parameters()), wanted=is_writer),
        _AVERAGE: whole(average.weights, wanted=is_writer),
        _OPTIMIZER: whole(optimizer_tensors(model, optimizer), wanted=is_writer),
    }
    if not is_writer:
        return path
    with _disk_errors(path), atomic_directory(path) as aside:
        for name, table in tensors.items():
            save_file(table, aside / name)
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


def whole(tensors: Mapping[str, Tensor], *, wanted: bool) -> dict[str, Tensor]:
    """The tensors in full and in the memory of the CPU, on those processes that want them.

    All have to ask, in the same order, since each brings its shards.
    """
    table = {}
    for name, tensor in tensors.items():
        values = full(tensor)
        if wanted:
            table[name] = values.cpu().contiguous()
    return table


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
    checkpoint: Checkpoint | None,
    model: nn.Module,
    average: MovingAverage,
    optimizer: torch.optim.Optimizer,
    parallel: Parallel | None = None,
) -> None:
    """Give a model, its average and its optimizer the values of a checkpoint.

    With several processes rank 0 has the checkpoint, and all have to come here.
    """
    parallel = parallel or Parallel()
    parameters = dict(model.named_parameters())
    if checkpoint is not None:
        wanted = {name: tuple(p.shape) for name, p in parameters.items()}
        found = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
        if wanted != found:
            raise ModelError(f"{checkpoint.path}: its weights are not of this model's shape")

    def take(tensor: Tensor, table: str, name: str) -> Tensor:
        values = None if checkpoint is None else getattr(checkpoint, table)[name]
        fill(tensor, values, parallel)
        return tensor

    for name, parameter in parameters.items():
        take(parameter.detach(), "weights", name)
    for name, tensor in average.weights.items():
        take(tensor, "average", name)
    for name, parameter in parameters.items():
        # The fused optimizer wants its step count where the parameter is.
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        optimizer.state[parameter] = {
            "step": take(step, "optimizer", f"{name}/step"),
            "exp_avg": take(torch.zeros_like(parameter), "optimizer", f"{name}/exp_avg"),
            "exp_avg_sq": take(torch.zeros_like(parameter), "optimizer", f"{name}/exp_avg_sq"),
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
