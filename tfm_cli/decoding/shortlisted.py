"""A model that writes only some of the pieces, each segment its own: fewer logits to look through.

Search runs in ids of its own: piece i of it is, in a segment, piece `ids[segment, i]` of the model.
"""

# B segments still open, K beam, R = B * K rows, C pieces that a segment may write, U logits of the
# model: those that some segment may write, or all

import math
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from tfm_cli.decoding.hypothesis import StateT, StepModel


@dataclass(frozen=True, slots=True)
class Lists:
    """What each segment may write; a short list is filled up with what is hidden."""

    ids: Tensor  # (B, C), in the vocabulary
    columns: Tensor  # (B, C), where their logits are among the U
    hidden: Tensor  # (B, C), True for what fills up

    def keep(self, segments: Tensor) -> "Lists":
        """The lists of these segments alone."""
        ids, columns, hidden = (
            tensor.index_select(0, segments) for tensor in (self.ids, self.columns, self.hidden)
        )
        return Lists(ids, columns, hidden)


@dataclass(slots=True)
class ShortlistedState(Generic[StateT]):
    """What the model keeps, and the lists of the segments still open."""

    state: StateT
    lists: Lists

    def reorder(self, origin: Tensor) -> None:
        """Let row k of each segment continue what its row `origin[:, k]` was."""
        self.state.reorder(origin)

    def keep(self, segments: Tensor) -> None:
        """Forget all segments but these."""
        self.state.keep(segments)
        self.lists = self.lists.keep(segments)


@dataclass(frozen=True, slots=True)
class Shortlisted(Generic[StateT]):
    """A StepModel in which each segment has the vocabulary of its list.

    What is written in a segment, and with which probability, does not depend on the others.

    Args:
        model: reads ids of the vocabulary and gives logits (R, U).
        lists: of the segments that `start` will read.
    """

    model: StepModel[StateT]
    lists: Lists

    def start(self, source: Tensor, source_keep: Tensor | None) -> ShortlistedState[StateT]:
        """Read B segments, one row each."""
        return ShortlistedState(self.model.start(source, source_keep), self.lists)

    def step(self, pieces: Tensor, state: ShortlistedState[StateT]) -> Tensor:
        """Logits (R, C) of what follows the newest piece (R,), a place in its list, of each row."""
        lists = state.lists
        segments, count = lists.ids.shape
        written = lists.ids.gather(1, pieces.view(segments, -1))  # (B, K)
        logits = self.model.step(written.flatten(), state.state)  # (R, U)
        columns = lists.columns[:, None].expand(-1, written.shape[1], -1)  # (B, K, C)
        own = torch.gather(logits.view(segments, -1, logits.shape[1]), 2, columns)  # (B, K, C)
        return own.masked_fill_(lists.hidden[:, None], -math.inf).view(-1, count)
