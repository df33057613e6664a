"""Export to CTranslate2, with the public specs of the package `ctranslate2`."""

# D model width, V vocabulary

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfm_cli.config.settings import ModelConfig
from tfm_cli.errors import ConfigError, ResourceError, install_extra
from tfm_cli.files import durable
from tfm_cli.interop.names import TensorName, tensor_names
from tfm_cli.interop.tensors import export_positions
from tfm_cli.model.deepnorm import post_norm_weights
from tfm_cli.model.positions import SinusoidalPositions
from tfm_cli.model_directory.weights import TrainedModel

logger = logging.getLogger(__name__)

FILES = (
    "config.json", "model.bin", "shared_vocabulary.json", "source_vocabulary.json",
    "target_vocabulary.json", "source.spm", "target.spm",
)  # fmt: skip
QUANTIZATIONS = ("int8", "int16", "float16", "bfloat16")
# Added to the logits of banned tokens: representable in fp16, and its exponential is zero in every
# precision.
BAN = -1e4


def write_ctranslate2(directory: Path, model: TrainedModel, *, quantization: str | None) -> None:
    """Write a model, and its SentencePiece models, into an empty directory.

    `Translator.translate_batch` takes the pieces of `source.spm` without </s>, which it adds
    itself, and returns pieces for `target.spm`.

    Tokens that are never generated, such as padding, are banned by a bias of the output layer, so
    that no option is needed. Their probability is then zero, whereas `tfm translate` includes them
    in the softmax, so scores are slightly higher.

    Args:
        directory: an empty directory.
        model: the model to write.
        quantization: `int8`, `int16`, `float16`, `bfloat16`, or None for fp32.

    Raises:
        ConfigError: the model has features that CTranslate2 lacks; the message lists them.
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
        ConfigError: the model has features that CTranslate2 lacks; the message lists them.
    """
    source, target = model.tokenizers.source, model.tokenizers.target
    problems = []
    for role, ids in (
        ("end piece", (source.eos_id, target.eos_id)),
        ("unknown piece", (source.unk_id, target.unk_id)),
    ):
        pieces = source.pieces[ids[0]], target.pieces[ids[1]]
        if pieces[0] != pieces[1]:
            got = f"got `{pieces[0]}` and `{pieces[1]}`"
            problems.append(f"tokenizers: CTranslate2 has one {role} for both sides, {got}")
    if problems:
        title = "the model cannot be written for CTranslate2"
        raise ConfigError("\n  ".join([title, *problems]))


def _spec(model: TrainedModel) -> Any:
    """Return a `TransformerSpec` with the weights and vocabularies of a model."""
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
    """Return the error for a missing CTranslate2."""
    return ResourceError("CTranslate2 is not installed", hint=install_extra("ctranslate2"))


def _variables(model: TrainedModel) -> dict[str, np.ndarray[Any, Any]]:
    """Return every weight by its path in the spec."""
    shape, pair = model.config.model, model.tokenizers
    weights = {name: value.detach().cpu() for name, value in model.transformer.state_dict().items()}
    if shape.norm == "deepnorm":
        weights = post_norm_weights(weights, shape.encoder_layers, shape.decoder_layers)
    parts: dict[str, list[Tensor]] = {}
    for name in tensor_names(shape):
        part = weights[name.tfm].chunk(name.parts)[name.part]
        for path in _paths(name, shape):
            parts.setdefault(path, []).append(part)
    variables = {path: torch.cat(tensors) for path, tensors in parts.items()}

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


def _paths(name: TensorName, shape: ModelConfig) -> list[str]:
    """Return the paths of a tensor in the spec; a tied tensor has one for each of its uses."""
    assert name.ctranslate2 is not None
    paths = [name.ctranslate2]
    if name.tfm == "target_embedding.weight":
        if shape.tied_embeddings & 1:
            paths.append("encoder/embeddings_0/weight")
        if shape.tied_embeddings & 2:
            paths.append("decoder/projection/weight")
    return paths


def _set(spec: Any, path: str, values: np.ndarray[Any, Any]) -> None:
    """Set the values at a path such as `encoder/layer_0/ffn/linear_0/weight`."""
    *scopes, last = path.split("/")
    for scope in scopes:
        name, _, index = scope.rpartition("_")
        # `linear_0` is an attribute of feed-forward layers, but an element of a list elsewhere.
        spec = getattr(spec, scope) if hasattr(spec, scope) else getattr(spec, name)[int(index)]
    setattr(spec, last, values)


def num_positions(model: TrainedModel) -> int:
    """Return the number of positions of an export: the tokens of the longest segment, plus one."""
    shape, search = model.config.model, model.config.search
    if shape.positions == "learned":
        return shape.max_positions
    return export_positions(search)[0]
