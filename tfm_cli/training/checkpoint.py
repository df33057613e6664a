"""Checkpoints: all that is needed to go on with a run, to the bit.

However many processes trained, and whether they had the weights whole or in shards, a checkpoint is
the same: whole tensors by name, written by rank 0, which any number of processes can go on from.

A checkpoint is a folder with weights, their moving average, the optimizer's moments and the
counters, and a manifest with the hash of each file, written last. It is written aside, synced and
renamed, and only then is an older one removed. Nothing is pickled.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfm_cli.errors import ModelError, OutputError
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_directory, remove_directory
from tfm_cli.files.layout import (
    AVERAGE_FILE,
    MANIFEST_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
)
from tfm_cli.files.ownership import is_checkpoint, is_checkpoint_name
from tfm_cli.model.tensor_file import write_tensors
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.data_parallel import copy_from_rank_0, full_tensor
from tfm_cli.training.checkpoint_file import (
    FORMAT_VERSION,
    Checkpoint,
    NewerFormatError,
    check_fits,
    read,
)
from tfm_cli.training.optimizer import MovingAverage
from tfm_cli.training.run_directory import sweep_checkpoints
from tfm_cli.training.state import TrainState

__all__ = ["Checkpoint", "all_paths", "newest", "optimizer_tensors", "read", "restore", "save",
           "whole"]  # fmt: skip

logger = logging.getLogger(__name__)


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
        OutputError: it could not be written; older checkpoints are untouched. If there was no
            room for it, says how much it needs and how much there is.
    """
    path = directory / f"update-{state.update:08d}"
    is_writer = parallel is None or parallel.is_main
    tensors = gathered(model, average, optimizer, wanted=is_writer)
    if not is_writer:
        return path
    counters = {"state": state.to_json(), "text_sha256": dict(text_sha256)}
    try:
        _write(path, tensors, json.dumps(counters, indent=2) + "\n")
    except OutputError as error:
        if not error.is_disk_full:
            raise
        needed = sum(_num_bytes(table) for table in tensors.values())
        message = f"{error}; it needs {needed:,} bytes, {_free(directory):,} are free"
        raise error.with_message(message) from error
    _prune(directory, path, keep=keep)
    return path


def gathered(
    model: nn.Module, average: MovingAverage, optimizer: torch.optim.Optimizer, *, wanted: bool
) -> dict[str, dict[str, Tensor]]:
    """All tensors of a checkpoint, by file; see `whole`."""
    return {
        WEIGHTS_FILE: whole(dict(model.named_parameters()), wanted=wanted),
        AVERAGE_FILE: whole(average.weights, wanted=wanted),
        OPTIMIZER_FILE: whole(optimizer_tensors(model, optimizer), wanted=wanted),
    }


def _write(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], counters: str) -> None:
    with atomic_directory(path, may_replace=is_checkpoint) as aside:
        hashes = {}
        for name, table in tensors.items():
            with durable.create(aside / name) as stream:
                hashes[name] = write_tensors(stream, table)
        hashes[STATE_FILE] = hashlib.sha256(counters.encode()).hexdigest()
        manifest = {
            "format_version": FORMAT_VERSION,
            "torch_version": torch.__version__,
            "sha256": hashes,
        }
        for name, text in (
            (STATE_FILE, counters),
            (MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n"),
        ):
            durable.write_file(aside / name, text.encode())


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _free(directory: Path) -> int:
    """Bytes that may be written where a folder is."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def _prune(directory: Path, path: Path, *, keep: int) -> None:
    """Remove all but the newest up to `path`, which was just written."""
    others = all_paths(directory)  # it may be gone itself, if somebody moved the directory away
    older = [other for other in others if other < path]
    newer = [other for other in others if other > path]
    for old in older[: max(0, len(older) + 1 - keep)] + newer:
        try:
            if not remove_directory(old, is_ours=is_checkpoint):
                logger.warning(
                    "%s: holds other files than a checkpoint, so it is left as it is", old
                )
        except OSError as error:
            logger.warning("%s: cannot be removed: %s", old, error.strerror)
    sweep_checkpoints(directory)


def whole(tensors: Mapping[str, Tensor], *, wanted: bool) -> dict[str, Tensor]:
    """The tensors in full and in the memory of the CPU, on those processes that want them.

    All have to ask, in the same order, since each brings its shards.
    """
    table = {}
    for name, tensor in tensors.items():
        values = full_tensor(tensor)
        if wanted:
            table[name] = values.cpu().contiguous()
    return table


def all_paths(directory: Path) -> list[Path]:
    """The checkpoints in a directory, whole or not, oldest first.

    A copy that somebody keeps by another name, such as `update-00000500-kept`, is none.
    """
    return sorted(path for path in directory.glob("update-*") if is_checkpoint_name(path.name))


def newest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    One that is not whole is passed over with a warning.

    Raises:
        ModelError: there are checkpoints, but none of them is whole or has its name; or the newest
            is of a newer format.
    """
    _rescue(directory)
    paths = all_paths(directory)
    for path in reversed(paths):
        try:
            return read(path)
        except NewerFormatError:
            raise
        except ModelError as error:
            logger.warning("%s; passing over this checkpoint", error)
    if paths:
        raise ModelError(
            f"{directory}: none of the {len(paths)} checkpoints is whole",
            hint="start again with `--overwrite`",
        )
    if others := sorted(directory.glob("update-*")):
        raise ModelError(
            f"{directory}: `{others[0].name}` is no name of a checkpoint, wanted `update-` and 8 "
            "digits",
            hint="give it its name back, or start again with `--overwrite`",
        )
    return None


def _rescue(directory: Path) -> None:
    """Give a whole checkpoint its name back that got out of the way of another one.

    That one, of the same update, was about to take the name when the process was killed.
    """
    present = all_paths(directory)
    for trash in sorted(directory.glob(".update-*.trash")):
        path = directory / trash.name.split(".")[1]
        if is_checkpoint_name(path.name) and (not present or path > present[-1]):
            try:
                read(trash)
                durable.rename(trash, path)
            except (ModelError, OSError):
                continue  # half removed already: there is a newer one, or it was torn


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
        check_fits(checkpoint, parameters, average.weights)

    def take(tensor: Tensor, table: str, name: str) -> Tensor:
        values = None if checkpoint is None else getattr(checkpoint, table)[name]
        copy_from_rank_0(tensor, values, parallel)
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
