"""Write a model for `transformers.MarianMTModel` and `MarianTokenizer`.

No package of Hugging Face but safetensors is needed: the rest is JSON and SentencePiece models.
"""

# D model width, V vocabulary, F inner width of the feed-forward layers

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tfm_cli.config.settings import ModelConfig, SearchConfig
from tfm_cli.decoding.interface import output_limit
from tfm_cli.errors import ConfigError
from tfm_cli.files import durable
from tfm_cli.interop.names import tensor_names
from tfm_cli.interop.tensors import export_positions
from tfm_cli.model.deepnorm import post_norm_weights
from tfm_cli.model.positions import marian_sinusoids
from tfm_cli.model_directory.weights import TrainedModel
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


FILES = (
    "config.json", "generation_config.json", "model.safetensors", "source.spm", "target.spm",
    "vocab.json", "target_vocab.json", "tokenizer_config.json",
)  # fmt: skip
POSITIONS_KEY = "tfm_positions"  # in config.json: the position encodings that an import restores
_PAD = "<pad>"


def write_hugging_face(directory: Path, model: TrainedModel) -> None:
    """Write a model into an empty directory.

    `generate()` with the written settings returns what `tfm translate` does, with four exceptions:
    the length limit is a single number there, but depends on the source here; a translation that
    reaches the limit is ranked without its </s>; `search.length_norm: wu` becomes `power`; and
    `search.repetition_penalty` is left out. The last two are reported.

    Interleaved sinusoids are written as halves, see `to_halves`, with the original kind under
    `tfm_positions` in `config.json`. Marian's own sinusoids cannot be converted: their table is
    written with the weights, and a warning is logged, since a runtime has to read it from there.

    Raises:
        ConfigError: the model has features that Marian lacks; the message lists them.
    """
    refuse_inexpressible(model)
    shape, search, pair = model.config.model, model.config.search, model.tokenizers
    positions, needed = export_positions(search)
    if needed > positions:
        message = "search.max_length: needs %d positions, %d were written"
        logger.warning(message, needed, positions)
    tensors = hugging_face_tensors(model, positions)

    contents = {
        "config.json": _json(_config(shape, pair, positions)),
        "generation_config.json": _json(_generation(search, pair, positions)),
        "tokenizer_config.json": _json(_tokenizer_config(pair, positions)),
        "source.spm": pair.source.model_bytes,
        "target.spm": pair.target.model_bytes,
        "vocab.json": _json(_ids(pair.source)),
        "model.safetensors": to_safetensors(tensors, {"format": "pt"}),
    }
    if not pair.shares_vocabulary:
        contents["target_vocab.json"] = _json(_ids(pair.target))
    for name, content in contents.items():
        durable.write_file(directory / name, content)
    if search.length_norm == "wu" and search.length_penalty != 0:
        logger.warning("search.length_norm: `wu` is unknown there, `power` was written")
    if search.repetition_penalty != 1:
        # Hugging Face penalizes log-probabilities, and the start token as well.
        logger.warning("search.repetition_penalty: is computed differently there, and was left out")
    if _may_know_tags_as_text(pair.source):
        logger.warning(
            "tokenizers: this model reads language tags such as `>>fra<<` as text, but "
            "MarianTokenizer does not: do not use them there"
        )
    if shape.positions == "sinusoidal_marian":
        where = "`embed_positions` in model.safetensors"
        logger.warning("model.positions: a runtime must read `sinusoidal_marian` from %s", where)


def refuse_inexpressible(model: TrainedModel) -> None:
    """Refuse a model that Hugging Face's Marian cannot express.

    Raises:
        ConfigError: the model has features that Marian lacks; the message lists them.
    """
    shape, pair = model.config.model, model.tokenizers
    problems = []
    if shape.norm == "pre":
        problems.append(f"model.norm: Marian has `post` only, got `{shape.norm}`")
    if not shape.positions.startswith("sinusoidal"):
        problems.append(f"model.positions: Marian has sinusoids only, got `{shape.positions}`")
    if shape.activation == "swiglu":
        problems.append("model.activation: Marian has no gates, got `swiglu`")
    source, target = pair.source, pair.target
    ends = [(side.pieces[side.eos_id], side.eos_id) for side in (source, target)]
    if ends[0] != ends[1]:
        first, second = (f"`{piece}` with the id {index}" for piece, index in ends)
        problems.append(
            "tokenizers: MarianTokenizer has one end piece for both sides, "
            f"got {first} and {second}"
        )
    # MarianTokenizer drops the special ids of the source side from targets as well.
    elif source.unk_id not in {*target.banned_ids, target.unk_id, target.start_id}:
        unk = f"`{source.pieces[source.unk_id]}` has the id {source.unk_id}"
        there = f"which is `{target.pieces[source.unk_id]}` in the target"
        problems.append(f"tokenizers: MarianTokenizer would leave it out: {unk}, {there}")
    problems += _unreadable_tags(source)
    if problems:
        title = "the model cannot be written as Hugging Face Marian"
        raise ConfigError("\n  ".join([title, *problems]))


