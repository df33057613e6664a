"""The tensors that a weights file must have, with their shapes, and the checks of its header.

Nothing here needs PyTorch.
"""

# V source or target vocabulary, D model width, F inner width of the feed-forward layers

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm_cli.config.settings import DROPOUT_SETTINGS, ModelConfig
from tfm_cli.errors import ModelError
from tfm_cli.files.layout import CONFIG_FILE
from tfm_cli.files.safetensors_file import SafetensorsFile
from tfm_cli.files.untrusted import parse_json_object
from tfm_cli.model_directory.config_file import FORMAT_VERSION, SavedConfig, is_checkpoint_model

SCALES = ".scales"  # suffix of the tensor with the scale of each row of an int8 matrix
INT8_FORMAT = 4  # the first format with int8 weights
METADATA_KEY = "tfm"  # only one key, since safetensors writes several in an arbitrary order
_MAX_LISTED = 8  # number of problems in a message

Shape = tuple[int, ...]


def weight_shapes(config: ModelConfig, vocab_sizes: tuple[int, int]) -> dict[str, Shape]:
    """Return the shape of each weight by its name, in the order of the Transformer's `state_dict`.

    Args:
        config: the hyperparameters of the Transformer.
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
    for name, stack in stacks.items():
        for layer in range(stack.layers):
            for weight, shape in _layer(config, name, stack.feed_forward_width):
                shapes[f"{name}_layers.{layer}.{weight}"] = shape
    if config.norm == "pre":
        for name in stacks:
            shapes[f"{name}_norm.weight"] = (width,)
            shapes[f"{name}_norm.bias"] = (width,)
    return shapes


def _layer(config: ModelConfig, stack: str, inner: int) -> Iterator[tuple[str, Shape]]:
    """Yield names and shapes of the weights of one layer; `inner` is F."""
    width = config.width
    attentions = (
        ("self_attention", "cross_attention") if stack == "decoder" else ("self_attention",)
    )
    for attention in attentions:
        yield from _linear(f"{attention}.projection", 3 * width, width)  # query, key, value
        yield from _linear(f"{attention}.output", width, width)
        yield from _norm(f"{attention}_norm", width)
    rows = 2 * inner if config.activation == "swiglu" else inner  # SwiGLU adds a gate
    yield from _linear("feed_forward.inner", rows, width)
    yield from _linear("feed_forward.outer", width, inner)
    yield from _norm("feed_forward_norm", width)


def _linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.norm.weight", (width,)
    yield f"{name}.norm.bias", (width,)


def int8_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the weights that int8 quantizes: the matrices of linear layers and embeddings."""
    return {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 2 and not name.endswith("_positions.embedding.weight")
    }


def shape_differences(
    actual: Mapping[str, Shape], expected: Mapping[str, Shape], *, optional: Collection[str] = ()
) -> list[str]:
    """Return a line for each tensor that is missing, unknown, or of another shape.

    Args:
        actual: the shapes that a file has, by name.
        expected: the shapes that it must have.
        optional: further names that it may have, in any shape.
    """
    differences = [f"{name}: missing" for name in expected if name not in actual]
    unknown = set(actual) - set(expected) - set(optional)
    differences += [f"{name}: unknown" for name in sorted(unknown)]
    differences += [
        f"{name}: has shape {actual[name]}, expected {shape}"
        for name, shape in expected.items()
        if actual.get(name, shape) != shape
    ]
    return differences


def listed(problems: Sequence[str], separator: str = "\n  ") -> str:
    """Join problems for a message: the first eight, and the number of the others."""
    more = len(problems) - _MAX_LISTED
    shown = [*problems[:_MAX_LISTED], *([f"… and {more} more"] if more > 0 else [])]
    return separator.join(shown)


def stored_precision(path: Path) -> str:
    """Return `int8` for a weights file in int8, else `fp32`; damage is reported on loading."""
    with contextlib.suppress(ValueError, OSError), SafetensorsFile(path) as file:
        return precision_in(read_metadata(file))
    return "fp32"


def precision_in(metadata: Mapping[str, Any]) -> str:
    """Return `int8` or `fp32`, the precision of the weights in a file with this metadata."""
    return "int8" if metadata.get("precision") == "int8" else "fp32"


