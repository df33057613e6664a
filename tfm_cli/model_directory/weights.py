"""Save and load the weights of a model directory, and load the model as a whole.

The file names are fixed, and hashes tie settings, tokenizers and weights together: a directory
whose files are mixed, damaged or modified is refused, with the name of the file.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tfm_cli.config.settings import ModelConfig, RunConfig
from tfm_cli.files.atomic import atomic_file
from tfm_cli.files.layout import WEIGHTS_FILE
from tfm_cli.files.safetensors_file import Array, values_sha256, write_arrays
from tfm_cli.model.transformer import Transformer, TransformerShape
from tfm_cli.model_directory.config_file import (
    SavedConfig,
    changed_weights_error,
    load_config,
    load_tokenizers,
    oldest_format,
    opened_weights,
    without_later_defaults,
)
from tfm_cli.model_directory.weight_shapes import (
    INT8_FORMAT,
    METADATA_KEY,
    check_header,
    is_verified,
    non_finite_weights_error,
    read_metadata,
    recorded_scores,
    shape_settings,
    weight_shapes,
)
from tfm_cli.tokenizer.pair import TokenizerPair

_SAFETENSORS_TYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A loaded model: its settings, tokenizers and Transformer."""

    config: RunConfig
    tokenizers: TokenizerPair
    transformer: Transformer


@dataclass(frozen=True, slots=True)
class WeightsFacts:
    """Facts about the weights that their file records."""

    update: int  # the number of updates that produced them
    scores: dict[str, float]  # on the validation text, by metric; empty without validation


def build_transformer(config: ModelConfig, vocab_sizes: tuple[int, int]) -> Transformer:
    """Return a Transformer of this shape, with newly initialized weights.

    Args:
        config: the hyperparameters of the Transformer.
        vocab_sizes: of source and target.
    """
    source_size, target_size = vocab_sizes
    shape = TransformerShape(**dataclasses.asdict(config))
    return Transformer(shape, target_size, source_size)


def save_weights(
    directory: Path,
    weights: Mapping[str, Tensor],
    tokenizers: TokenizerPair,
    shape: ModelConfig,
    facts: WeightsFacts,
    *,
    precision: str = "fp32",
) -> None:
    """Write the weights file, tied by hashes to the tokenizers and settings of the model.

    The same weights and facts give the same bytes.

    Args:
        directory: the model directory.
        weights: by name; with int8, those of `int8_shapes` are int8 with a tensor of row scales.
        tokenizers: of the model.
        shape: of the model.
        facts: facts to record in the file.
        precision: `fp32` or `int8`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {
        "format_version": max(oldest_format(shape), INT8_FORMAT if precision == "int8" else 0),
        "model": without_later_defaults(shape_settings(shape)),
        "tokenizer_sha256": tokenizers.sha256,
        "weights_sha256": weights_sha256(tensors),
        **dataclasses.asdict(facts),
        **({} if precision == "fp32" else {"precision": precision}),
    }
    with atomic_file(directory / WEIGHTS_FILE, follow=False) as stream:
        write_tensors(stream, tensors, {METADATA_KEY: json.dumps(metadata)})


def write_tensors(
    stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors to a stream and return the SHA-256 of the file.

    The bytes are those that the safetensors library writes.

    Args:
        stream: positioned at its start.
        tensors: by name, contiguous and in CPU memory.
        metadata: strings that are stored with the tensors.
    """
    arrays = {
        name: Array(_SAFETENSORS_TYPES[tensor.dtype], tuple(tensor.shape), _bytes(tensor))
        for name, tensor in tensors.items()
    }
    return write_arrays(stream, arrays, metadata)


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().reshape(-1)
    if flat.stride(0) != 1:  # a single number counts as contiguous with any stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    yield flat.view(torch.uint8).numpy().data


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values of tensors, in the order of names."""
    flat = {name: tensor.detach().cpu().contiguous().view(-1) for name, tensor in tensors.items()}
    return values_sha256(
        (name, str(tensor.dtype), tuple(tensor.shape), [flat[name].view(torch.uint8).numpy().data])
        for name, tensor in sorted(tensors.items())
    )


def load_model(directory: Path, device: torch.device) -> TrainedModel:
    """Load a model directory, in evaluation mode on a device.

    Raises:
        ModelError: a file is missing, damaged, of a newer format, or belongs to another model; the
            message has its path.
    """
    saved = load_config(directory)
    tokenizers = load_tokenizers(directory, saved)
    weights = _load_weights(directory, saved)
    with torch.device("meta"):  # no initial weights are drawn, since all are loaded
        transformer = build_transformer(saved.settings.model, saved.vocab_sizes)
    transformer.load_state_dict(weights, assign=True)
    return TrainedModel(saved.settings, tokenizers, transformer.to(device).eval())


def weights_facts(directory: Path) -> WeightsFacts | None:
    """Return the facts that a weights file records, or None if there is no weights file yet.

    Raises:
        ModelError: the file is damaged or records none.
    """
    if not (directory / WEIGHTS_FILE).exists():
        return None
    with opened_weights(directory) as (_, file):
        update, scores = recorded_scores(read_metadata(file))
    return WeightsFacts(update, scores)


def _load_weights(directory: Path, saved: SavedConfig) -> dict[str, Tensor]:
    """Read the weights into new memory, after the whole header has been checked."""
    with opened_weights(directory) as (path, file):
        metadata = check_header(path, file, saved)
        contents = file.read()
        weights = {
            name: torch.frombuffer(contents[name], dtype=torch.float32).view(shape)
            for name, shape in weight_shapes(saved.settings.model, saved.vocab_sizes).items()
        }
    if not is_verified(metadata) and file.sha256(contents) != metadata.get("weights_sha256"):
        raise changed_weights_error(path)
    if bad := non_finite_tensors(weights):
        raise non_finite_weights_error(path, bad)
    return weights


def non_finite_tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors with values that are infinite or NaN."""
    # A finite sum proves that all values are finite, at a twentieth of the cost.
    return [
        name
        for name, tensor in tensors.items()
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all())
    ]
