"""A Transformer whose decoder takes steps of fixed shapes, which a GPU can record and replay."""

# B segments, K beams of each, R = B * K rows, S source pieces, n steps there is room for,
# N = n * K entries of a cache, D model width, H heads, E = D // H, V vocabulary

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfm_cli.decoding.static.interface import Shape
from tfm_cli.engine.cuda.layers import Cache, FixedDecoderLayer, Here
from tfm_cli.model.arithmetic import arithmetic
from tfm_cli.model.layers import DecoderLayer
from tfm_cli.model.positions import LearnedPositions, rotations
from tfm_cli.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class FixedTransformerState:
    """Keys and values of all layers, in tensors that stay where they are."""

    caches: list[Cache]
    memory_mask: Tensor  # (B, 1, 1, S), 0 for pieces, -inf for padding
    positions: Tensor | None  # (n, D), what is added to embeddings
    rotation: tuple[Tensor, Tensor] | None  # (n, E / 2) each, by what queries and keys are turned
    beams: Tensor  # (K,) 0, 1 …

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(
            each.nbytes
            for cache in self.caches
            for each in (cache.memory_keys, cache.memory_values, cache.keys, cache.values)
        )

    def take(self, other: "FixedTransformerState", segments: Tensor) -> None:
        """Become what these segments (B,) of a state are, which has as many beams and no more room.

        The B segments are those of this state; a segment may be named several times.
        """
        self.memory_mask.copy_(other.memory_mask.index_select(0, segments))
        for mine, theirs in zip(self.caches, other.caches, strict=True):
            mine.memory_keys.copy_(theirs.memory_keys.index_select(0, segments))
            mine.memory_values.copy_(theirs.memory_values.index_select(0, segments))
            entries = theirs.keys.shape[2]
            mine.keys[:, :, :entries] = theirs.keys.index_select(0, segments)
            mine.values[:, :, :entries] = theirs.values.index_select(0, segments)
            # What is hidden has to be numbers all the same: 0 * NaN is NaN.
            mine.keys[:, :, entries:] = 0
            mine.values[:, :, entries:] = 0

    def clear(self) -> None:
        """Hold nothing any more."""
        for cache in self.caches:
            for each in (cache.memory_keys, cache.memory_values, cache.keys, cache.values):
                each.zero_()


class FixedTransformer:
    """A FixedStepModel with the weights of a Transformer as they were when it was made.

    The encoder is the Transformer's own, since its work is done in a few large products.

    Args:
        transformer: fp32, in evaluation mode.
        dtype: of the matrix products.
    """

    def __init__(self, transformer: Transformer, dtype: torch.dtype) -> None:
        self._transformer = transformer
        self._dtype = dtype
        layers = [cast(DecoderLayer, layer) for layer in transformer.decoder_layers]
        self._layers = [FixedDecoderLayer(layer, dtype) for layer in layers]
        self._heads = layers[0].self_attention.heads
        self._is_rotary = layers[0].rotary is not None
        self._embedding = transformer.target_embedding.weight.detach()  # (V, D)
        self._output_weight = transformer.output_weight.detach().to(dtype)  # (V, D)
        bias = transformer.output_bias
        self._output_bias = None if bias is None else bias.detach().to(dtype)  # (V,)

    def state(self, shape: Shape) -> FixedTransformerState:
        """A state that holds nothing yet."""
        embedding, width = self._embedding, self._embedding.shape[1]

        def empty(length: int) -> Tensor:
            size = (shape.segments, self._heads, length, width // self._heads)
            return embedding.new_zeros(size, dtype=self._dtype)

        def cache() -> Cache:
            sources, entries = shape.source_pieces, shape.room * shape.beams
            return Cache(empty(sources), empty(sources), empty(entries), empty(entries))

        rotation = None
        if self._is_rotary:
            steps = torch.arange(shape.room, device=embedding.device)
            cos, sin = rotations(steps, width // self._heads)
            rotation = cos.to(self._dtype), sin.to(self._dtype)
        return FixedTransformerState(
            [cache() for _ in self._layers],
            empty(0).new_zeros(shape.segments, 1, 1, shape.source_pieces),
            _position_table(self._transformer.target_positions, shape.room, embedding),
            rotation,
            torch.arange(shape.beams, device=embedding.device),
        )

    def read(
        self, source: Tensor, source_keep: Tensor | None, state: FixedTransformerState
    ) -> None:
        """Begin anew with the sources of the first segments, at most (B, S) ids."""
        segments, length = source.shape
        with arithmetic(source.device, self._dtype):
            memory = self._transformer.encode(source, source_keep)  # (B', S', D)
        state.clear()
        for layer, cache in zip(self._layers, state.caches, strict=True):
            layer.remember(memory, cache)
        # The spare segments behind see zeros, since who sees nothing gets no number.
        state.memory_mask.zero_()
        state.memory_mask[:segments, :, :, length:] = -math.inf
        if source_keep is not None:
            state.memory_mask[:segments, :, :, :length].masked_fill_(~source_keep, -math.inf)

    def fixed_step(
        self, pieces: Tensor, position: Tensor, lineage: Tensor, state: FixedTransformerState
    ) -> Tensor:
        """Logits (R, V) of what follows the newest piece (R,) of each row.

        Args:
            pieces: (R,), the K of the first segment, then of the second …
            position: (1,) steps taken before, less than n.
            lineage: (B, K, n), which beam of its segment a row was at each step; at `position`
                itself; -1 behind.
            state: filled by `read` and the steps before.
        """
        x = F.embedding(pieces, self._embedding) * self._transformer.embedding_scale  # (R, D)
        if state.positions is not None:
            x = x + state.positions.index_select(0, position)
        rotation = None
        if state.rotation is not None:
            cos, sin = (each.index_select(0, position) for each in state.rotation)
            rotation = cos, sin
        hidden = lineage[:, :, :, None] != state.beams  # (B, K, n, K)
        mask = state.memory_mask.new_zeros(hidden.shape).masked_fill_(hidden, -math.inf)
        here = Here(
            position * len(state.beams) + state.beams,
            mask.flatten(2)[:, None],  # (B, 1, K, N)
            state.memory_mask,
            rotation,
        )
        for layer, cache in zip(self._layers, state.caches, strict=True):
            x = layer.step(x, cache, here)
        if self._transformer.decoder_norm is not None:
            x = self._transformer.decoder_norm(x)
        return F.linear(x.to(self._dtype), self._output_weight, self._output_bias)


def _position_table(positions: nn.Module | None, length: int, like: Tensor) -> Tensor | None:
    """What is added to the embeddings at each of so many steps, (n, D), zero where none can be."""
    if positions is None:
        return None
    table = like.new_zeros(length, like.shape[1])
    if isinstance(positions, LearnedPositions):
        length = min(length, positions.embedding.num_embeddings)
    table[:length] = positions(table[None, :length])[0]
    return table
