"""What fast decoding keeps between steps: nothing of it is moved when beams change places.

The beams of a segment share one cache, into which each step writes the keys and values of all of
them. A mask says which entries a beam descends from.
"""

# B segments, K beams of each, S source pieces, n entries of the cache, C entries there is room
# for, D model width, H heads, E width of a head

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST_ROOM = 32  # entries; the room doubles when it is full


@dataclass(frozen=True, slots=True)
class FoldedMemory:
    """What cross-attention remembers of one segment, with its projections multiplied in."""

    scoring: Tensor  # (D, H * S), from a row to its scores
    bias: Tensor  # (H * S,), of the scores
    mixing: Tensor  # (H * S, D), from attention weights to the layer's output


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one layer.

    Tensors of one layer each, since the C library gives back very large blocks to the system at
    once, and fresh memory is slow to touch first.
    """

    memory_keys: Tensor  # (B, H, E, S), of the source
    memory_values: Tensor  # (B, H, S, E)
    entries: Tensor  # (2, B, H, C, E), keys and values of the pieces written
    folded: FoldedMemory | None = None  # of a single segment, in place of the memory

    def grow(self, used: int, room: int) -> None:
        """Make room for so many entries, of which so many are used."""
        two, segments, heads, _, width = self.entries.shape
        larger = self.entries.new_empty(two, segments, heads, room, width)
        larger[:, :, :, :used] = self.entries[:, :, :, :used]
        self.entries = larger

    def keep(self, segments: Tensor) -> None:
        """Forget all segments but these."""
        self.memory_keys = self.memory_keys.index_select(0, segments)
        self.memory_values = self.memory_values.index_select(0, segments)
        self.entries = self.entries.index_select(1, segments)


@dataclass(slots=True)
class PreparedState:
    """Keys and values of all layers, and who may see which of them."""

    layers: list[LayerCache]
    memory_mask: Tensor  # (B, H, 1, S), 0 for pieces, -inf for padding
    entries: int = 0  # n
    ancestry: Tensor | None = None  # (B, K, n), 0 for a beam's own entries, else -inf; None: all
    length: int = 0  # steps taken
    newest: Tensor | None = None  # (R, D), the last output of the decoder in greedy search

    def open(self, beams: int) -> None:
        """Make room for an entry of each beam, which then counts as the newest."""
        end = self.entries + beams
        for layer in self.layers:
            if end > layer.entries.shape[3]:
                layer.grow(self.entries, max(_FIRST_ROOM * beams, 2 * end))
        if beams > 1 or self.ancestry is not None:
            own = self.memory_mask.new_full((beams, beams), -math.inf).fill_diagonal_(0.0)
            own = own.expand(len(self.memory_mask), -1, -1)  # (B, K, K)
            earlier = self.ancestry
            if earlier is None:
                earlier = own.new_zeros(len(own), beams, self.entries)
            self.ancestry = torch.cat((earlier, own), dim=2)  # (B, K, n + K)
        self.entries, self.length = end, self.length + 1

    def reorder(self, origin: Tensor) -> None:
        """Let beam k of each segment continue what beam `origin[:, k]` of it was, (B, K)."""
        beams = origin.shape[1]
        if self.ancestry is not None:
            places = origin[:, :, None].expand(-1, -1, self.entries)
            self.ancestry = self.ancestry.gather(1, places)  # (B, K, n)
        elif beams > 1:
            self.ancestry = self.memory_mask.new_zeros(len(origin), beams, self.entries)

    def keep(self, segments: Tensor) -> None:
        """Forget all segments but these, with their beams."""
        for layer in self.layers:
            layer.keep(segments)
        self.memory_mask = self.memory_mask.index_select(0, segments)
        if self.ancestry is not None:
            self.ancestry = self.ancestry.index_select(0, segments)
