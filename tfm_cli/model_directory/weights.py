"""A model on disk: `config.json`, tokenizers and `model.safetensors`, verified when read.

The names are fixed, and hashes tie settings, tokenizer and weights together, so a folder that was
mixed, torn or tampered with is refused by name.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tfm_cli.config.settings import ModelConfig, RunConfig
from tfm_cli.files.atomic import atomic_file
from tfm_cli.files.layout import WEIGHTS_FILE
from tfm_cli.files.safetensors_file import WeightsFile, values_sha256
from tfm_cli.model.tensor_file import write_tensors
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.config_file import (
    SavedConfig,
    load_config,
    load_tokenizers,
    needed_format,
    regular_file,
    torn_weights,
    without_later,
)
from tfm_cli.model_directory.weight_shapes import (
    INT8_FORMAT,
    METADATA_KEY,
    changed_weights,
    checked_header,
    metadata_of,
    shape_of,
    useless_weights,
    weight_shapes,
)
from tfm_cli.tokenizer.pair import TokenizerPair


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a model directory holds, ready for use."""

    config: RunConfig
    tokenizers: TokenizerPair
    transformer: Transformer


@dataclass(frozen=True, slots=True)
class WeightsFacts:
    """What the weights file says of itself."""

    update: int  # after which these weights were
    scores: dict[str, float]  # on the validation text, by metric; empty without one


def build_transformer(config: ModelConfig, vocab_sizes: tuple[int, int]) -> Transformer:
    """A Transformer of this shape, for so many source and target pieces, with fresh weights."""
    source_size, target_size = vocab_sizes
    shape = dataclasses.asdict(config)
    return Transformer(target_size, source_vocab_size=source_size, **shape)


def save_weights(
    directory: Path,
    weights: Mapping[str, Tensor],
    tokenizers: TokenizerPair,
    shape: ModelConfig,
    facts: WeightsFacts,
    *,
    precision: str = "fp32",
) -> None:
    """Write the weights that translate, tied to the tokenizers and shape they were learned with.

    The same weights and facts give the same bytes.

    Args:
        directory: that has the settings.
        weights: by name; in int8 those of `quantized` are bytes, beside the scales of their rows.
        tokenizers: of the model.
        shape: of the model.
        facts: that the file tells.
        precision: `fp32` or `int8`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {
        "format_version": max(needed_format(shape), INT8_FORMAT if precision == "int8" else 0),
        "model": without_later(shape_of(shape)),
        "tokenizer_sha256": tokenizers.sha256,
        "weights_sha256": weights_sha256(tensors),
        **dataclasses.asdict(facts),
        **({} if precision == "fp32" else {"precision": precision}),
    }
    with atomic_file(directory / WEIGHTS_FILE, follow=False) as stream:
        write_tensors(stream, tensors, {METADATA_KEY: json.dumps(metadata)})


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash of all names, types, shapes and values."""
    flat = {name: tensor.detach().cpu().contiguous().view(-1) for name, tensor in tensors.items()}
    return values_sha256(
        (name, str(tensor.dtype), tuple(tensor.shape), [flat[name].view(torch.uint8).numpy().data])
        for name, tensor in sorted(tensors.items())
    )


def load_model(directory: Path, device: torch.device) -> TrainedModel:
    """The model in a directory, in evaluation mode on a device.

    Raises:
        ModelError: something is missing, torn, of a newer format, or does not belong together;
            names the file, what was found and what was wanted.
    """
    saved = load_config(directory)
    tokenizers = load_tokenizers(directory, saved)
    weights = _load_weights(directory, saved)
    with torch.device("meta"):  # the weights take the place of what would be drawn
        transformer = build_transformer(saved.settings.model, saved.vocab_sizes)
    transformer.load_state_dict(weights, assign=True)
    return TrainedModel(saved.settings, tokenizers, transformer.to(device).eval())


def weights_facts(directory: Path) -> WeightsFacts | None:
    """What the weights file of a model directory says of itself; None where there is none yet."""
    if not (directory / WEIGHTS_FILE).exists():
        return None
    path = regular_file(directory, WEIGHTS_FILE)
    try:
        with WeightsFile(path) as file:
            metadata = metadata_of(file)
    except (OSError, ValueError) as error:
        raise torn_weights(path, error) from error
    update, scores = metadata.get("update"), metadata.get("scores")
    if (
        type(update) is not int
        or not 0 <= update <= 2**53
        or not isinstance(scores, dict)
        or not all(map(_is_score, scores.values()))
    ):
        raise torn_weights(path, ValueError("it tells no update and no scores"))
    return WeightsFacts(update, {name: float(value) for name, value in scores.items()})


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300


def _load_weights(directory: Path, saved: SavedConfig) -> dict[str, Tensor]:
    """The weights, in memory that is theirs; none of it is taken before all of the header fits."""
    path = regular_file(directory, WEIGHTS_FILE)
    try:
        with WeightsFile(path) as file:
            metadata = checked_header(path, file, saved)
            contents = file.read()
        weights = {
            name: torch.frombuffer(contents[name], dtype=torch.float32).view(shape)
            for name, shape in weight_shapes(saved.settings.model, saved.vocab_sizes).items()
        }
    except (OSError, ValueError) as error:
        raise torn_weights(path, error) from error
    if file.sha256(contents) != metadata.get("weights_sha256"):
        raise changed_weights(path)
    if bad := not_finite(weights):
        raise useless_weights(path, bad)
    return weights


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors with values that are no finite numbers."""
    # A sum costs a twentieth, and is finite only if all numbers are.
    return [
        name
        for name, tensor in tensors.items()
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all())
    ]
