"""Batches: padded tensors of token ids, with the padding mask of the source."""

# B segments, S source tokens, T target tokens; both sides end in </s>

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tfm_cli.corpus.store import FlatSegments


@dataclass(frozen=True, slots=True)
class Batch:
    """The model inputs and expected outputs of a batch of sentence pairs."""

    source: Tensor  # (B, S) ids
    source_keep: Tensor | None  # (B, 1, 1, S), False at padding; None if there is no padding
    target_in: Tensor  # (B, T) ids, shifted right: the start id, then all but the last
    target_out: Tensor  # (B, T) ids, ending in </s>
    target_positions: Tensor  # (N,) positions of real tokens in the flattened target_out
    target_tokens: int  # N

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; the copy from pinned memory is asynchronous."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """Return the batch in pinned memory, from which a GPU copies asynchronously."""
        return self._with(Tensor.pin_memory)

    def rows(self, start: int, stop: int) -> "Batch":
        """Return some pairs of a batch that is on the CPU, padded to the same width."""
        width = self.target_out.shape[1]
        positions = self.target_positions - start * width
        positions = positions[(positions >= 0) & (positions < (stop - start) * width)]
        return Batch(
            self.source[start:stop],
            None if self.source_keep is None else self.source_keep[start:stop],
            self.target_in[start:stop],
            self.target_out[start:stop],
            positions,
            len(positions),
        )

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            change(self.source),
            None if self.source_keep is None else change(self.source_keep),
            change(self.target_in),
            change(self.target_out),
            change(self.target_positions),
            self.target_tokens,
        )


def pad_source(
    sources: Sequence[Sequence[int] | np.ndarray], eos_id: int
) -> tuple[Tensor, Tensor | None]:
    """Return source ids (B, S) with </s> after each segment, and the padding mask (B, 1, 1, S).

    The mask is False at padding, and None if there is none. Padding has the id of </s>: the mask
    hides it, so it needs no id of its own.
    """
    ids, keep = _pad(FlatSegments.of(sources), eos_id)
    return ids, _padding_mask(keep)


def make_batch(
    sources: Sequence[Sequence[int] | np.ndarray],
    targets: Sequence[Sequence[int] | np.ndarray],
    *,
    start_id: int,
    eos_id: int,
    source_eos_id: int | None = None,
) -> Batch:
    """Return a batch of pairs of token ids, given without </s>; arguments as in `flat_batch`."""
    return flat_batch(
        FlatSegments.of(sources),
        FlatSegments.of(targets),
        start_id=start_id,
        eos_id=eos_id,
        source_eos_id=source_eos_id,
    )


def flat_batch(
    sources: FlatSegments,
    targets: FlatSegments,
    *,
    start_id: int,
    eos_id: int,
    source_eos_id: int | None = None,
) -> Batch:
    """Return a batch of pairs.

    Args:
        sources: one segment for each pair.
        targets: one segment for each pair.
        start_id: the decoder's first input.
        eos_id: </s> of the target.
        source_eos_id: </s> of the source; None if both sides share a vocabulary.
    """
    source, source_keep = _pad(sources, eos_id if source_eos_id is None else source_eos_id)
    target_out, target_keep = _pad(targets, eos_id)
    target_in = target_out.roll(1, dims=1)
    target_in[:, 0] = start_id
    # `nonzero` runs on the CPU: on a GPU it would synchronize, since its size depends on the data.
    positions = target_keep.flatten().nonzero()[:, 0]  # (N,)
    return Batch(
        source, _padding_mask(source_keep), target_in, target_out, positions, len(positions)
    )


def _pad(segments: FlatSegments, eos_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) with </s> after each segment, and True at each real token (B, T)."""
    longest = int(segments.lengths.max()) + 1
    columns = np.arange(longest)
    ids = np.full((len(segments.lengths), longest), eos_id, dtype=np.int64)
    ids[columns < segments.lengths[:, None]] = segments.ids
    keep = columns <= segments.lengths[:, None]  # </s> is real
    return torch.from_numpy(ids), torch.from_numpy(keep)


def _padding_mask(keep: Tensor) -> Tensor | None:
    """Return the mask (B, 1, 1, S), False at padding, of keep (B, S); None without padding."""
    return None if bool(keep.all()) else keep[:, None, None, :]
