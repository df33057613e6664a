"""A model on disk: `config.json`, `tokenizer.model` and `model.safetensors`, verified when read.

The names are fixed, config names no path, and hashes tie tokenizer and weights together, so a
folder that was mixed, torn or tampered with is refused by name.
"""

import dataclasses
import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

import tfm_cli
from tfm_cli.config import ModelConfig, RunConfig
from tfm_cli.configfile import Problems, from_mapping, to_mapping
from tfm_cli.errors import ModelError
from tfm_cli.model.transformer import Transformer
from tfm_cli.text import atomic_file
from tfm_cli.tokenizer import Tokenizer

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.model"
WEIGHTS_FILE = "model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a model directory holds, ready for use."""

    config: RunConfig
    tokenizer: Tokenizer
    transformer: Transformer


def build_transformer(config: ModelConfig, vocab_size: int) -> Transformer:
    """A Transformer of this shape with fresh weights."""
    return Transformer(vocab_size, **dataclasses.asdict(config))


def save_config(directory: Path, config: RunConfig, tokenizer: Tokenizer) -> None:
    """Write what does not change while a model learns: its settings and its tokenizer."""
    with atomic_file(directory / TOKENIZER_FILE) as stream:
        stream.write(tokenizer.model_bytes)
    header = {
        "format_version": FORMAT_VERSION,
        "tfm_version": tfm_cli.__version__,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "settings": to_mapping(config),
    }
    with atomic_file(directory / CONFIG_FILE) as stream:
        stream.write(json.dumps(header, indent=2, ensure_ascii=False).encode() + b"\n")


def save_weights(
    directory: Path, weights: Mapping[str, Tensor], tokenizer: Tokenizer, *, update: int
) -> None:
    """Write the weights that translate, with the hashes that tie them to the tokenizer."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {
        "format": "pt",
        "format_version": str(FORMAT_VERSION),
        "tokenizer_sha256": tokenizer.sha256,
        "weights_sha256": weights_sha256(tensors),
        "update": str(update),
    }
    with atomic_file(directory / WEIGHTS_FILE) as stream:
        stream.write(to_safetensors(tensors, metadata))


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash of all names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_model(directory: Path, device: torch.device) -> TrainedModel:
    """The model in a directory, in evaluation mode on a device.

    Raises:
        ModelError: something is missing, torn, of a newer format, or does not belong together;
            names the file, what was found and what was wanted.
    """
    config, vocab_size, tokenizer_sha256 = load_config(directory)
    tokenizer = Tokenizer.load(regular_file(directory, TOKENIZER_FILE))
    if tokenizer.sha256 != tokenizer_sha256:
        raise ModelError(
            f"{directory / TOKENIZER_FILE}: is not the tokenizer this model was trained with: "
            f"found SHA-256 {tokenizer.sha256}, wanted {tokenizer_sha256}",
            hint="put the right tokenizer back, or copy the model directory again as a whole",
        )
    if tokenizer.vocab_size != vocab_size:
        found = f"found {tokenizer.vocab_size} pieces, wanted {vocab_size}"
        raise ModelError(f"{directory / TOKENIZER_FILE}: does not fit {CONFIG_FILE}: {found}")
    # On the meta device the shapes cost no memory: nothing is allocated before it is checked.
    with torch.device("meta"):
        transformer = build_transformer(config.model, vocab_size)
    weights = _load_weights(directory, transformer.state_dict(), tokenizer_sha256)
    transformer.load_state_dict(weights, assign=True)
    return TrainedModel(config, tokenizer, transformer.to(device).eval())


def load_config(directory: Path) -> tuple[RunConfig, int, str]:
    """The settings of a model directory, its vocabulary size and its tokenizer's hash."""
    path = regular_file(directory, CONFIG_FILE)
    raw = path.read_bytes() if path.stat().st_size <= _MAX_CONFIG_BYTES else b""
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
        version = header["format_version"]
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ModelError(
                f"{path}: has format {version}, this is tfm {tfm_cli.__version__} which reads up "
                f"to {FORMAT_VERSION}; made by tfm {header.get('tfm_version')}",
                hint="install a newer tfm",
            )
        settings, sha256 = header["settings"], str(header["tokenizer_sha256"])
        vocab_size = int(header["vocab_size"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: is no model config: {error!r}") from error
    problems = Problems()
    config = from_mapping(settings if isinstance(settings, dict) else {}, problems)
    if problems.lines or not 2 <= vocab_size <= 1_000_000:
        lines = problems.lines or [f"vocab_size: must be between 2 and 1000000, got {vocab_size}"]
        raise ModelError("\n  ".join([f"{path}: has settings that cannot be used", *lines]))
    return config, vocab_size, sha256


def regular_file(directory: Path, name: str) -> Path:
    """The path of a file in a model directory, which must be there and be a plain file."""
    path = directory / name
    if not directory.is_dir():
        raise ModelError(
            f"{directory}: there is no such model directory",
            hint="train one with `tfm train --output DIR`, or name another with `--model DIR`",
        )
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "no validation was reached yet" if name == WEIGHTS_FILE else "it is incomplete"
        raise ModelError(f"{directory}: has no `{name}`: {reason}, or it is no model") from error
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path}: is not a regular file")
    return path


def _load_weights(
    directory: Path, expected: Mapping[str, Tensor], tokenizer_sha256: str
) -> dict[str, Tensor]:
    path = regular_file(directory, WEIGHTS_FILE)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            _check_weights_header(path, file, metadata, expected, tokenizer_sha256)
            weights = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError, ValueError) as error:
        hint = "copy it again, or go back to a checkpoint"
        raise ModelError(f"{path}: is torn or no safetensors file: {error}", hint=hint) from error
    if weights_sha256(weights) != metadata.get("weights_sha256"):
        hint = "copy the file again"
        raise ModelError(f"{path}: the weights are not those that were saved", hint=hint)
    bad = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise ModelError(f"{path}: has values that are no finite numbers: {', '.join(bad)}")
    return weights


def _check_weights_header(
    path: Path,
    file: Any,
    metadata: Mapping[str, str],
    expected: Mapping[str, Tensor],
    tokenizer_sha256: str,
) -> None:
    found = set(file.keys())
    wrong = [f"{name}: missing" for name in expected if name not in found]
    wrong += [f"{name}: unknown" for name in sorted(found - set(expected))]
    for name in sorted(found & set(expected)):
        shape, wanted = tuple(file.get_slice(name).get_shape()), tuple(expected[name].shape)
        if shape != wanted:
            wrong.append(f"{name}: has shape {shape}, wanted {wanted}")
        if file.get_slice(name).get_dtype() != "F32":
            wrong.append(f"{name}: has type {file.get_slice(name).get_dtype()}, wanted F32")
    if wrong:
        shown = wrong[:8] + ([f"… and {len(wrong) - 8} more"] if len(wrong) > 8 else [])
        raise ModelError("\n  ".join([f"{path}: does not fit {CONFIG_FILE}", *shown]))
    if metadata.get("tokenizer_sha256") != tokenizer_sha256:
        raise ModelError(
            f"{path}: was trained with another tokenizer: found SHA-256 "
            f"{metadata.get('tokenizer_sha256')}, wanted {tokenizer_sha256}"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
