"""One batch: padded tensors, what is real in them, and how many target pieces count."""

# B segments, S source pieces, T target pieces; both sides end in </s>

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tfm_cli.corpus.store import FlatSegments


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model reads and what it should say."""

    source: Tensor  # (B, S) ids
    source_keep: Tensor | None  # (B, 1, 1, S), False at padding; None where there is none
    target_in: Tensor  # (B, T) ids, shifted right: the start id, then all but the last
    target_out: Tensor  # (B, T) ids, ending in </s>
    target_positions: Tensor  # (N,) of the real pieces among the B * T of target_out
    target_tokens: int  # N

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; pinned memory is copied while other work goes on."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same batch in memory that a GPU can read by itself."""
        return self._with(Tensor.pin_memory)

    def rows(self, start: int, stop: int) -> "Batch":
        """Some pairs of a batch that is on the CPU, as wide as they are there."""
        width = self.target_out.shape[1]
        places = self.target_positions - start * width
        places = places[(places >= 0) & (places < (stop - start) * width)]
        return Batch(
            self.source[start:stop],
            None if self.source_keep is None else self.source_keep[start:stop],
            self.target_in[start:stop],
            self.target_out[start:stop],
            places,
            len(places),
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
    """Source ids (B, S) with </s> after each segment, and what is real in them (B, 1, 1, S).

    Padding is more of </s>, which needs no id of its own: the mask hides it.
    """
    ids, keep = _pad(FlatSegments.of(sources), eos_id)
    return ids, _source_mask(keep)


def make_batch(
    sources: Sequence[Sequence[int] | np.ndarray],
    targets: Sequence[Sequence[int] | np.ndarray],
    *,
    start_id: int,
    eos_id: int,
    source_eos_id: int | None = None,
) -> Batch:
    """A batch of pairs of piece ids, given without </s>; arguments as for `flat_batch`."""
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
    """A batch of pairs.

    Args:
        sources: of each pair.
        targets: of each pair.
        start_id: what a decoder starts from.
        eos_id: </s> of the target.
        source_eos_id: </s> of the source; None where the two sides share a vocabulary.
    """
    source, source_keep = _pad(sources, eos_id if source_eos_id is None else source_eos_id)
    target_out, target_keep = _pad(targets, eos_id)
    target_in = target_out.roll(1, dims=1)
    target_in[:, 0] = start_id
    # Asked here, on the CPU: a GPU would be waited for to know how many there are.
    places = target_keep.flatten().nonzero()[:, 0]  # (N,)
    return Batch(source, _source_mask(source_keep), target_in, target_out, places, len(places))


def _pad(segments: FlatSegments, eos_id: int) -> tuple[Tensor, Tensor]:
    """Ids (B, T) with </s> after each segment, and what is real in them (B, T)."""
    longest = int(segments.lengths.max()) + 1
    columns = np.arange(longest)
    ids = np.full((len(segments.lengths), longest), eos_id, dtype=np.int64)
    ids[columns < segments.lengths[:, None]] = segments.ids
    keep = columns <= segments.lengths[:, None]  # </s> is real
    return torch.from_numpy(ids), torch.from_numpy(keep)


def _source_mask(keep: Tensor) -> Tensor | None:
    return None if bool(keep.all()) else keep[:, None, None, :]  # (B, 1, 1, S)
