"""A Transformer whose decoder takes steps of fixed shapes, which CUDA graphs can replay.

Its weights are converted once to the GPU's precision. Products are computed in half precision if
requested; sums, norms and the inside of attention in single precision, as in autocast.
"""

# B segments, K beams of each, R = B * K rows, S source tokens, n steps of capacity,
# N = n * K entries of a cache, D model width, F inner width, H heads, E = D // H, V vocabulary

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfm_cli.decoding.static.search import Shape
from tfm_cli.model.attention import MultiHeadAttention
from tfm_cli.model.layers import ACTIVATIONS, AddAndNorm, DecoderLayer, FeedForward
from tfm_cli.model.positions import LearnedPositions, rotate, rotations
from tfm_cli.model.precision import autocast
from tfm_cli.model.transformer import Transformer

Projection = Callable[[Tensor], Tensor]  # (…, inputs) → (…, outputs), in half or single precision


@dataclass(frozen=True, slots=True)
class StaticCache:
    """The keys and values of one layer, in tensors that are reused for each batch."""

    memory_keys: Tensor  # (B, H, S, E), of the source
    memory_values: Tensor
    keys: Tensor  # (B, H, N, E), of the tokens generated: K of the first step, then of the second …
    values: Tensor


@dataclass(frozen=True, slots=True)
class StepContext:
    """The position and the masks of a step, the same for all layers.

    The masks are added to attention scores, see `additive_mask`.
    """

    entries: Tensor  # (K,) entries of the cache that the step writes
    mask: Tensor  # (B, 1, K, N), 0 for the ancestors of a beam
    memory_mask: Tensor  # (B, 1, 1, S), 0 for source tokens, -inf for padding
    rotation: tuple[Tensor, Tensor] | None  # (1, E / 2) each, for rotary positions


