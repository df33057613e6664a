"""A model as `ctranslate2.Translator` loads it, built from CTranslate2's own public specs."""

# D model width, V vocabulary

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfm_cli.config.settings import ModelConfig
from tfm_cli.decoding.length import output_limit
from tfm_cli.errors import ConfigError, ResourceError
from tfm_cli.files import durable
from tfm_cli.interop.names import Name, names
from tfm_cli.model.positions import SinusoidalPositions
from tfm_cli.model_directory.weights import TrainedModel

logger = logging.getLogger(__name__)

FILES = (
    "config.json", "model.bin", "shared_vocabulary.json", "source_vocabulary.json",
    "target_vocabulary.json", "source.spm", "target.spm",
)  # fmt: skip
QUANTIZATIONS = ("int8", "int16", "float16", "bfloat16")
# Added to the logits of pieces that are never written. Half precision still has this number, and
# its exponential is nothing in any.
BAN = -1e4
_FEWEST_POSITIONS = 512
_MOST_POSITIONS = 16384


def write_ctranslate2(directory: Path, model: TrainedModel, *, quantization: str | None) -> None:
    """Write a model, and the SentencePiece models beside it, into an empty directory.

    `Translator.translate_batch` takes the pieces of `source.spm` without an end, which it adds
    itself, and gives pieces for `target.spm`.

    A piece that is never written, such as padding, is kept down by a bias of the output layer, so
    that no option is needed for it; its probability mass then does not count, where with
    `tfm translate` it does, and scores are higher by that little.

    Args:
        directory: an empty directory.
        model: what is written.
        quantization: `int8`, `int16`, `float16`, `bfloat16`, or None for single precision.

    Raises:
        ConfigError: the model has what CTranslate2 has not; lists all of it, and writes nothing.
        ResourceError: CTranslate2 is not installed.
    """
    refuse_inexpressible(model)
    spec = _spec(model)
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(directory))
    durable.write_file(directory / "source.spm", model.tokenizers.source.model_bytes)
    durable.write_file(directory / "target.spm", model.tokenizers.target.model_bytes)


def refuse_inexpressible(model: TrainedModel) -> None:
    """Refuse a model that CTranslate2 cannot express.

    Raises:
        ConfigError: lists all that it has not.
    """
    source, target = model.tokenizers.source, model.tokenizers.target
    problems = []
    for role, ids in (
        ("end", (source.eos_id, target.eos_id)),
        ("unknown piece", (source.unk_id, target.unk_id)),
    ):
        pieces = source.pieces[ids[0]], target.pieces[ids[1]]
        if pieces[0] != pieces[1]:
            told = f"got `{pieces[0]}` and `{pieces[1]}`"
            problems.append(f"tokenizers: CTranslate2 has one {role} for both sides, {told}")
    if problems:
        title = "the model cannot be written for CTranslate2"
        raise ConfigError("\n  ".join([title, *problems]))


def _spec(model: TrainedModel) -> Any:
    """The filled-in `TransformerSpec`."""
    try:
        from ctranslate2 import specs
    except ImportError as error:
        raise missing_ctranslate2() from error

    shape, pair = model.config.model, model.tokenizers
    activations = {
        "relu": specs.Activation.RELU,
        "gelu": specs.Activation.GELU,
        "swish": specs.Activation.SWISH,
        "swiglu": specs.Activation.SWISH,
    }
    options: dict[str, Any] = {
        "pre_norm": shape.norm == "pre",
        "activation": activations[shape.activation],
        "ffn_glu": shape.activation == "swiglu",
    }
    if shape.positions == "rotary":
        options |= {"rotary_dim": 0, "rotary_interleave": True}
    spec = specs.TransformerSpec(
        specs.TransformerEncoderSpec(shape.encoder.layers, shape.encoder.heads, **options),
        specs.TransformerDecoderSpec(shape.decoder.layers, shape.decoder.heads, **options),
    )
    for path, values in _variables(model).items():
        _set(spec, path, values)
    for side in (spec.encoder, spec.decoder):
        side.scale_embeddings = shape.scale_embeddings

    source, target = pair.source, pair.target
    spec.register_source_vocabulary(list(source.pieces))
    spec.register_target_vocabulary(list(target.pieces))
    spec.config.unk_token = target.pieces[target.unk_id]
    spec.config.bos_token = spec.config.decoder_start_token = target.pieces[target.start_id]
    spec.config.eos_token = target.pieces[target.eos_id]
    spec.config.add_source_eos = True
    return spec


def missing_ctranslate2() -> ResourceError:
    """What to tell where CTranslate2 is needed and is not there."""
    return ResourceError(
        "CTranslate2 is not installed", hint="install it with `pip install 'tfm-cli[ctranslate2]'`"
    )


def _variables(model: TrainedModel) -> dict[str, np.ndarray[Any, Any]]:
    """Every weight by its path in the spec."""
    shape, pair = model.config.model, model.tokenizers
    weights = {name: value.detach().cpu() for name, value in model.transformer.state_dict().items()}
    parts: dict[str, list[Tensor]] = {}
    for name in names(shape):
        part = weights[name.ours].chunk(name.parts)[name.part]
        for path in _paths(name, shape):
            parts.setdefault(path, []).append(part)
    variables = {path: torch.cat(found) for path, found in parts.items()}

    bias = variables.get("decoder/projection/bias", torch.zeros(pair.target.vocab_size)).clone()
    bias[list(pair.target.banned_ids)] += BAN
    variables["decoder/projection/bias"] = bias
    if shape.positions.startswith("sinusoidal"):
        layout = SinusoidalPositions(
            shape.width, layout=shape.positions.removeprefix("sinusoidal_")
        )
        table = layout.table(num_positions(model))  # (positions, D)
        for side in ("encoder", "decoder"):
            variables[f"{side}/position_encodings/encodings"] = table
    return {path: values.numpy() for path, values in variables.items()}


def _paths(name: Name, shape: ModelConfig) -> list[str]:
    """Where a tensor stands; what we have once for several uses stands at each of them."""
    assert name.ctranslate2 is not None
    paths = [name.ctranslate2]
    if name.ours == "target_embedding.weight":
        if shape.tied_embeddings & 1:
            paths.append("encoder/embeddings_0/weight")
        if shape.tied_embeddings & 2:
            paths.append("decoder/projection/weight")
    return paths


def _set(spec: Any, path: str, values: np.ndarray[Any, Any]) -> None:
    """Put values at a path such as `encoder/layer_0/ffn/linear_0/weight`."""
    *scopes, last = path.split("/")
    for scope in scopes:
        name, _, index = scope.rpartition("_")
        # `linear_0` is an attribute of feed-forward layers and the first of a list elsewhere.
        spec = getattr(spec, scope) if hasattr(spec, scope) else getattr(spec, name)[int(index)]
    setattr(spec, last, values)


def num_positions(model: TrainedModel) -> int:
    """How many positions an export has: for the longest source and translation, and one more."""
    shape, search = model.config.model, model.config.search
    if shape.positions == "learned":
        return shape.max_positions
    limit = output_limit(search.max_length, search.max_length_factor)
    needed = 1 + max(search.max_length, limit)
    return min(max(needed, _FEWEST_POSITIONS), _MOST_POSITIONS)