def shape_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that determine what the weights compute: all but dropout."""
    table = dataclasses.asdict(config)
    return {name: value for name, value in table.items() if name not in DROPOUT_SETTINGS}


def read_metadata(file: SafetensorsFile) -> dict[str, Any]:
    """Return the metadata of a weights file.

    Raises:
        ValueError: it is not a JSON object.
    """
    return parse_json_object(file.metadata.get(METADATA_KEY, "{}").encode())


def recorded_scores(metadata: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """Return the update after which weights were saved, and their validation scores by metric.

    Raises:
        ValueError: the metadata of the weights file has no such facts.
    """
    update, scores = metadata.get("update"), metadata.get("scores")
    if (
        type(update) is not int
        or not 0 <= update <= 2**53
        or not isinstance(scores, dict)
        or not all(map(_is_score, scores.values()))
    ):
        raise ValueError("it has no valid update and scores")
    return update, {name: float(value) for name, value in scores.items()}


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300


_VERIFIED = object()


def is_verified(metadata: Mapping[str, Any]) -> bool:
    """Return True if the whole file was verified when it was opened, as that of a checkpoint.

    Its tensors then need no second hash.
    """
    return metadata.get("weights_sha256") is _VERIFIED


def check_header(
    path: Path, file: SafetensorsFile, saved: SavedConfig, *, precision: str = "fp32"
) -> dict[str, Any]:
    """Check that a weights file has the tensors that `config.json` requires; return its metadata.

    Args:
        path: of the file, for messages.
        file: the open file.
        saved: the content of `config.json`.
        precision: the precision to compute in; int8 weights can be used only in int8.

    Raises:
        ModelError: the file is of a newer format, or has differences, which are listed.
        ValueError: its metadata is not a JSON object.
    """
    metadata, shape = read_metadata(file), saved.settings.model
    if is_checkpoint_model(
        path.parent
    ):  # no metadata: the settings and the tokenizers are its run's
        metadata = {
            "model": shape_settings(shape),
            "tokenizer_sha256": saved.tokenizer_sha256,
            "weights_sha256": _VERIFIED,  # the whole file, when it was opened
        }
    version = metadata.get("format_version", 0)
    if type(version) is not int or version > FORMAT_VERSION:
        message = f"{path}: has format {version}, expected at most {FORMAT_VERSION}"
        raise ModelError(message, hint="install a newer tfm")
    stored = precision_in(metadata)
    if stored == "int8" and precision != "int8":
        raise ModelError(
            f"{path}: has weights in int8, which only the native CPU engine can use, in int8",
            hint="use the model that it was exported from, or translate with `--device cpu` and "
            "without `--precision`",
        )
    problems = _weight_differences(file, weight_shapes(shape, saved.vocab_sizes), stored)
    if not problems:
        # The same tensors compute something else with another number of heads, for example.
        # Settings that an older format lacks had the values that are now the defaults.
        trained = metadata.get("model")
        trained = shape_settings(ModelConfig()) | trained if isinstance(trained, dict) else {}
        problems = [
            f"model.{name}: was {trained.get(name)} in training, is {value}"
            for name, value in shape_settings(shape).items()
            if trained.get(name) != value
        ]
    if problems:
        raise ModelError(f"{path}: does not fit {CONFIG_FILE}\n  {listed(problems)}")
    if metadata.get("tokenizer_sha256") != saved.tokenizer_sha256:
        raise ModelError(
            f"{path}: was trained with another tokenizer: expected SHA-256 "
            f"{saved.tokenizer_sha256}, got {metadata.get('tokenizer_sha256')}"
        )
    return metadata


def _weight_differences(
    file: SafetensorsFile, shapes: Mapping[str, Shape], precision: str
) -> list[str]:
    expected = dict(shapes)
    dtypes = dict.fromkeys(shapes, "F32")
    if precision == "int8":
        for name, shape in int8_shapes(shapes).items():
            dtypes[name] = "I8"
            expected[name + SCALES], dtypes[name + SCALES] = shape[:1], "F32"
    actual = {name: info.shape for name, info in file.tensors.items()}
    return shape_differences(actual, expected) + [
        f"{name}: has type {info.dtype}, expected {dtypes.get(name, 'F32')}"
        for name, info in sorted(file.tensors.items())
        if info.dtype != dtypes.get(name, "F32")
    ]


def non_finite_weights_error(path: Path, names: list[str]) -> ModelError:
    """Return the error for weights in which the named tensors have values that are not finite."""
    return ModelError(f"{path}: has values that are not finite numbers: {listed(names, ', ')}")