def additive_mask(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to attention scores: 0 where `keep` is True, else -inf."""
    return torch.zeros_like(keep, dtype=dtype).masked_fill_(~keep, -math.inf)


def linear_in(dtype: torch.dtype, linear: nn.Linear, outputs: slice = slice(None)) -> Projection:
    """Return a function that computes these outputs of x W^T + b in `dtype`."""
    weight = linear.weight.detach()[outputs].to(dtype)
    bias = linear.bias.detach()[outputs].to(dtype)
    return lambda x: F.linear(x.to(dtype), weight, bias)


class Residual:
    """Add & norm around a sub-layer, in single precision."""

    def __init__(self, add_and_norm: AddAndNorm) -> None:
        self._pre = add_and_norm.pre
        self._norm = add_and_norm.norm
        self._alpha = add_and_norm.alpha

    def enter(self, x: Tensor) -> Tensor:
        """Return the input of the sub-layer for x (R, D)."""
        normed: Tensor = self._norm(x) if self._pre else x
        return normed

    def leave(self, x: Tensor, sublayer: Tensor) -> Tensor:
        """Return x (R, D) plus the sub-layer's output (R, D), which may be in half precision."""
        if self._alpha != 1:
            sublayer = sublayer / self._alpha
        total = x + sublayer
        return total if self._pre else self._norm(total)


class StaticSelfAttention:
    """Attention to the tokens generated so far, with its add & norm."""

    def __init__(
        self, attention: MultiHeadAttention, add_and_norm: AddAndNorm, dtype: torch.dtype
    ) -> None:
        self._residual = Residual(add_and_norm)
        self._projection = linear_in(dtype, attention.projection)
        self._output = linear_in(dtype, attention.output)
        self._heads = attention.heads

    def step(self, x: Tensor, cache: StaticCache, context: StepContext) -> Tensor:
        """Map the last position of each row, (R, D) to (R, D), and store their keys and values."""
        projected = self._projection(self._residual.enter(x))  # (R, 3D)
        split = projected.view(len(cache.keys), -1, 3, self._heads, x.shape[1] // self._heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, K, E) each
        if context.rotation is not None:
            query, key = rotate(query, *context.rotation), rotate(key, *context.rotation)
        cache.keys.index_copy_(2, context.entries, key)
        cache.values.index_copy_(2, context.entries, value)
        attended = attend(query, cache.keys, cache.values, context.mask)
        return self._residual.leave(x, self._output(attended))


class StaticCrossAttention:
    """Attention to the source, with its add & norm."""

    def __init__(
        self, attention: MultiHeadAttention, add_and_norm: AddAndNorm, dtype: torch.dtype
    ) -> None:
        self._residual = Residual(add_and_norm)
        # Query, key and value are rows of one matrix.
        width = attention.output.weight.shape[0]
        self._query = linear_in(dtype, attention.projection, slice(width))
        self._memory = linear_in(dtype, attention.projection, slice(width, None))
        self._output = linear_in(dtype, attention.output)
        self._heads = attention.heads

    def cache_memory(self, memory: Tensor, cache: StaticCache) -> None:
        """Store the keys and values of the memory (B', S', D) of the first segments."""
        segments, length, width = memory.shape
        projected = self._memory(memory)  # (B', S', 2D)
        split = projected.view(segments, length, 2, self._heads, width // self._heads)
        keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)  # (B', H, S', E) each
        cache.memory_keys[:segments, :, :length] = keys
        cache.memory_values[:segments, :, :length] = values

    def step(self, x: Tensor, cache: StaticCache, context: StepContext) -> Tensor:
        """Map the last position of each row, (R, D) to (R, D)."""
        query = self._query(self._residual.enter(x))  # (R, D)
        query = query.view(len(cache.memory_keys), -1, self._heads, x.shape[1] // self._heads)
        attended = attend(
            query.transpose(1, 2), cache.memory_keys, cache.memory_values, context.memory_mask
        )
        return self._residual.leave(x, self._output(attended))


class StaticFeedForward:
    """The feed-forward layer, with its add & norm."""

    def __init__(self, layer: FeedForward, add_and_norm: AddAndNorm, dtype: torch.dtype) -> None:
        self._residual = Residual(add_and_norm)
        self._inner = linear_in(dtype, layer.inner)
        self._outer = linear_in(dtype, layer.outer)
        self._activation = ACTIVATIONS.get(layer.activation)  # None with a gate

    def __call__(self, x: Tensor) -> Tensor:
        """Map (R, D) to (R, D)."""
        inner = self._inner(self._residual.enter(x))  # (R, F), or (R, 2F) with a gate
        if self._activation is None:
            gate, inner = inner.chunk(2, dim=1)  # (R, F) each
            inner = F.silu(gate) * inner
        else:
            inner = self._activation(inner)
        return self._residual.leave(x, self._outer(inner))


class StaticDecoderLayer:
    """Self-attention, cross-attention and feed-forward."""

    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        self._self_attention = StaticSelfAttention(
            layer.self_attention, layer.self_attention_norm, dtype
        )
        self._cross_attention = StaticCrossAttention(
            layer.cross_attention, layer.cross_attention_norm, dtype
        )
        self._feed_forward = StaticFeedForward(layer.feed_forward, layer.feed_forward_norm, dtype)

    def cache_memory(self, memory: Tensor, cache: StaticCache) -> None:
        """Store the keys and values of the memory (B', S', D) of the first segments."""
        self._cross_attention.cache_memory(memory, cache)

    def step(self, x: Tensor, cache: StaticCache, context: StepContext) -> Tensor:
        """Map the last position of each row, (R, D) to (R, D), and store their keys and values."""
        x = self._self_attention.step(x, cache, context)
        return self._feed_forward(self._cross_attention.step(x, cache, context))


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values, weighted by attention, with heads concatenated: (B * K, D).

    Args:
        query: (B, H, K, E).
        keys: (B, H, N, E), or (B, H, S, E).
        values: of the same shape as the keys.
        mask: added to the scores, (B, 1, K or 1, N or S), of the same dtype.
    """
    segments, heads, beams, width = query.shape
    mask = mask.expand(segments, heads, beams, -1)
    mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)  # (B, H, K, E)
    return mixed.transpose(1, 2).reshape(segments * beams, heads * width)


@dataclass(frozen=True, slots=True)
class StaticTransformerState:
    """The caches of all layers, in tensors that are reused for each batch."""

    caches: list[StaticCache]
    source_keep: Tensor  # (B, 1, 1, S) padding mask, False at padding
    positions: Tensor | None  # (n, D), added to embeddings
    rotation: tuple[Tensor, Tensor] | None  # (n, E / 2) each, applied to queries and keys
    beams: Tensor  # (K,) 0, 1 …

    @property
    def num_bytes(self) -> int:
        """Return the memory of the caches."""
        return sum(
            each.nbytes
            for cache in self.caches
            for each in (cache.memory_keys, cache.memory_values, cache.keys, cache.values)
        )

    def copy_from(self, other: "StaticTransformerState", segments: Tensor) -> None:
        """Copy these segments (B,) from a state with the same beams and at most this capacity.

        B is the number of segments of this state; a segment may occur several times.
        """
        self.source_keep.copy_(other.source_keep.index_select(0, segments))
        for own, others in zip(self.caches, other.caches, strict=True):
            own.memory_keys.copy_(others.memory_keys.index_select(0, segments))
            own.memory_values.copy_(others.memory_values.index_select(0, segments))
            entries = others.keys.shape[2]
            own.keys[:, :, :entries] = others.keys.index_select(0, segments)
            own.values[:, :, :entries] = others.values.index_select(0, segments)
            # Masked entries must be finite numbers too: 0 * NaN is NaN.
            own.keys[:, :, entries:] = 0
            own.values[:, :, entries:] = 0

    def clear(self) -> None:
        """Fill the caches with zeros."""
        for cache in self.caches:
            for each in (cache.memory_keys, cache.memory_values, cache.keys, cache.values):
                each.zero_()


class StaticTransformer:
    """A StaticStepModel with a copy of the weights of a Transformer.

    The encoder is that of the Transformer, since it computes only a few, large products.

    Args:
        transformer: fp32, in evaluation mode.
        dtype: of the matrix products.
    """

    def __init__(self, transformer: Transformer, dtype: torch.dtype) -> None:
        self._transformer = transformer
        self._dtype = dtype
        layers = [cast(DecoderLayer, layer) for layer in transformer.decoder_layers]
        self._layers = [StaticDecoderLayer(layer, dtype) for layer in layers]
        self._heads = layers[0].self_attention.heads
        self._is_rotary = layers[0].rotary is not None
        self._embedding = transformer.target_embedding.weight.detach()  # (V, D)
        self._output_weight = transformer.output_weight.detach().to(dtype)  # (V, D)
        bias = transformer.output_bias
        self._output_bias = None if bias is None else bias.detach().to(dtype)  # (V,)

    def state(self, shape: Shape) -> StaticTransformerState:
        """Return an empty state."""
        embedding, width = self._embedding, self._embedding.shape[1]

        def empty(length: int) -> Tensor:
            size = (shape.segments, self._heads, length, width // self._heads)
            return embedding.new_zeros(size, dtype=self._dtype)

        def cache() -> StaticCache:
            sources, entries = shape.source_tokens, shape.capacity * shape.beams
            return StaticCache(empty(sources), empty(sources), empty(entries), empty(entries))

        rotation = None
        if self._is_rotary:
            steps = torch.arange(shape.capacity, device=embedding.device)
            cos, sin = rotations(steps, width // self._heads)
            rotation = cos.to(self._dtype), sin.to(self._dtype)
        keep_size = (shape.segments, 1, 1, shape.source_tokens)
        return StaticTransformerState(
            [cache() for _ in self._layers],
            torch.ones(keep_size, dtype=torch.bool, device=embedding.device),
            _position_table(self._transformer.target_positions, shape.capacity, embedding),
            rotation,
            torch.arange(shape.beams, device=embedding.device),
        )

    def encode(
        self, source: Tensor, source_keep: Tensor | None, state: StaticTransformerState
    ) -> None:
        """Reset the state and encode the sources of its first segments, at most (B, S) ids."""
        segments, length = source.shape
        with autocast(source.device, self._dtype):
            memory = self._transformer.encode(source, source_keep)  # (B', S', D)
        state.clear()
        for layer, cache in zip(self._layers, state.caches, strict=True):
            layer.cache_memory(memory, cache)
        # Unused segments attend to zeros, since a fully masked row would give NaN.
        state.source_keep.fill_(True)
        state.source_keep[:segments, :, :, length:] = False
        if source_keep is not None:
            state.source_keep[:segments, :, :, :length] = source_keep

    def step(
        self,
        tokens: Tensor,
        position: Tensor,
        beam_ancestors: Tensor,
        state: StaticTransformerState,
    ) -> Tensor:
        """Return logits (R, V) of the next token of each row.

        A beam attends to the cache entries of its ancestors, so that a reordered beam needs no
        copy of its keys and values.

        Args:
            tokens: (R,) last tokens, the K of the first segment, then of the second …
            position: (1,) number of steps before this one, less than n.
            beam_ancestors: (B, K, n), the beam of its segment that each row was at each step up to
                `position`, inclusive; -1 after that.
            state: as `encode` and the earlier steps left it.
        """
        x = F.embedding(tokens, self._embedding) * self._transformer.embedding_scale  # (R, D)
        if state.positions is not None:
            x = x + state.positions.index_select(0, position)
        rotation = None
        if state.rotation is not None:
            cos, sin = (each.index_select(0, position) for each in state.rotation)
            rotation = cos, sin
        is_ancestor = beam_ancestors[:, :, :, None] == state.beams  # (B, K, n, K)
        context = StepContext(
            position * len(state.beams) + state.beams,
            additive_mask(is_ancestor, self._dtype).flatten(2)[:, None],  # (B, 1, K, N)
            additive_mask(state.source_keep, self._dtype),
            rotation,
        )
        for layer, cache in zip(self._layers, state.caches, strict=True):
            x = layer.step(x, cache, context)
        if self._transformer.decoder_norm is not None:
            x = self._transformer.decoder_norm(x)
        return F.linear(x.to(self._dtype), self._output_weight, self._output_bias)


def _position_table(positions: nn.Module | None, length: int, like: Tensor) -> Tensor | None:
    """Return the vectors added to embeddings at each step, (n, D); zero beyond learned positions.

    The result is None for models without such vectors.
    """
    if positions is None:
        return None
    table = like.new_zeros(length, like.shape[1])
    if isinstance(positions, LearnedPositions):
        length = min(length, positions.embedding.num_embeddings)
    table[:length] = positions(table[None, :length])[0]
    return table