def _may_know_tags_as_text(source: Tokenizer) -> bool:
    """Return True if a tokenizer without tags learned pieces that begin like a tag."""
    if source.language_tags or not source.reads_tags_as_text:
        return False
    return any(piece.startswith("▁>>") for piece in source.pieces)


def _unreadable_tags(source: Tokenizer) -> list[str]:
    """Return the problems with language tags, which MarianTokenizer splits off by itself."""
    tags = source.language_tags
    if tags and source.reads_tags_as_text:
        (pieces,) = source.encode_pieces([tags[0]])
        spelled = ", ".join(f"`{piece}`" for piece in pieces)
        problem = f"MarianTokenizer has one piece for a language tag, got {spelled}"
        return [f"tokenizers: {problem}: train the tokenizer again with `tfm train`"]
    if len(set(source.marian_pieces)) < len(source.pieces):
        return ["tokenizers: MarianTokenizer has one piece for a language tag, got two"]
    return []


def hugging_face_tensors(model: TrainedModel, positions: int) -> dict[str, Tensor]:
    """Return copies of the parameters under Hugging Face's names.

    Args:
        model: a model that Marian can express.
        positions: the number of rows of a table of positions, if one is written.
    """
    shape = model.config.model
    weights = {name: value.detach().cpu() for name, value in model.transformer.state_dict().items()}
    if shape.norm == "deepnorm":
        weights = post_norm_weights(weights, shape.encoder_layers, shape.decoder_layers)
    if shape.positions == "sinusoidal":
        weights = to_halves(weights, shape)
    tensors = {}
    for name in tensor_names(shape):
        assert name.hugging_face is not None
        part = weights[name.tfm].chunk(name.parts)[name.part]
        tensors[name.hugging_face] = part.clone().contiguous()
    bias = tensors.get("final_logits_bias", torch.zeros(model.tokenizers.target.vocab_size))
    tensors["final_logits_bias"] = bias[None]  # (1, V)
    if shape.tied_embeddings == 1:
        # MarianMTModel ties either all embeddings or none, so each gets a copy.
        for side in ("encoder", "decoder"):
            tensors[f"model.{side}.embed_tokens.weight"] = tensors["model.shared.weight"].clone()
    if shape.positions == "sinusoidal_marian":
        for side in ("encoder", "decoder"):
            table = marian_sinusoids(torch.arange(positions), shape.width)  # (positions, D)
            tensors[f"model.{side}.embed_positions.weight"] = table
    return tensors


def _config(shape: ModelConfig, pair: TokenizerPair, positions: int) -> dict[str, Any]:
    source_size, target_size = pair.vocab_sizes
    table: dict[str, Any] = {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "is_encoder_decoder": True,
        "vocab_size": source_size,
        "decoder_vocab_size": target_size,
        "d_model": shape.width,
        "activation_function": shape.activation,
        "dropout": shape.dropout,
        "attention_dropout": shape.attention_dropout,
        "activation_dropout": shape.activation_dropout,
        "scale_embedding": shape.scale_embeddings,
        "share_encoder_decoder_embeddings": bool(shape.tied_embeddings & 1),
        "tie_word_embeddings": bool(shape.tied_embeddings & 2),
        "max_position_embeddings": positions,
        "torch_dtype": "float32",
        "bos_token_id": None,
        **_special_ids(pair),
    }
    for side, stack in (("encoder", shape.encoder), ("decoder", shape.decoder)):
        table[f"{side}_layers"] = stack.layers
        table[f"{side}_attention_heads"] = stack.heads
        table[f"{side}_ffn_dim"] = stack.feed_forward_width
    if shape.positions != "sinusoidal_halves":
        table[POSITIONS_KEY] = shape.positions
    return table


