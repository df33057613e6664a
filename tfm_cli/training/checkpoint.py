"""Checkpoints: everything that is needed to resume a run with bit-identical results.

A checkpoint is a folder with the weights, their moving average, the optimizer's moments, the state
of the run, and a manifest with the hash of each file, written last. It is written under a temporary
name, synced and renamed, and only then is an older one removed. Nothing is pickled.

A checkpoint does not depend on sharding or on the number of processes: rank 0 writes full tensors
by name, and any number of processes can resume from them.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfm_cli.console import counted
from tfm_cli.errors import ModelError, OutputError, plain_reason
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_directory, remove_directory
from tfm_cli.files.layout import (
    AVERAGE_FILE,
    CHECKPOINT_FILES,
    MANIFEST_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
)
from tfm_cli.files.ownership import is_checkpoint, is_checkpoint_name
from tfm_cli.files.safetensors_file import SafetensorsFile
from tfm_cli.files.untrusted import parse_json_object, read_regular
from tfm_cli.model_directory.weight_shapes import (
    listed,
    non_finite_weights_error,
    shape_differences,
)
from tfm_cli.model_directory.weights import non_finite_tensors, write_tensors
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.data_parallel import copy_from_rank_0, full_tensor
from tfm_cli.training.optimizer import MovingAverage
from tfm_cli.training.run_directory import sweep_checkpoints
from tfm_cli.training.state import TrainState

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
TYPES = {"F32": torch.float32}  # the types of a run's tensors
_HASHED = set(CHECKPOINT_FILES)
_MAX_JSON_BYTES = 1 << 20
_MAX_HEADER_BYTES = 4 << 20  # the optimizer has three tensors for each parameter
_MOMENTS = ("exp_avg", "exp_avg_sq")  # of each parameter, as PyTorch's Adam names them


class NewerFormatError(ModelError):
    """A checkpoint of a later version of tfm; falling back to an older one would lose work."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    path: Path
    state: TrainState
    text_sha256: dict[str, str]  # of the training and the validation text
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Retention:
    """The checkpoints to keep.

    Args:
        newest: the number of newest ones.
        best: the number of those with the best validation scores.
        metrics: the metrics of the validations, in the order in which they decide.
    """

    newest: int
    best: int = 0
    metrics: tuple[str, ...] = ()


def save(
    directory: Path,
    *,
    model: nn.Module,
    average: MovingAverage,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    text_sha256: Mapping[str, str],
    retention: Retention,
    parallel: Parallel | None = None,
) -> Path:
    """Write a checkpoint into `directory`, remove those not to keep, and return its path.

    Checkpoints of later updates are removed too: they are damaged, as otherwise the run would have
    resumed from them. All ranks must call this, since gathering shards is a collective operation;
    only rank 0 writes.

    Raises:
        OutputError: it could not be written; older checkpoints are untouched. If the disk is full,
            the message gives the required and the free space.
    """
    path = directory / f"update-{state.update:08d}"
    is_writer = parallel is None or parallel.is_main
    tensors = gather_tensors(model, average, optimizer, select=is_writer)
    if not is_writer:
        return path
    counters = {"state": state.to_json(), "text_sha256": dict(text_sha256)}
    try:
        _write(path, tensors, json.dumps(counters, indent=2) + "\n")
    except OutputError as error:
        if not error.is_disk_full:
            raise
        needed = sum(_num_bytes(table) for table in tensors.values())
        message = f"{error}; it needs {needed:,} bytes, {_num_free_bytes(directory):,} are free"
        raise error.with_message(message) from error
    _prune(directory, path, retention)
    return path


def gather_tensors(
    model: nn.Module, average: MovingAverage, optimizer: torch.optim.Optimizer, *, select: bool
) -> dict[str, dict[str, Tensor]]:
    """Return all tensors of a checkpoint, by file name; see `full_tensors`."""
    return {
        WEIGHTS_FILE: full_tensors(dict(model.named_parameters()), select=select),
        AVERAGE_FILE: full_tensors(average.weights, select=select),
        OPTIMIZER_FILE: full_tensors(optimizer_tensors(model, optimizer), select=select),
    }


