"""One batch: padded tensors, what is real in them, and how many target pieces count."""

# B segments, S source pieces, T target pieces; both sides end in </s>

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model reads and what it should say."""

    source: Tensor  # (B, S) ids
    source_keep: Tensor | None  # (B, 1, 1, S), False at padding; None where there is none
    target_in: Tensor  # (B, T) ids, shifted right: the start id, then all but the last
    target_out: Tensor  # (B, T) ids, ending in </s>
    target_keep: Tensor  # (B, T), False at padding
    target_pieces: int  # True elements of target_keep

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(
            self.source.to(device, non_blocking=True),
            None if self.source_keep is None else self.source_keep.to(device, non_blocking=True),
            self.target_in.to(device, non_blocking=True),
            self.target_out.to(device, non_blocking=True),
            self.target_keep.to(device, non_blocking=True),
            self.target_pieces,
        )


def pad_source(
    sources: Sequence[Sequence[int] | np.ndarray], eos_id: int
) -> tuple[Tensor, Tensor | None]:
    """Source ids (B, S) with </s> after each segment, and what is real in them (B, 1, 1, S).

    Padding is more of </s>, which needs no id of its own: the mask hides it.
    """
    ids, keep = _pad([np.asarray(source, dtype=np.int64) for source in sources], eos_id)
    return ids, None if bool(keep.all()) else keep[:, None, None, :]


def make_batch(
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    start_id: int,
    eos_id: int,
    source_eos_id: int | None = None,
) -> Batch:
    """A batch of pairs of piece ids, given without </s>.

    Args:
        sources: ids of each source.
        targets: ids of each target.
        start_id: what a decoder starts from.
        eos_id: </s> of the target.
        source_eos_id: </s> of the source; None where the two sides share a vocabulary.
    """
    source, source_keep = pad_source(sources, eos_id if source_eos_id is None else source_eos_id)
    target_out, target_keep = _pad(targets, eos_id)
    target_in = target_out.roll(1, dims=1)
    target_in[:, 0] = start_id
    pieces = sum(len(target) + 1 for target in targets)
    return Batch(source, source_keep, target_in, target_out, target_keep, pieces)


def _pad(segments: Sequence[np.ndarray], eos_id: int) -> tuple[Tensor, Tensor]:
    longest = max(len(segment) for segment in segments) + 1
    ids = np.full((len(segments), longest), eos_id, dtype=np.int64)
    keep = np.zeros((len(segments), longest), dtype=np.bool_)
    for row, segment in enumerate(segments):
        ids[row, : len(segment)] = segment
        keep[row, : len(segment) + 1] = True
    return torch.from_numpy(ids), torch.from_numpy(keep)
