"""A trained Transformer made ready to decode fast on a CPU, in single precision.

The same arithmetic as `model/`, with weights packed for the processor, the keys and values of the
source computed for all layers in one product, and caches that are filled in place.
"""

# B segments, S source pieces, T positions, R rows being decoded, D model width, L layers, H heads,
# E = D // H, F inner width of the feed-forward layer, V vocabulary,
# C some of its pieces

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfm_cli.engine.linear import Linear, packed_linear
from tfm_cli.engine.state import PreparedState
from tfm_cli.model.attention import MultiHeadAttention, scaled_dot_product_attention
from tfm_cli.model.layers import ACTIVATIONS, AddAndNorm, DecoderLayer, EncoderLayer, FeedForward
from tfm_cli.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class _Attention:
    """Packed projections; of attention to the source, the query's alone."""

    projection: Linear
    output: Linear
    add_and_norm: AddAndNorm


@dataclass(frozen=True, slots=True)
class _FeedForward:
    inner: Linear
    outer: Linear
    activation: str
    add_and_norm: AddAndNorm


@dataclass(frozen=True, slots=True)
class _Layer:
    self_attention: _Attention
    cross_attention: _Attention | None  # in a decoder
    feed_forward: _FeedForward


class PreparedTransformer:
    """A StepModel with the weights of a Transformer as they were when it was made.

    Args:
        transformer: on the CPU, fp32, in evaluation mode.
    """

    def __init__(self, transformer: Transformer) -> None:
        self._transformer = transformer
        self._encoder = [
            _encoder_layer(cast(EncoderLayer, layer)) for layer in transformer.encoder_layers
        ]
        decoder = [cast(DecoderLayer, layer) for layer in transformer.decoder_layers]
        self._decoder = [_decoder_layer(layer) for layer in decoder]
        self._heads = decoder[0].self_attention.heads
        self._rotary = decoder[0].rotary
        self._memories = _memories_of(decoder)
        self._logits = packed_linear(transformer.output_weight, transformer.output_bias)

    def start(self, source: Tensor, source_keep: Tensor | None) -> PreparedState:
        """Read the source, (B, S) ids; what comes back is ready for the first `step`."""
        model = self._transformer
        embedding = model.source_embedding or model.target_embedding
        x = model.embed(source, embedding, model.source_positions)  # (B, S, D)
        segments, length, width = x.shape
        x = x.view(-1, width)  # (B * S, D)
        for layer in self._encoder:
            own = layer.self_attention
            projected = own.projection(own.add_and_norm.enter(x))  # (B * S, 3D)
            query, key, value = self._split(projected, segments)  # (B, H, S, E)
            if self._rotary is not None:
                query, key = self._rotary(query), self._rotary(key)
            x = own.add_and_norm.leave(x, _attended(own, query, key, value, source_keep))
            x = _feed_forward(layer.feed_forward, x)
        if model.encoder_norm is not None:
            x = model.encoder_norm(x)
        memories = self._memories(x)  # (B * S, L * 2 * D)
        memories = memories.view(segments, length, len(self._decoder), 2, self._heads, -1)
        return PreparedState(source_keep, memories.permute(2, 3, 0, 4, 1, 5).contiguous())

    def step(self, pieces: Tensor, state: PreparedState) -> Tensor:
        """Logits (R, V) of what follows the newest piece (R,) of each row; extends the state."""
        model, at = self._transformer, state.length
        x = model.embed(
            pieces[:, None], model.target_embedding, model.target_positions, at
        )  # (R, 1, D)
        x = x[:, 0]  # (R, D)
        caches = state.room(len(x))
        segments = state.memories.shape[2]
        for layer, cache, memory in zip(self._decoder, caches, state.memories, strict=True):
            own, cross = layer.self_attention, layer.cross_attention
            projected = own.projection(own.add_and_norm.enter(x))  # (R, 3D)
            query, key, value = self._split(projected, len(x))  # (R, H, 1, E)
            if self._rotary is not None:
                query, key = self._rotary(query, at), self._rotary(key, at)
            cache[0, :, :, at], cache[1, :, :, at] = key[:, :, 0], value[:, :, 0]
            keys, values = cache[:, :, :, : at + 1]  # (R, H, t + 1, E)
            x = own.add_and_norm.leave(x, _attended(own, query, keys, values, None))

            assert cross is not None
            # The K rows of a segment are K queries to its one memory.
            projected = cross.projection(cross.add_and_norm.enter(x))  # (R, D)
            (query,) = self._split(projected, segments)  # (B, H, K, E)
            attended = _attended(cross, query, memory[0], memory[1], state.source_keep)
            x = cross.add_and_norm.leave(x, attended)

            x = _feed_forward(layer.feed_forward, x)
        state.length += 1
        if model.decoder_norm is not None:
            x = model.decoder_norm(x)
        return self._logits(x)  # (R, V)

    def restricted(self, ids: Tensor) -> "PreparedTransformer":
        """The same model with logits (R, C) for these target ids (C,) alone."""
        weight, bias = self._transformer.output_weight, self._transformer.output_bias
        other = copy.copy(self)
        other._logits = packed_linear(weight[ids], None if bias is None else bias[ids])
        return other

    def _split(self, x: Tensor, segments: int) -> tuple[Tensor, ...]:
        """The parts side by side in x (segments * T, n * D), each (segments, H, T, E)."""
        width = self._transformer.target_embedding.weight.shape[1]
        split = x.view(segments, -1, x.shape[1] // width, self._heads, width // self._heads)
        return split.permute(2, 0, 3, 1, 4).unbind(0)


def _attended(
    attention: _Attention, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None
) -> Tensor:
    heads = scaled_dot_product_attention(query, key, value, keep)  # (B, H, T, E)
    return attention.output(heads.transpose(1, 2).flatten(2).flatten(0, 1))  # (B * T, D)


def _feed_forward(layer: _FeedForward, x: Tensor) -> Tensor:
    inner = layer.inner(layer.add_and_norm.enter(x))  # (M, F), or (M, 2F) with a gate
    if layer.activation == "swiglu":
        gate, inner = inner.chunk(2, dim=-1)  # (M, F) each
        inner = F.silu(gate) * inner
    else:
        inner = ACTIVATIONS[layer.activation](inner)
    return layer.add_and_norm.leave(x, layer.outer(inner))


def _encoder_layer(layer: EncoderLayer) -> _Layer:
    return _Layer(
        _self_attention(layer.self_attention, layer.self_attention_norm),
        None,
        _packed_feed_forward(layer.feed_forward, layer.feed_forward_norm),
    )


def _decoder_layer(layer: DecoderLayer) -> _Layer:
    cross, width = layer.cross_attention, layer.cross_attention.output.weight.shape[0]
    query = packed_linear(cross.projection.weight[:width], cross.projection.bias[:width])
    return _Layer(
        _self_attention(layer.self_attention, layer.self_attention_norm),
        _Attention(query, _packed(cross.output), layer.cross_attention_norm),
        _packed_feed_forward(layer.feed_forward, layer.feed_forward_norm),
    )


def _self_attention(attention: MultiHeadAttention, add_and_norm: AddAndNorm) -> _Attention:
    return _Attention(_packed(attention.projection), _packed(attention.output), add_and_norm)


def _packed_feed_forward(layer: FeedForward, add_and_norm: AddAndNorm) -> _FeedForward:
    return _FeedForward(_packed(layer.inner), _packed(layer.outer), layer.activation, add_and_norm)


def _packed(linear: nn.Linear) -> Linear:
    return packed_linear(linear.weight, linear.bias)


def _memories_of(decoder: list[DecoderLayer]) -> Linear:
    """Keys and values of all layers for a memory: (M, D) to (M, L * 2 * D)."""
    width = decoder[0].cross_attention.output.weight.shape[0]
    projections = [layer.cross_attention.projection for layer in decoder]
    weight = torch.cat([projection.weight[width:] for projection in projections])
    bias = torch.cat([projection.bias[width:] for projection in projections])
    return packed_linear(weight, bias)
