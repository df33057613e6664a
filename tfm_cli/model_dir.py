"""A model on disk: `config.json`, tokenizers and `model.safetensors`, verified when read.

The names are fixed, and hashes tie settings, tokenizer and weights together, so a folder that was
mixed, torn or tampered with is refused by name.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfm_cli.config import ModelConfig, RunConfig
from tfm_cli.errors import ModelError
from tfm_cli.files import atomic_file
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_config import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    load_config,
    load_tokenizers,
    regular_file,
    torn_weights,
)
from tfm_cli.plain_json import parse_object
from tfm_cli.tensor_file import write_tensors
from tfm_cli.tensor_header import Values
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.weights_file import WeightsFile, values_sha256

_METADATA_KEY = "tfm"  # only one: safetensors writes several in an order that changes
_MAX_NAMED = 8  # tensors that a message lists


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
) -> None:
    """Write the weights that translate, tied to the tokenizers and shape they were learned with.

    The same weights and facts give the same bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {
        "format_version": FORMAT_VERSION,
        "model": _shape(shape),
        "tokenizer_sha256": tokenizers.sha256,
        "weights_sha256": weights_sha256(tensors),
        **dataclasses.asdict(facts),
    }
    with atomic_file(directory / WEIGHTS_FILE, follow=False) as stream:
        write_tensors(stream, tensors, {_METADATA_KEY: json.dumps(metadata)})


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
    shape = saved.settings.model
    shapes = weight_shapes(shape, saved.vocab_sizes)
    weights = _load_weights(directory, shapes, shape, saved.tokenizer_sha256)
    with torch.device("meta"):  # the weights take the place of what would be drawn
        transformer = build_transformer(shape, saved.vocab_sizes)
    transformer.load_state_dict(weights, assign=True)
    return TrainedModel(saved.settings, tokenizers, transformer.to(device).eval())


def weight_shapes(config: ModelConfig, vocab_sizes: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a model; without memory or time for what it is."""
    shallow = dataclasses.replace(config, encoder_layers=1, decoder_layers=1)
    with torch.device("meta"):
        found = build_transformer(shallow, vocab_sizes).state_dict()
    layers = {"encoder_layers": config.encoder_layers, "decoder_layers": config.decoder_layers}
    shapes = {}
    for name, tensor in found.items():
        stack, _, rest = name.partition(".0.")
        names = [f"{stack}.{i}.{rest}" for i in range(layers[stack])] if stack in layers else [name]
        shapes.update(dict.fromkeys(names, tuple(tensor.shape)))
    return shapes


def weights_facts(directory: Path) -> WeightsFacts | None:
    """What the weights file of a model directory says of itself; None where there is none yet."""
    if not (directory / WEIGHTS_FILE).exists():
        return None
    path = regular_file(directory, WEIGHTS_FILE)
    try:
        with WeightsFile(path) as file:
            metadata = _metadata(file)
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


def _load_weights(
    directory: Path,
    expected: Mapping[str, tuple[int, ...]],
    shape: ModelConfig,
    tokenizer_sha256: str,
) -> dict[str, Tensor]:
    """The weights, in memory that is theirs; none of it is taken before all of the header fits."""
    path = regular_file(directory, WEIGHTS_FILE)
    try:
        with WeightsFile(path) as file:
            metadata = _metadata(file)
            _check_header(path, file.tensors, metadata, expected, shape, tokenizer_sha256)
            contents = file.read()
        weights = {
            name: torch.frombuffer(contents[name], dtype=torch.float32).view(wanted)
            for name, wanted in expected.items()
        }
    except (OSError, ValueError) as error:
        raise torn_weights(path, error) from error
    if file.sha256(contents) != metadata.get("weights_sha256"):
        hint = "copy the file again"
        raise ModelError(f"{path}: the weights are not those that were saved", hint=hint)
    if bad := not_finite(weights):
        raise ModelError(f"{path}: has values that are no finite numbers: {_listed(bad, ', ')}")
    return weights


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors with values that are no finite numbers."""
    # A sum costs a twentieth, and is finite only if all numbers are.
    return [
        name
        for name, tensor in tensors.items()
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all())
    ]


def _check_header(
    path: Path,
    found: Mapping[str, Values],
    metadata: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    shape: ModelConfig,
    tokenizer_sha256: str,
) -> None:
    version = metadata.get("format_version", 0)
    if type(version) is not int or version > FORMAT_VERSION:
        told = f"has format {version}, wanted at most {FORMAT_VERSION}"
        raise ModelError(f"{path}: {told}", hint="install a newer tfm")
    wrong = [f"{name}: missing" for name in expected if name not in found]
    wrong += [f"{name}: unknown" for name in sorted(found) if name not in expected]
    for name, values in sorted(found.items()):
        wanted = expected.get(name, values.shape)
        if values.shape != wanted:
            wrong.append(f"{name}: has shape {values.shape}, wanted {wanted}")
        if values.dtype != "F32":
            wrong.append(f"{name}: has type {values.dtype}, wanted F32")
    if not wrong:
        # The same tensors mean something else with another number of heads, for example. A shape
        # that an older format did not know of was what is now the default.
        learned_with = metadata.get("model")
        before = _shape(ModelConfig()) | learned_with if isinstance(learned_with, dict) else {}
        wrong = [
            f"model.{name}: was {before.get(name)} in training, is {value}"
            for name, value in _shape(shape).items()
            if before.get(name) != value
        ]
    if wrong:
        raise ModelError(f"{path}: does not fit {CONFIG_FILE}\n  {_listed(wrong)}")
    if metadata.get("tokenizer_sha256") != tokenizer_sha256:
        raise ModelError(
            f"{path}: was trained with another tokenizer: found SHA-256 "
            f"{metadata.get('tokenizer_sha256')}, wanted {tokenizer_sha256}"
        )


def _shape(config: ModelConfig) -> dict[str, Any]:
    """The settings that decide on what the weights compute; dropout is for training only."""
    table = dataclasses.asdict(config)
    del table["dropout"]
    return table


def _metadata(file: WeightsFile) -> dict[str, Any]:
    return parse_object(file.metadata.get(_METADATA_KEY, "{}").encode())


def _listed(lines: list[str], separator: str = "\n  ") -> str:
    more = len(lines) - _MAX_NAMED
    return separator.join(lines[:_MAX_NAMED] + ([f"… and {more} more"] if more > 0 else []))
