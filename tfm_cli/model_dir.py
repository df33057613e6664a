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
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tfm_cli.config import ModelConfig, RunConfig
from tfm_cli.errors import ModelError
from tfm_cli.files import atomic_file, utf8_name
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_config import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    load_config,
    load_tokenizers,
    regular_file,
)
from tfm_cli.tensor_file import write_tensors
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
    with atomic_file(directory / WEIGHTS_FILE) as stream:
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
    # On the meta device the shapes cost no memory: nothing is allocated before it is checked.
    with torch.device("meta"):
        transformer = build_transformer(shape, saved.vocab_sizes)
    expected = transformer.state_dict()
    weights = _load_weights(directory, expected, shape, saved.tokenizer_sha256)
    transformer.load_state_dict(weights, assign=True)
    return TrainedModel(saved.settings, tokenizers, transformer.to(device).eval())


def weights_facts(directory: Path) -> WeightsFacts | None:
    """What the weights file of a model directory says of itself; None where there is none yet."""
    if not (directory / WEIGHTS_FILE).exists():
        return None
    path = regular_file(directory, WEIGHTS_FILE)
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt") as file:
            metadata = _metadata(file)
        return WeightsFacts(int(metadata["update"]), dict(metadata["scores"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _torn(path, error) from error


def _load_weights(
    directory: Path, expected: Mapping[str, Tensor], shape: ModelConfig, tokenizer_sha256: str
) -> dict[str, Tensor]:
    """The weights, in memory that is theirs."""
    path = regular_file(directory, WEIGHTS_FILE)
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt") as file:
            metadata = _metadata(file)
            _check_header(path, file, metadata, expected, shape, tokenizer_sha256)
        with WeightsFile(path) as weights_file:
            contents = weights_file.read()
        weights = {
            name: torch.frombuffer(contents[name], dtype=torch.float32).view(tensor.shape)
            for name, tensor in expected.items()
        }
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _torn(path, error) from error
    if weights_file.sha256(contents) != metadata.get("weights_sha256"):
        hint = "copy the file again"
        raise ModelError(f"{path}: the weights are not those that were saved", hint=hint)
    bad = []
    for name, tensor in weights.items():
        # A sum costs a twentieth, and is finite only if all numbers are.
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            bad.append(name)
    if bad:
        raise ModelError(f"{path}: has values that are no finite numbers: {_listed(bad, ', ')}")
    return weights


def _check_header(
    path: Path,
    file: Any,
    metadata: Mapping[str, Any],
    expected: Mapping[str, Tensor],
    shape: ModelConfig,
    tokenizer_sha256: str,
) -> None:
    version = metadata.get("format_version", 0)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        told = f"has format {version}, wanted at most {FORMAT_VERSION}"
        raise ModelError(f"{path}: {told}", hint="install a newer tfm")
    found = set(file.keys())
    wrong = [f"{name}: missing" for name in expected if name not in found]
    wrong += [f"{name}: unknown" for name in sorted(found - set(expected))]
    for name in sorted(found & set(expected)):
        entry, wanted = file.get_slice(name), tuple(expected[name].shape)
        if tuple(entry.get_shape()) != wanted:
            wrong.append(f"{name}: has shape {tuple(entry.get_shape())}, wanted {wanted}")
        if entry.get_dtype() != "F32":
            wrong.append(f"{name}: has type {entry.get_dtype()}, wanted F32")
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


def _metadata(file: Any) -> dict[str, Any]:
    metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no JSON object")
    return metadata


def _torn(path: Path, error: Exception) -> ModelError:
    hint = "copy it again, or go back to a checkpoint"
    return ModelError(f"{path}: is torn or no safetensors file: {error}", hint=hint)


def _listed(lines: list[str], separator: str = "\n  ") -> str:
    more = len(lines) - _MAX_NAMED
    return separator.join(lines[:_MAX_NAMED] + ([f"… and {more} more"] if more > 0 else []))
