"""Reading of checkpoints: a file with a wrong hash or invalid content is refused."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfm_cli.errors import ModelError
from tfm_cli.files.layout import (
    AVERAGE_FILE,
    CHECKPOINT_FILES,
    MANIFEST_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
)
from tfm_cli.files.safetensors_file import SafetensorsFile
from tfm_cli.files.untrusted import parse_json_object, read_regular
from tfm_cli.model_directory.weight_shapes import (
    listed,
    non_finite_weights_error,
    shape_differences,
)
from tfm_cli.model_directory.weights import non_finite_tensors
from tfm_cli.training.state import TrainState

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


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder.

    Raises:
        ModelError: it is torn, was changed, or has a newer format; the message names the file.
    """
    hashes = _hashes(path / MANIFEST_FILE)
    content = _content(path / STATE_FILE)
    _check_hash(path / STATE_FILE, hashlib.sha256(content).hexdigest(), hashes[STATE_FILE])
    state, text_sha256 = _state(path / STATE_FILE, content)
    weights, average, optimizer = (
        _tensors(path / name, hashes[name]) for name in (WEIGHTS_FILE, AVERAGE_FILE, OPTIMIZER_FILE)
    )
    for name, tensors in ((WEIGHTS_FILE, weights), (AVERAGE_FILE, average)):
        if bad := non_finite_tensors(tensors):
            raise non_finite_weights_error(path / name, bad)
    return Checkpoint(path, state, text_sha256, weights, average, optimizer)


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


def _hashes(path: Path) -> dict[str, str]:
    """Return the hash of each file, by name, from a manifest."""
    manifest = _table(path, _content(path))
    version = manifest.get("format_version")
    if type(version) is not int:
        raise _torn(path, "`format_version` is missing or not a number")
    if version > FORMAT_VERSION:
        message = f"{path.parent}: has format {version}, expected at most {FORMAT_VERSION}"
        raise NewerFormatError(message, hint="install a newer tfm")
    if unknown := sorted(set(manifest) - {"format_version", "torch_version", "sha256"}):
        raise _torn(path, f"has the unknown name `{unknown[0][:60]}`")
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(v, str) for v in hashes.values()):
        raise _torn(path, "has no table of hashes")
    if set(hashes) != _HASHED:
        unexpected = sorted(set(hashes) ^ _HASHED)[0]
        raise _torn(path, f"has hashes of other files than a checkpoint has: `{unexpected[:60]}`")
    return hashes


def _state(path: Path, content: bytes) -> tuple[TrainState, dict[str, str]]:
    table = _table(path, content)
    state, text_sha256 = table.get("state"), table.get("text_sha256")
    if set(table) != {"state", "text_sha256"} or not isinstance(state, dict):
        raise _torn(path, "has other tables than `state` and `text_sha256`")
    if not isinstance(text_sha256, dict) or not all(
        isinstance(value, str) for value in text_sha256.values()
    ):
        raise _torn(path, "`text_sha256` is no table of hashes")
    try:
        return TrainState.from_json(state), text_sha256
    except ValueError as error:
        raise _torn(path, error) from error


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
        raise _torn(path, error.strerror) from error
    except ValueError as error:
        raise _torn(path, error) from error


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=_MAX_JSON_BYTES)
    except OSError as error:
        raise _torn(path, error.strerror) from error
    except ValueError as error:
        raise _torn(path, error) from error


def _table(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return parse_json_object(content)
    except ValueError as error:
        raise _torn(path, error) from error


def _check_hash(path: Path, actual: str, expected: str) -> None:
    if actual != expected:
        raise ModelError(f"{path}: is not what was saved: its SHA-256 differs")


def _torn(path: Path, reason: object) -> ModelError:
    return ModelError(f"{path}: is torn or no checkpoint: {reason}")
