"""A trained Transformer made ready to decode fast on a CPU: the same arithmetic as `model/`."""

# B segments, S source pieces, R rows being decoded (K beams of each segment), D model width,
# L layers, H heads, E = D // H, V vocabulary, U some of it

import copy
import math
from typing import cast

import torch
from torch import Tensor

from tfm_cli.engine.layers import (
    CrossAttention,
    Embedding,
    PreparedFeedForward,
    SelfAttention,
    prepared_norm,
)
from tfm_cli.engine.output import OutputLayer
from tfm_cli.engine.state import LayerCache, PreparedState
from tfm_cli.model.layers import DecoderLayer, EncoderLayer
from tfm_cli.model.transformer import Transformer

_ENCODED_ROWS = 256  # source pieces that are encoded together
_FOLDED_PIECES = 64  # of a single segment; the folded matrices of more are too large to pay


class PreparedTransformer:
    """A StepModel with the weights of a Transformer as they were when it was made.

    Args:
        transformer: on the CPU, fp32, in evaluation mode. Its matrices may be stored anew, with
            the same values.
        precision: of the matrix products: `fp32`, `bf16` or `int8`.
        greedy: make the likeliest piece ready, rather than all logits. What is not ready is made so
            when it is first asked for.
    """

    def __init__(
        self,
        transformer: Transformer,
        precision: str = "fp32",
        *,
        greedy: bool = False,
    ) -> None:
        encoder = [cast(EncoderLayer, layer) for layer in transformer.encoder_layers]
        decoder = [cast(DecoderLayer, layer) for layer in transformer.decoder_layers]
        # Of the Transformer nothing else is kept, so that matrices that became others are freed.
        target = transformer.target_embedding
        source, scale = transformer.source_embedding or target, transformer.embedding_scale
        self._embed_source = Embedding(source.weight, scale, transformer.source_positions)
        self._embed_target = Embedding(target.weight, scale, transformer.target_positions)
        self._encoder_heads = encoder[0].self_attention.heads
        self._heads = decoder[0].self_attention.heads  # of the decoder
        self._encoder = [
            (
                SelfAttention(
                    layer.self_attention, layer.self_attention_norm, layer.rotary, precision
                ),
                PreparedFeedForward(layer.feed_forward, layer.feed_forward_norm, precision),
            )
            for layer in encoder
        ]
        self._decoder = [
            (
                SelfAttention(
                    layer.self_attention, layer.self_attention_norm, layer.rotary, precision
                ),
                CrossAttention(layer.cross_attention, layer.cross_attention_norm, precision),
                PreparedFeedForward(layer.feed_forward, layer.feed_forward_norm, precision),
            )
            for layer in decoder
        ]
        # Pre-norm stacks alone end with a norm.
        ends = (transformer.encoder_norm, transformer.decoder_norm)
        self._encoder_norm, self._decoder_norm = (norm and prepared_norm(norm) for norm in ends)
        self._output = OutputLayer(transformer.output_weight, transformer.output_bias, precision)
        if greedy:
            self._output.prepare_best()
        else:
            self._output.prepare_logits()

    def start(self, source: Tensor, source_keep: Tensor | None) -> PreparedState:
        """Read the source, (B, S) ids; what comes back is ready for the first `step`."""
        mask = source.new_zeros(len(source), 1, 1, source.shape[1], dtype=torch.float32)
        if source_keep is not None:
            mask.masked_fill_(~source_keep, -math.inf)
        encoder_mask = mask.expand(-1, self._encoder_heads, -1, -1).contiguous()  # (B, H, 1, S)
        mask = mask.expand(-1, self._heads, -1, -1).contiguous()  # (B, H, 1, S)
        layers = self._empty_caches(*source.shape)
        # A group of segments whose intermediate results stay in the processor's own memory.
        together = max(1, _ENCODED_ROWS // source.shape[1])
        for start in range(0, len(source), together):
            group = slice(start, start + together)
            encoded = self._encode(source[group], encoder_mask[group])  # (B' * S, D)
            for layer, (_, attention, _) in zip(layers, self._decoder, strict=True):
                keys, values = attention.remember(encoded, len(mask[group]))
                layer.memory_keys[group], layer.memory_values[group] = keys, values
                if len(source) == 1 and source_keep is None and source.shape[1] <= _FOLDED_PIECES:
                    layer.folded = attention.fold(keys, values)
        return PreparedState(layers, mask)

    def _empty_caches(self, segments: int, length: int) -> list[LayerCache]:
        weight = self._embed_target.weight
        shape = (segments, self._heads)
        width = weight.shape[1] // self._heads
        return [
            LayerCache(
                weight.new_empty(*shape, width, length),
                weight.new_empty(*shape, length, width),
                weight.new_empty(2, *shape, 0, width),
            )
            for _ in self._decoder
        ]

    def _encode(self, source: Tensor, mask: Tensor) -> Tensor:
        """The encoder's output (B * S, D) for ids (B, S) and a mask (B, H, 1, S)."""
        x = self._embed_source(source).flatten(0, 1)  # (B * S, D)
        for attention, feed_forward in self._encoder:
            x = feed_forward(attention.encode(x, mask))
        return x if self._encoder_norm is None else self._encoder_norm(x)

    def step(self, pieces: Tensor, state: PreparedState) -> Tensor:
        """Logits (R, V) of what follows the newest piece (R,) of each row; extends the state."""
        return self._output.logits(self._hidden(pieces, state))

    def step_greedily(self, pieces: Tensor, state: PreparedState, banned: Tensor) -> Tensor:
        """The likeliest piece (R,) after the newest (R,) of each row; extends the state.

        Args:
            pieces: (R,) ids.
            state: what `start` gave.
            banned: ids that are never chosen.
        """
        state.newest = self._hidden(pieces, state)
        return self._output.best(state.newest, banned)

    def last_logits(self, state: PreparedState, rows: Tensor) -> Tensor:
        """Logits (r, V) of the last step of `step_greedily` for these rows (r,), in fp32."""
        assert state.newest is not None, "only `step_greedily` keeps what they are made of"
        return self._output.exact_logits(state.newest[rows])

    def restricted(self, ids: Tensor) -> "PreparedTransformer":
        """The same model with logits (R, U) for these target ids (U,) alone."""
        other = copy.copy(self)
        other._output = self._output.restricted(ids)
        return other

    def _hidden(self, pieces: Tensor, state: PreparedState) -> Tensor:
        """What the output layer sees of the newest pieces, (R, D); extends the state."""
        at = state.length
        x = self._embed_target(pieces[:, None], at)[:, 0]  # (R, D)
        state.open(len(x) // len(state.memory_mask))
        mask = state.ancestry
        if mask is not None:
            mask = mask[:, None].expand(-1, self._heads, -1, -1).contiguous()  # (B, H, K, n)
        for (attention, cross, feed_forward), layer in zip(
            self._decoder, state.layers, strict=True
        ):
            x = attention.step(x, layer.entries[:, :, :, : state.entries], mask, at)
            x = cross.step(x, layer, state.memory_mask)
            x = feed_forward(x)
        return x if self._decoder_norm is None else self._decoder_norm(x)