def _generation(search: SearchConfig, pair: TokenizerPair, positions: int) -> dict[str, Any]:
    limit = output_limit(search.max_length, search.max_length_factor)
    table: dict[str, Any] = {
        # The start token, the longest translation, and </s>, which needs no position.
        "max_length": min(limit + 2, positions + 1),
        "num_beams": search.beam_size,
        "do_sample": False,
        "renormalize_logits": search.renormalize,
        "bad_words_ids": [[banned] for banned in pair.target.banned_ids],
        **_special_ids(pair),
    }
    if not pair.target.banned_ids:
        del table["bad_words_ids"]  # `transformers` refuses an empty list
    if search.no_repeat_ngram_size:
        table["no_repeat_ngram_size"] = search.no_repeat_ngram_size
    if search.beam_size > 1:
        table["early_stopping"] = search.early_stopping
        table["length_penalty"] = search.length_penalty
    return table


def _special_ids(pair: TokenizerPair) -> dict[str, int]:
    target = pair.target
    return {
        "decoder_start_token_id": target.start_id,
        "eos_token_id": target.eos_id,
        "forced_eos_token_id": target.eos_id,
        "pad_token_id": _ids(pair.source)[_padding(pair)],
    }


def _padding(pair: TokenizerPair) -> str:
    """Return the padding piece: one with the same id on both sides that is never generated."""
    ids = [_ids(side).get(_PAD) for side in (pair.source, pair.target)]
    if ids[0] is not None and ids[0] == ids[1] and ids[0] in pair.target.banned_ids:
        return _PAD
    # Otherwise </s> is used: padding is masked in the source and follows </s> in the target.
    return pair.source.pieces[pair.source.eos_id]


def _tokenizer_config(pair: TokenizerPair, positions: int) -> dict[str, Any]:
    source = pair.source
    return {
        "tokenizer_class": "MarianTokenizer",
        "separate_vocabs": not pair.shares_vocabulary,
        "unk_token": source.pieces[source.unk_id],
        "eos_token": source.pieces[source.eos_id],
        "pad_token": _padding(pair),
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
    }


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {piece: index for index, piece in enumerate(tokenizer.marian_pieces)}


def _json(table: dict[str, Any]) -> bytes:
    text = json.dumps(table, ensure_ascii=False, indent=2)
    return text.encode("utf-8", "backslashreplace") + b"\n"


# Interleaved sinusoids alternate sine and cosine, as in the paper; other programs compute all sines
# before all cosines. The order of coordinates is arbitrary in a Transformer as long as embeddings,
# matrices, norms and position encodings agree on it. Permuting the weights therefore converts a
# model between the two layouts, bit-exactly in both directions.

# Suffixes of the names of parameters whose columns, or whose rows, are an axis of the model width.
# No other parameter has such an axis.
_COLUMNS = (
    "_embedding.weight",  # (V, D)
    ".projection.weight",  # (3D, D)
    ".inner.weight",  # (F, D)
)
_ROWS = (
    "_attention.output.weight",  # (D, D)
    "_attention.output.bias",  # (D,)
    ".outer.weight",  # (D, F)
    ".outer.bias",
    "norm.weight",
    "norm.bias",
)
_OUTPUT = "output.weight"  # (V, D), if it is not tied to an embedding


def to_halves(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return weights for `sinusoidal_halves` that compute the same as these with `sinusoidal`.

    Args:
        weights: parameters by their names in a Transformer without learned positions.
        config: its hyperparameters.
    """
    return _permuted(weights, halves_order(config.width))


def from_halves(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Invert `to_halves`, bit-exactly."""
    return _permuted(weights, halves_order(config.width).argsort())


def halves_order(width: int) -> Tensor:
    """Return the original index of each coordinate, (D,): first the even ones, the sines."""
    return torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2)))


def _permuted(weights: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    return {name: _permute(name, tensor, order) for name, tensor in weights.items()}


def _permute(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    order = order.to(tensor.device)
    if name == _OUTPUT or name.endswith(_COLUMNS):
        return tensor.index_select(1, order)
    if name.endswith(_ROWS):
        return tensor.index_select(0, order)
    return tensor.clone()
