"""A model that writes only some of the pieces: fewer logits to compute and to look through.

Search runs in ids of its own: piece i of it is piece `ids[i]` of the model.
"""

# B segments still open, R rows (K for each segment, so R = B * K), C pieces that may be written

import math
from dataclasses import dataclass
from typing import Generic

from torch import Tensor

from tfm_cli.decoding.hypothesis import StateT, StepModel


@dataclass(slots=True)
class ShortlistedState(Generic[StateT]):
    """What the model keeps, and what each segment may not write."""

    state: StateT
    hidden: Tensor | None  # (B, C)

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row `rows[i]` was; what is hidden is a segment's, not a row's."""
        self.state.reorder(rows)

    def keep(self, segments: Tensor) -> None:
        """Forget all segments but these."""
        self.state.keep(segments)
        if self.hidden is not None:
            self.hidden = self.hidden.index_select(0, segments)


@dataclass(frozen=True, slots=True)
class Shortlisted(Generic[StateT]):
    """A StepModel over the pieces that a batch may need, of which each segment has its own.

    What a segment may not write has a logit of -inf, so that its translation is that of a batch
    of its own, whatever its neighbours need.

    Args:
        model: reads ids of the whole vocabulary and gives logits (R, C).
        ids: (C,) of the pieces that its logits are of.
        hidden: (B, C), True for what a segment may not write; None where each may write all.
    """

    model: StepModel[StateT]
    ids: Tensor
    hidden: Tensor | None

    def start(self, source: Tensor, source_keep: Tensor | None) -> ShortlistedState[StateT]:
        """Read B segments, one row each."""
        return ShortlistedState(self.model.start(source, source_keep), self.hidden)

    def step(self, pieces: Tensor, state: ShortlistedState[StateT]) -> Tensor:
        """Logits (R, C) of what follows the newest piece (R,), a place in `ids`, of each row."""
        logits = self.model.step(self.ids[pieces], state.state)  # (R, C)
        if state.hidden is None:
            return logits
        beam = len(pieces) // len(state.hidden)
        return logits.masked_fill(state.hidden.repeat_interleave(beam, dim=0), -math.inf)
