"""The weights that a model must have: names, shapes, and what their file says of them.

All of it is known without PyTorch.
"""

# V source or target vocabulary, D model width, F inner width of the feed-forward layers

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfm_cli.config.settings import ModelConfig
from tfm_cli.errors import ModelError
from tfm_cli.files.layout import CONFIG_FILE
from tfm_cli.files.safetensors_file import Values, WeightsFile
from tfm_cli.files.untrusted import parse_object
from tfm_cli.model_directory.config_file import FORMAT_VERSION, SavedConfig

SCALES = ".scales"  # of the rows of a matrix in int8, behind its name
INT8_FORMAT = 4  # the first that has them
METADATA_KEY = "tfm"  # only one: safetensors writes several in an order that changes
_MAX_NAMED = 8  # tensors that a message lists

Shape = tuple[int, ...]


def weight_shapes(config: ModelConfig, vocab_sizes: tuple[int, int]) -> dict[str, Shape]:
    """Return the shape of each weight by its name, in the order of the Transformer's state.

    Args:
        config: the shape of the Transformer.
        vocab_sizes: of source and target.
    """
    source_size, target_size = vocab_sizes
    width, positions = config.width, (config.max_positions, config.width)
    shapes: dict[str, Shape] = {}
    if config.output_bias:
        shapes["output_bias"] = (target_size,)
    shapes["target_embedding.weight"] = (target_size, width)
    if not config.tied_embeddings & 1:
        shapes["source_embedding.weight"] = (source_size, width)
    if not config.tied_embeddings & 2:
        shapes["output.weight"] = (target_size, width)
    if config.positions == "learned":
        shapes["source_positions.embedding.weight"] = positions
        shapes["target_positions.embedding.weight"] = positions
    stacks = {"encoder": config.encoder, "decoder": config.decoder}
    for stack, of_stack in stacks.items():
        for layer in range(of_stack.layers):
            for name, shape in _layer(config, stack, of_stack.feed_forward_width):
                shapes[f"{stack}_layers.{layer}.{name}"] = shape
    if config.norm == "pre":
        for stack in stacks:
            shapes[f"{stack}_norm.weight"] = (width,)
            shapes[f"{stack}_norm.bias"] = (width,)
    return shapes


def _layer(config: ModelConfig, stack: str, inner: int) -> Iterator[tuple[str, Shape]]:
    """Yield names and shapes of the weights of a layer, whose inner width is given."""
    width = config.width
    attentions = (
        ("self_attention", "cross_attention") if stack == "decoder" else ("self_attention",)
    )
    for attention in attentions:
        yield from _linear(f"{attention}.projection", 3 * width, width)  # query, key, value
        yield from _linear(f"{attention}.output", width, width)
        yield from _norm(f"{attention}_norm", width)
    rows = 2 * inner if config.activation == "swiglu" else inner  # the gate is apart
    yield from _linear("feed_forward.inner", rows, width)
    yield from _linear("feed_forward.outer", width, inner)
    yield from _norm("feed_forward_norm", width)


def _linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.norm.weight", (width,)
    yield f"{name}.norm.bias", (width,)


def quantized(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return those of the weights that int8 has bytes for: matrices of products and embeddings."""
    return {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 2 and not name.endswith("_positions.embedding.weight")
    }


def stored_precision(path: Path) -> str:
    """Return `int8` for a weights file in int8, else `fp32`; a torn one is told of when loaded."""
    with contextlib.suppress(ValueError, OSError), WeightsFile(path) as file:
        return _precision(metadata_of(file))
    return "fp32"


def _precision(metadata: Mapping[str, Any]) -> str:
    return "int8" if metadata.get("precision") == "int8" else "fp32"


def shape_of(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that decide on what the weights compute; dropout is for training."""
    table = dataclasses.asdict(config)
    del table["dropout"]
    return table


def metadata_of(file: WeightsFile) -> dict[str, Any]:
    """Return what a weights file says of itself."""
    return parse_object(file.metadata.get(METADATA_KEY, "{}").encode())


def checked_header(
    path: Path, file: WeightsFile, saved: SavedConfig, *, precision: str = "fp32"
) -> dict[str, Any]:
    """Return what a weights file says of itself, if it has the weights that `config.json` wants.

    Args:
        path: of the file.
        file: open.
        saved: what `config.json` says.
        precision: of what computes with them; weights in int8 are for int8 alone.

    Raises:
        ModelError: it is of a newer format, or has other weights; all that is wrong is named.
        ValueError: what it says is no JSON.
    """
    metadata, shape = metadata_of(file), saved.settings.model
    version = metadata.get("format_version", 0)
    if type(version) is not int or version > FORMAT_VERSION:
        told = f"has format {version}, wanted at most {FORMAT_VERSION}"
        raise ModelError(f"{path}: {told}", hint="install a newer tfm")
    stored = _precision(metadata)
    if stored == "int8" and precision != "int8":
        raise ModelError(
            f"{path}: has weights in int8, which only the native CPU engine computes with, in int8",
            hint="use the model that it was exported from, or translate with `--device cpu` and "
            "without `--precision`",
        )
    wrong = _wrong_weights(file.tensors, weight_shapes(shape, saved.vocab_sizes), stored)
    if not wrong:
        # The same tensors mean something else with another number of heads, for example. A shape
        # that an older format did not know of was what is now the default.
        learned_with = metadata.get("model")
        before = shape_of(ModelConfig()) | learned_with if isinstance(learned_with, dict) else {}
        wrong = [
            f"model.{name}: was {before.get(name)} in training, is {value}"
            for name, value in shape_of(shape).items()
            if before.get(name) != value
        ]
    if wrong:
        raise ModelError(f"{path}: does not fit {CONFIG_FILE}\n  {_listed(wrong)}")
    if metadata.get("tokenizer_sha256") != saved.tokenizer_sha256:
        raise ModelError(
            f"{path}: was trained with another tokenizer: found SHA-256 "
            f"{metadata.get('tokenizer_sha256')}, wanted {saved.tokenizer_sha256}"
        )
    return metadata


def _wrong_weights(
    found: Mapping[str, Values], shapes: Mapping[str, Shape], precision: str
) -> list[str]:
    expected = {name: ("F32", shape) for name, shape in shapes.items()}
    if precision == "int8":
        for name, shape in quantized(shapes).items():
            expected[name] = ("I8", shape)
            expected[name + SCALES] = ("F32", shape[:1])
    wrong = [f"{name}: missing" for name in expected if name not in found]
    wrong += [f"{name}: unknown" for name in sorted(found) if name not in expected]
    for name, values in sorted(found.items()):
        dtype, shape = expected.get(name, ("F32", values.shape))
        if values.shape != shape:
            wrong.append(f"{name}: has shape {values.shape}, wanted {shape}")
        if values.dtype != dtype:
            wrong.append(f"{name}: has type {values.dtype}, wanted {dtype}")
    return wrong


def changed_weights(path: Path) -> ModelError:
    """Return what is raised where weights have another hash than those that were saved."""
    told = "the weights are not those that were saved"
    return ModelError(f"{path}: {told}", hint="copy the file again")


def useless_weights(path: Path, names: list[str]) -> ModelError:
    """Return what is raised where tensors of these names have values that are not finite."""
    return ModelError(f"{path}: has values that are no finite numbers: {_listed(names, ', ')}")


def _listed(lines: list[str], separator: str = "\n  ") -> str:
    more = len(lines) - _MAX_NAMED
    return separator.join(lines[:_MAX_NAMED] + ([f"… and {more} more"] if more > 0 else []))
