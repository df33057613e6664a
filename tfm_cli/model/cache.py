"""The KV cache: keys and values of the source and of the tokens generated so far."""

# B segments, R rows (K beams of each segment, so R = B * K), S source tokens, t tokens generated,
# H heads, E width of a head

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class LayerCache:
    """The keys and values of one decoder layer.

    Those of the memory are computed once for each segment and shared by its beams.
    """

    memory_key: Tensor  # (B, H, S, E)
    memory_value: Tensor  # (B, H, S, E)
    key: Tensor | None = None  # (R, H, t, E), None before the first step
    value: Tensor | None = None  # (R, H, t, E), as key

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of one step, (R, H, 1, E) each, and return all so far."""
        if self.key is not None and self.value is not None:
            key = torch.cat((self.key, key), dim=2)  # (R, H, t + 1, E)
            value = torch.cat((self.value, value), dim=2)
        self.key, self.value = key, value
        return key, value

    def reorder(self, segments: Tensor, beams: Tensor) -> None:
        """Replace the rows with these beams of these segments; the indices broadcast to (B, K)."""
        if self.key is not None and self.value is not None:
            rows = (segments * (len(self.key) // len(self.memory_key)) + beams).flatten()  # (R,)
            self.key = self.key.index_select(0, rows)
            self.value = self.value.index_select(0, rows)


@dataclass(slots=True)
class DecoderState:
    """The caches of all layers, and the padding mask of the source."""

    source_keep: Tensor | None  # (B, 1, 1, S), False at padding; None if there is none
    layers: list[LayerCache] = field(default_factory=list)
    length: int = 0  # steps taken

    def reorder(self, parents: Tensor) -> None:
        """Replace beam k of each segment with its beam `parents[:, k]`; parents is (B, K)."""
        segments = torch.arange(len(parents), device=parents.device)
        for layer in self.layers:
            layer.reorder(segments[:, None], parents)

    def select(self, segments: Tensor) -> None:
        """Keep only these segments, with their beams."""
        if self.source_keep is not None:
            self.source_keep = self.source_keep.index_select(0, segments)
        for layer in self.layers:
            if layer.key is not None:
                beams = len(layer.key) // len(layer.memory_key)
                layer.reorder(segments[:, None], torch.arange(beams, device=segments.device))
            layer.memory_key = layer.memory_key.index_select(0, segments)
            layer.memory_value = layer.memory_value.index_select(0, segments)