def _write(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], counters: str) -> None:
    with atomic_directory(path, may_replace=is_checkpoint) as temporary:
        hashes = {}
        for name, table in tensors.items():
            with durable.create(temporary / name) as stream:
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
            durable.write_file(temporary / name, text.encode())


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _num_free_bytes(directory: Path) -> int:
    """Return the free space where a directory is, or would be if it existed."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def _prune(directory: Path, path: Path, retention: Retention) -> None:
    """Remove all checkpoints but those to keep, among them `path`, which was just written."""
    paths = checkpoint_paths(directory)  # without `path`, if the directory was moved away
    older = [other for other in paths if update_of(other) < update_of(path)]
    newer = [other for other in paths if update_of(other) > update_of(path)]
    kept = set(older[max(0, len(older) + 1 - retention.newest) :])
    if retention.best:
        kept.update(best_checkpoints([*older, path], retention.metrics)[: retention.best])
    for old in [other for other in older if other not in kept] + newer:
        try:
            if not remove_directory(old, is_ours=is_checkpoint):
                logger.warning("%s: not removed, since it holds other files than a checkpoint", old)
        except OSError as error:
            logger.warning("%s: cannot be removed: %s", old, error.strerror)
    sweep_checkpoints(directory)


def best_checkpoints(paths: Iterable[Path], metrics: Sequence[str]) -> list[Path]:
    """Return the checkpoints that were saved at a validation by schedule, best scores first.

    Of equal scores, the earlier checkpoint is better.

    Args:
        paths: the checkpoints, intact or damaged.
        metrics: the metrics of the validations; the first one decides, the next one breaks ties.
    """
    ranked: list[tuple[list[float], int, Path]] = []
    for path in paths:
        with contextlib.suppress(ModelError):
            state, _ = _state(path / STATE_FILE, _content(path / STATE_FILE))
            if state.scored_update == update_of(path) and len(state.last_scores) == len(metrics):
                values = zip(metrics, state.last_scores, strict=True)
                badness = [value if metric == "loss" else -value for metric, value in values]
                ranked.append((badness, update_of(path), path))
    return [path for *_, path in sorted(ranked)]


def full_tensors(tensors: Mapping[str, Tensor], *, select: bool) -> dict[str, Tensor]:
    """Return full tensors in CPU memory on ranks with `select`; the others get an empty table.

    All ranks must call this in the same order, since gathering shards is a collective operation.
    """
    table = {}
    for name, tensor in tensors.items():
        values = full_tensor(tensor)
        if select:
            table[name] = values.cpu().contiguous()
    return table


def update_of(path: Path) -> int:
    """Return the update number in the name of a checkpoint."""
    return int(path.name.removeprefix("update-"))


def checkpoint_paths(directory: Path) -> list[Path]:
    """Return the checkpoints in a directory, intact or damaged, oldest first.

    A copy under another name, such as `update-00000500-copy`, is not among them.
    """
    paths = [path for path in directory.glob("update-*") if is_checkpoint_name(path.name)]
    return sorted(paths, key=lambda path: (update_of(path), path.name))


def newest(directory: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint, or None if there is no checkpoint at all.

    A damaged one is skipped with a warning.

    Raises:
        ModelError: there are checkpoints, but each is damaged or has a wrong name; or one has a
            newer format.
    """
    _restore_displaced(directory)
    paths = checkpoint_paths(directory)
    for path in reversed(paths):
        try:
            return read(path)
        except NewerFormatError:
            raise
        except ModelError as error:
            logger.warning("%s; skipping this checkpoint", error)
    if paths:
        raise ModelError(
            f"{directory}: has {counted(len(paths), 'checkpoint')}, of which none is intact",
            hint="start again with `--overwrite`",
        )
    if others := sorted(directory.glob("update-*")):
        raise ModelError(
            f"{directory}: `{others[0].name}` is not the name of a checkpoint, expected `update-` "
            "and 8 digits",
            hint="rename it, or start again with `--overwrite`",
        )
    return None


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder.

    Raises:
        ModelError: it is damaged, was changed, or has a newer format; the message names the file.
    """
    state, text_sha256, hashes = read_counters(path)
    weights, average, optimizer = (
        _tensors(path / name, hashes[name]) for name in (WEIGHTS_FILE, AVERAGE_FILE, OPTIMIZER_FILE)
    )
    for name, tensors in ((WEIGHTS_FILE, weights), (AVERAGE_FILE, average)):
        if bad := non_finite_tensors(tensors):
            raise non_finite_weights_error(path / name, bad)
    return Checkpoint(path, state, text_sha256, weights, average, optimizer)


def read_counters(path: Path) -> tuple[TrainState, dict[str, str], dict[str, str]]:
    """Return the state in a checkpoint, the hashes of the texts, and the hashes of its files.

    Raises:
        ModelError: they are damaged, were changed, or have a newer format.
    """
    hashes = _hashes(path / MANIFEST_FILE)
    content = _content(path / STATE_FILE)
    _check_hash(path / STATE_FILE, hashlib.sha256(content).hexdigest(), hashes[STATE_FILE])
    return *_state(path / STATE_FILE, content), hashes


def _hashes(path: Path) -> dict[str, str]:
    """Return the hash of each file, by name, from a manifest."""
    manifest = _table(path, _content(path))
    version = manifest.get("format_version")
    if type(version) is not int:
        raise _invalid(path, "`format_version` is missing or not a number")
    if version > FORMAT_VERSION:
        message = f"{path.parent}: has format {version}, expected at most {FORMAT_VERSION}"
        raise NewerFormatError(message, hint="install a newer tfm")
    if unknown := sorted(set(manifest) - {"format_version", "torch_version", "sha256"}):
        raise _invalid(path, f"has the unknown name `{unknown[0][:60]}`")
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(v, str) for v in hashes.values()):
        raise _invalid(path, "has no table of hashes")
    if set(hashes) != _HASHED:
        unexpected = sorted(set(hashes) ^ _HASHED)[0]
        raise _invalid(
            path, f"has hashes of other files than a checkpoint has: `{unexpected[:60]}`"
        )
    return hashes


def _state(path: Path, content: bytes) -> tuple[TrainState, dict[str, str]]:
    table = _table(path, content)
    state, text_sha256 = table.get("state"), table.get("text_sha256")
    if set(table) != {"state", "text_sha256"} or not isinstance(state, dict):
        raise _invalid(path, "has other tables than `state` and `text_sha256`")
    if not isinstance(text_sha256, dict) or not all(
        isinstance(value, str) for value in text_sha256.values()
    ):
        raise _invalid(path, "`text_sha256` is no table of hashes")
    try:
        return TrainState.from_json(state), text_sha256
    except ValueError as error:
        raise _invalid(path, error) from error


def _tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read the tensors of a file into memory."""
    try:
        with SafetensorsFile(path, max_header_bytes=_MAX_HEADER_BYTES) as file:
            wrong = [name for name, values in file.tensors.items() if values.dtype not in TYPES]
            if wrong:
                raise ModelError(f"{path}: {wrong[0]} has type {file.tensors[wrong[0]].dtype}")
            _check_hash(path, file.sha256_of_file(), sha256)
            contents = file.read()
        return {
            # `frombuffer` refuses an empty buffer.
            name: torch.frombuffer(contents[name], dtype=TYPES[values.dtype]).view(values.shape)
            if contents[name]
            else torch.empty(values.shape)
            for name, values in file.tensors.items()
        }
    except OSError as error:
        raise _invalid(path, error.strerror) from error
    except ValueError as error:
        raise _invalid(path, error) from error


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=_MAX_JSON_BYTES)
    except OSError as error:
        raise _invalid(path, error.strerror) from error
    except ValueError as error:
        raise _invalid(path, error) from error


