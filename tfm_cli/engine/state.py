"""What fast decoding keeps between steps: caches that grow by blocks and are filled in place."""

# B segments, R rows (K beams of each segment, so R = B * K), S source pieces, t pieces written,
# C pieces there is room for, L layers, H heads, E width of a head

from dataclasses import dataclass

from torch import Tensor

_BLOCK = 8  # pieces that the caches grow by: room that is not used is moved with the rest


@dataclass(slots=True)
class PreparedState:
    """Keys and values of all layers, and which source positions are real."""

    source_keep: Tensor | None  # (B, 1, 1, S), True for pieces, False for padding; None: no padding
    memories: Tensor  # (L, 2, B, H, S, E), keys and values of the source
    caches: Tensor | None = None  # (L, 2, R, H, C, E), of the pieces written; None before the first
    length: int = 0  # t, steps taken

    def room(self, rows: int) -> Tensor:
        """The caches with room for one more piece, (L, 2, R, H, C, E)."""
        layers, two, _, heads, _, width = self.memories.shape
        if self.caches is None:
            self.caches = self.memories.new_empty(layers, two, rows, heads, _BLOCK, width)
        elif self.length == self.caches.shape[4]:
            more = self.caches.new_empty(layers, two, rows, heads, self.length + _BLOCK, width)
            more[:, :, :, :, : self.length] = self.caches
            self.caches = more
        return self.caches

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row `rows[i]` was; their number may change, segments stay."""
        if self.caches is not None:
            self.caches = self.caches.index_select(2, rows)

    def keep(self, segments: Tensor) -> None:
        """Keep the memories of these segments, in this order; their rows are for `reorder`."""
        if self.source_keep is not None:
            self.source_keep = self.source_keep.index_select(0, segments)
        self.memories = self.memories.index_select(2, segments)
