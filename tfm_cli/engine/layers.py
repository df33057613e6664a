"""The layers of a Transformer, made ready: prepared products, and no more operators than needed.

Rows of all segments stand in one matrix (M, D), since linear maps do not care whose they are.
"""

# M rows, B segments, T queries of each, S keys, D model width, H heads, E = D // H, F inner width

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfm_cli.engine.linear import prepared_linear
from tfm_cli.engine.state import FoldedMemory, LayerCache
from tfm_cli.model.attention import MultiHeadAttention
from tfm_cli.model.layers import ACTIVATIONS, AddAndNorm, FeedForward
from tfm_cli.model.positions import RotaryPositions


def prepared_norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """Layer normalisation of (M, D)."""
    shape, weight, bias, eps = list(norm.normalized_shape), norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


class Embedding:
    """Embeddings of pieces, with their positions."""

    __slots__ = ("_positions", "_scale", "weight")

    def __init__(self, weight: Tensor, scale: float, positions: nn.Module | None) -> None:
        self.weight = weight.detach()  # (V, D)
        self._scale = scale
        self._positions = positions

    def __call__(self, ids: Tensor, start: int = 0) -> Tensor:
        """Of ids (B, T), whose positions begin at `start`: (B, T, D)."""
        x = F.embedding(ids, self.weight).mul_(self._scale)  # (B, T, D)
        if self._positions is None:
            return x
        placed: Tensor = self._positions(x, start)
        return placed


class Residual:
    """Add & norm round a sub-layer."""

    __slots__ = ("_norm", "_pre")

    def __init__(self, add_and_norm: AddAndNorm) -> None:
        self._pre = add_and_norm.pre
        self._norm = prepared_norm(add_and_norm.norm)

    def enter(self, x: Tensor) -> Tensor:
        """What the sub-layer gets to see of x (M, D)."""
        return self._norm(x) if self._pre else x

    def leave(self, x: Tensor, sublayer: Tensor) -> Tensor:
        """x (M, D) with the sub-layer's output (M, D), which is used up, added."""
        total = sublayer.add_(x)
        return total if self._pre else self._norm(total)


