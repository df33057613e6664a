"""A Transformer whose decoder takes steps of fixed shapes, which CUDA graphs can replay."""

# B segments, K beams of each, R = B * K rows, S source tokens, n steps of capacity,
# N = n * K entries of a cache, D model width, H heads, E = D // H, V vocabulary

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfm_cli.decoding.static.interface import Shape
from tfm_cli.engine.cuda.layers import StaticCache, StaticDecoderLayer, StepContext, additive_mask
from tfm_cli.model.arithmetic import arithmetic
from tfm_cli.model.layers import DecoderLayer
from tfm_cli.model.positions import LearnedPositions, rotations
from tfm_cli.model.transformer import Transformer


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

    def read(
        self, source: Tensor, source_keep: Tensor | None, state: StaticTransformerState
    ) -> None:
        """Reset the state and encode the sources of its first segments, at most (B, S) ids."""
        segments, length = source.shape
        with arithmetic(source.device, self._dtype):
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
        """Return logits (R, V) of the token after the newest (R,) of each row.

        A beam attends to the cache entries of its ancestors, so that a reordered beam needs no
        copy of its keys and values.

        Args:
            tokens: (R,) newest tokens, the K of the first segment, then of the second …
            position: (1,) number of steps before this one, less than n.
            beam_ancestors: (B, K, n), the beam of its segment that each row was at each step up to
                `position`, inclusive; -1 after that.
            state: as `read` and the earlier steps left it.
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
