"""A decoder layer in steps of fixed shapes, with weights converted once to the GPU's precision.

Products are computed in half precision if requested; sums, norms and the inside of attention in
single precision, as in autocast.
"""

# B segments, K beams of each, R = B * K rows, S source tokens, n steps of capacity,
# N = n * K entries of the cache, D model width, H heads, E = D // H, F inner width

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfm_cli.model.attention import MultiHeadAttention
from tfm_cli.model.layers import ACTIVATIONS, AddAndNorm, DecoderLayer, FeedForward
from tfm_cli.model.positions import rotate

Linear = Callable[[Tensor], Tensor]  # (…, K) → (…, N) in half precision, or single


@dataclass(frozen=True, slots=True)
class StaticCache:
    """The keys and values of one layer, in tensors that are reused for each batch."""

    memory_keys: Tensor  # (B, H, S, E), of the source
    memory_values: Tensor
    keys: Tensor  # (B, H, N, E), of the tokens written: K of the first step, then of the second …
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


def linear_in(dtype: torch.dtype, linear: nn.Linear, outputs: slice = slice(None)) -> Linear:
    """Return a function that computes these outputs of x W^T + b in `dtype`."""
    weight = linear.weight.detach()[outputs].to(dtype)
    bias = linear.bias.detach()[outputs].to(dtype)
    return lambda x: F.linear(x.to(dtype), weight, bias)


class Residual:
    """Add & norm around a sub-layer, in single precision."""

    def __init__(self, add_and_norm: AddAndNorm) -> None:
        self._pre = add_and_norm.pre
        self._norm = add_and_norm.norm

    def enter(self, x: Tensor) -> Tensor:
        """Return the input of the sub-layer for x (R, D)."""
        normed: Tensor = self._norm(x) if self._pre else x
        return normed

    def leave(self, x: Tensor, sublayer: Tensor) -> Tensor:
        """Return x (R, D) plus the sub-layer's output (R, D), which may be in half precision."""
        total = x + sublayer
        return total if self._pre else self._norm(total)


class StaticSelfAttention:
    """Attention to the tokens written so far, with its add & norm."""

    def __init__(
        self, attention: MultiHeadAttention, add_and_norm: AddAndNorm, dtype: torch.dtype
    ) -> None:
        self._residual = Residual(add_and_norm)
        self._projection = linear_in(dtype, attention.projection)
        self._output = linear_in(dtype, attention.output)
        self._heads = attention.heads

    def step(self, x: Tensor, cache: StaticCache, context: StepContext) -> Tensor:
        """Map the newest rows (R, D) to (R, D) and store their keys and values."""
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
        """Map the newest rows (R, D) to (R, D)."""
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
        """Map the newest rows (R, D) to (R, D) and store their keys and values."""
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
