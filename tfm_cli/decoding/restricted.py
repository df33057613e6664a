"""A model that writes only some of the pieces, each segment its own: fewer logits to look through.

Search runs in ids of its own: piece i of it is, in a segment, piece `ids[segment, i]` of the model.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import torch
from torch import Tensor

from tfm_cli.decoding.ensemble import Ensemble
from tfm_cli.decoding.interface import Hypothesis, StateT, StepModel
from tfm_cli.decoding.utf8 import Utf8

# B segments still open, K beam, R = B * K rows, C pieces that a segment may write, U logits of the
# model: those that some segment may write, or all


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


# Among which pieces a batch is searched: all of them, or those that its segments may need.

# B segments, V vocabulary, C pieces that a segment may need, U pieces that some segment may need


_MOST = 0.75  # share of the vocabulary above which a model gives all logits: little would be saved


class Restrictable(StepModel[Any], Protocol):
    """A StepModel that can do with logits for some pieces; its state is its own business."""

    def restricted(self, ids: Tensor) -> StepModel[Any]:
        """The same model with logits for these ids (U,) alone."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a batch is searched in, where pieces have ids of their own.

    Args:
        special: pieces that have the first of these ids in every segment.
        lists: of each segment, beginning with them; None for the whole vocabulary, in which a
            piece has its own id.
        needed: (U,) which pieces a model has to give logits of; None for all.
    """

    special: Sequence[int] = ()
    lists: Lists | None = None
    needed: Tensor | None = None

    @staticmethod
    def of(allowed: Tensor, special: Sequence[int]) -> "Scope":
        """The scope where each segment may write some pieces, (B, V), and the special ones.

        Which logits a model gives is a matter of speed alone: of those that its neighbours need, a
        segment sees none.
        """
        if bool(allowed.all()):
            return Scope()
        special, device = list(dict.fromkeys(special)), allowed.device
        others = allowed.clone()
        others[:, special] = False
        row, piece = others.nonzero(as_tuple=True)  # (pieces of all segments,) each
        counts = row.bincount(minlength=len(allowed))  # (B,)
        counts += len(special)
        ids = torch.full((len(allowed), int(counts.max())), special[0], device=device)  # (B, C)
        ids[:, : len(special)] = torch.tensor(special, device=device)
        place = torch.arange(ids.shape[1], device=device)
        hidden = place >= counts[:, None]
        ids.masked_scatter_(~hidden & (place >= len(special)), piece)
        column = torch.zeros(allowed.shape[1], dtype=torch.long, device=device)  # (V,)
        column[ids.flatten()] = 1
        needed = column.nonzero()[:, 0]  # (U,)
        if len(needed) > _MOST * allowed.shape[1]:
            return Scope(special, Lists(ids, ids, hidden))
        column[needed] = torch.arange(len(needed), device=device)
        return Scope(special, Lists(ids, column[ids], hidden), needed)

    def model(self, models: Sequence[Restrictable]) -> StepModel[Any]:
        """What is searched: one model, or several as one, each normalised over a segment's list."""
        within = [self._within(model) for model in models]
        return Ensemble(within) if len(within) > 1 else within[0]

    def _within(self, model: Restrictable) -> StepModel[Any]:
        if self.lists is None:
            return model
        return Shortlisted(
            model if self.needed is None else model.restricted(self.needed), self.lists
        )

    def specials(self, ids: Sequence[int]) -> list[int]:
        """Special pieces in these ids."""
        return list(ids) if self.lists is None else [self.special.index(piece) for piece in ids]

    def utf8(self, constraint: Utf8 | None) -> Utf8 | None:
        """The constraint on byte pieces in these ids, given the one of the vocabulary."""
        if constraint is None or self.lists is None:
            return constraint
        return constraint.within(self.lists.ids)

    def prefix(self, segment: int, ids: Sequence[int]) -> list[int]:
        """What a segment's translation begins with, all of which it may write, in these ids."""
        if self.lists is None or not ids:
            return list(ids)
        place_of: dict[int, int] = {}
        for place, piece in enumerate(self.lists.ids[segment].tolist()):
            place_of.setdefault(piece, place)
        return [place_of[piece] for piece in ids]

    def restored(self, segment: int, hypothesis: Hypothesis) -> Hypothesis:
        """A hypothesis of a segment in ids of the vocabulary."""
        if self.lists is None:
            return hypothesis
        ids = self.lists.ids[segment, list(hypothesis.ids)].tolist()
        return dataclasses.replace(hypothesis, ids=tuple(ids))