class SelfAttention:
    """Multi-head attention of rows to what their own segment has; add & norm included."""

    def __init__(
        self,
        attention: MultiHeadAttention,
        add_and_norm: AddAndNorm,
        rotary: RotaryPositions | None,
        precision: str,
    ) -> None:
        self._residual = Residual(add_and_norm)
        self._projection = prepared_linear(attention.projection, precision)
        self._output = prepared_linear(attention.output, precision)
        self._heads = attention.heads
        self._rotary = rotary

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps the segments' rows (B * S, D) to (B * S, D).

        Args:
            x: all rows of the first segment, then of the second …
            mask: (B, H, 1, S), 0 for pieces, -inf for padding.
        """
        query, key, value = self._project(x, len(mask)).unbind(0)  # (B, H, S, E) each
        if self._rotary is not None:
            query, key = self._rotary(query), self._rotary(key)
        attended = attend(query, key.transpose(2, 3), value, mask)
        return self._residual.leave(x, self._output(attended))

    def step(self, x: Tensor, cache: Tensor, mask: Tensor | None, at: int) -> Tensor:
        """Maps the newest rows (B * K, D) to (B * K, D) and writes their keys and values.

        Args:
            x: the K rows of the first segment, then of the second …
            cache: (2, B, H, n + K, E), whose last K entries are for these rows.
            mask: (B, H, K, n + K), 0 for what a row descends from; None: all.
            at: position of these rows.
        """
        segments = cache.shape[1]
        projected = self._project(x, segments)  # (3, B, H, K, E)
        query, beams = projected[0], projected.shape[3]
        newest = cache[:, :, :, -beams:]  # (2, B, H, K, E)
        if self._rotary is None:
            newest.copy_(projected[1:])
        else:
            query, newest[0] = (_turned(self._rotary, each, at) for each in projected[:2])
            newest[1] = projected[2]
        keys, values = cache.unbind(0)  # (B, H, n + K, E) each
        attended = attend(query, keys.transpose(2, 3), values, mask)
        return self._residual.leave(x, self._output(attended))

    def _project(self, x: Tensor, segments: int) -> Tensor:
        """Queries, keys and values, (3, B, H, T, E)."""
        projected = self._projection(self._residual.enter(x))  # (M, 3D)
        split = projected.view(segments, -1, 3, self._heads, x.shape[1] // self._heads)
        return split.permute(2, 0, 3, 1, 4)


class CrossAttention:
    """Multi-head attention to the source; add & norm included."""

    def __init__(
        self, attention: MultiHeadAttention, add_and_norm: AddAndNorm, precision: str
    ) -> None:
        self._residual = Residual(add_and_norm)
        # Query, key and value are rows of one matrix.
        width = attention.output.weight.shape[0]
        self._query = prepared_linear(attention.projection, precision, slice(width))
        self._memory = prepared_linear(attention.projection, precision, slice(width, None))
        self._output = prepared_linear(attention.output, precision)
        self._heads = attention.heads
        # For `fold`, in fp32 whatever the precision.
        projection, output = attention.projection, attention.output
        self._query_weight = projection.weight.detach()[:width]  # (D, D)
        self._query_bias = projection.bias.detach()[:width]  # (D,)
        self._output_weight = output.weight.detach()  # (D, D)
        self._output_bias = output.bias.detach()  # (D,)

    def fold(self, keys: Tensor, values: Tensor) -> FoldedMemory:
        """The projections of queries and of outputs, multiplied with what one segment remembers.

        q K = (x Wq) K = x (Wq K), and the same behind the weights: two small products a step in
        place of two with D x D weights, and of the two that attend.

        Args:
            keys: (1, H, E, S).
            values: (1, H, S, E).
        """
        heads, width = keys.shape[1:3]
        scale = 1 / math.sqrt(width)
        by_heads = self._query_weight.view(heads, width, -1).transpose(1, 2)  # (H, D, E)
        scoring = torch.bmm(by_heads, keys[0]).mul_(scale)  # (H, D, S)
        bias = torch.bmm(self._query_bias.view(heads, 1, width), keys[0]).mul_(scale)  # (H, 1, S)
        outputs = self._output_weight.view(-1, heads, width).permute(1, 2, 0)  # (H, E, D)
        mixing = torch.bmm(values[0], outputs)  # (H, S, D)
        return FoldedMemory(
            scoring.transpose(0, 1).flatten(1),  # (D, H * S)
            bias.flatten(),
            mixing.flatten(0, 1),  # (H * S, D)
        )

    def remember(self, memory: Tensor, segments: int) -> tuple[Tensor, Tensor]:
        """Keys (B, H, E, S) and values (B, H, S, E) of the source's rows (B * S, D)."""
        projected = self._memory(memory)  # (B * S, 2D)
        width = memory.shape[1]
        split = projected.view(segments, -1, 2, self._heads, width // self._heads)
        return split[:, :, 0].permute(0, 2, 3, 1), split[:, :, 1].transpose(1, 2)

    def step(self, x: Tensor, cache: LayerCache, mask: Tensor) -> Tensor:
        """Maps the newest rows (B * K, D) to (B * K, D)."""
        entered = self._residual.enter(x)  # (B * K, D)
        folded = cache.folded
        if folded is not None:
            scores = torch.addmm(folded.bias, entered, folded.scoring)  # (K, H * S)
            weights = scores.view(len(x), self._heads, -1).softmax(2).flatten(1)  # (K, H * S)
            output = torch.addmm(self._output_bias, weights, folded.mixing)  # (K, D)
            return self._residual.leave(x, output)
        keys, values = cache.memory_keys, cache.memory_values
        projected = self._query(entered)  # (B * K, D)
        query = projected.view(len(keys), -1, self._heads, keys.shape[2]).transpose(1, 2)
        return self._residual.leave(x, self._output(attend(query, keys, values, mask)))


class PreparedFeedForward:
    """The feed-forward layer; add & norm included."""

    def __init__(self, layer: FeedForward, add_and_norm: AddAndNorm, precision: str) -> None:
        self._residual = Residual(add_and_norm)
        relu = layer.activation == "relu"
        self._inner = prepared_linear(layer.inner, precision, relu=relu)
        self._outer = prepared_linear(layer.outer, precision)
        self._has_gate = layer.activation not in ACTIVATIONS
        self._activation = None if relu or self._has_gate else ACTIVATIONS[layer.activation]

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (M, D) to (M, D)."""
        inner = self._inner(self._residual.enter(x))  # (M, F), or (M, 2F) with a gate
        if self._has_gate:
            gate, inner = inner.chunk(2, dim=1)  # (M, F) each
            inner = F.silu(gate) * inner
        elif self._activation is not None:
            inner = self._activation(inner)
        return self._residual.leave(x, self._outer(inner))


def _turned(rotary: RotaryPositions, x: Tensor, at: int) -> Tensor:
    """x (B, H, K, E) of K beams, all of them at one position."""
    turned: Tensor = rotary(x.flatten(1, 2)[:, :, None], at)  # (B, H * K, 1, E)
    return turned.view(x.shape)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The values by attention weights, heads side by side: (B * T, D).

    Args:
        query: (B, H, T, E).
        keys: (B, H, E, S).
        values: (B, H, S, E).
        mask: what is added to the scores, (B, H, T or 1, S); None for nothing.
    """
    segments, heads, length, width = query.shape
    scale = 1 / math.sqrt(width)
    k, v = keys.flatten(0, 1), values.flatten(0, 1)  # (B * H, E, S) and (B * H, S, E)
    if mask is None:
        q = query.mul(scale).reshape(-1, length, width)  # (B * H, T, E)
        scores = torch.bmm(q, k)  # (B * H, T, S)
    else:
        q = query.reshape(-1, length, width)
        scores = torch.baddbmm(mask.flatten(0, 1), q, k, alpha=scale)
    mixed = torch.bmm(scores.softmax(2), v)  # (B * H, T, E)
    if length == 1:
        return mixed.view(segments, heads * width)
    return mixed.view(segments, heads, length, width).transpose(1, 2).reshape(-1, heads * width)