def _table(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return parse_json_object(content)
    except ValueError as error:
        raise _invalid(path, error) from error


def _check_hash(path: Path, actual: str, expected: str) -> None:
    if actual != expected:
        raise ModelError(f"{path}: is not what was saved: its SHA-256 differs")


def _invalid(path: Path, reason: object) -> ModelError:
    shown = plain_reason(reason) if isinstance(reason, Exception) else reason
    return ModelError(f"{path}: is damaged or not a checkpoint: {shown}")


def _restore_displaced(directory: Path) -> None:
    """Restore a checkpoint that was moved aside for another one of the same update.

    It is left over if the process was killed before the other one was renamed into its place.
    """
    present = checkpoint_paths(directory)
    for trash in sorted(directory.glob(".update-*.trash")):
        path = directory / trash.name.split(".")[1]
        if not is_checkpoint_name(path.name):
            continue
        if not present or update_of(path) > update_of(present[-1]):
            try:
                read(trash)
                durable.rename(trash, path)
            except (ModelError, OSError):
                continue  # it was replaced and partly removed, or was damaged before


def check_fits(
    checkpoint: Checkpoint, parameters: Mapping[str, Tensor], average: Mapping[str, Tensor]
) -> None:
    """Raise a ModelError that lists the tensors that do not fit a model and its optimizer."""
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    moments = {f"{name}/{key}": shape for name, shape in shapes.items() for key in _MOMENTS}
    steps: dict[str, tuple[int, ...]] = {f"{name}/step": () for name in shapes}
    average_shapes = {name: tuple(tensor.shape) for name, tensor in average.items()}
    problems: list[str] = []
    for file, expected, tensors in (
        (WEIGHTS_FILE, shapes, checkpoint.weights),
        (AVERAGE_FILE, average_shapes, checkpoint.average),
        (OPTIMIZER_FILE, moments | steps, checkpoint.optimizer),
    ):
        actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        problems += [f"{file}: {each}" for each in shape_differences(actual, expected)]
    if problems:
        title = f"{checkpoint.path}: its tensors are not those of this model"
        raise ModelError(f"{title}\n  {listed(problems)}")


def restore(
    checkpoint: Checkpoint | None,
    model: nn.Module,
    average: MovingAverage,
    optimizer: torch.optim.Optimizer,
    parallel: Parallel | None = None,
) -> None:
    """Load a checkpoint into a model, its average and its optimizer.

    All ranks must call this: rank 0 with the checkpoint, which the others get from it.
    """
    parallel = parallel or Parallel()
    parameters = dict(model.named_parameters())
    if checkpoint is not None:
        check_fits(checkpoint, parameters, average.weights)

    def load(tensor: Tensor, table: str, name: str) -> Tensor:
        values = None if checkpoint is None else getattr(checkpoint, table)[name]
        copy_from_rank_0(tensor, values, parallel)
        return tensor

    for name, parameter in parameters.items():
        load(parameter.detach(), "weights", name)
    for name, tensor in average.weights.items():
        load(tensor, "average", name)
    for name, parameter in parameters.items():
        # The fused optimizer needs its step count on the device of the parameter.
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        optimizer.state[parameter] = {
            "step": load(step, "optimizer", f"{name}/step"),
            "exp_avg": load(torch.zeros_like(parameter), "optimizer", f"{name}/exp_avg"),
            "exp_avg_sq": load(torch.zeros_like(parameter), "optimizer", f"{name}/exp_avg_sq"),
        }


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return Adam's moments and step counts, by parameter name; empty before the first update."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        moments: dict[str, Any] = optimizer.state.get(parameter, {})
        tensors.update({f"{name}/{key}": value for key, value in moments.items()})
    return tensors
