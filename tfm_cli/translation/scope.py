"""Among which pieces a batch is searched: all of them, or those that its segments may need."""

# B segments, V vocabulary, C pieces that some segment may need

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tfm_cli.decoding.ensemble import Ensemble
from tfm_cli.decoding.hypothesis import Hypothesis, StepModel
from tfm_cli.decoding.shortlisted import Shortlisted

_MOST = 0.5  # share of the vocabulary above which it is searched whole: little would be saved


class Restrictable(StepModel[Any], Protocol):
    """A StepModel that can do with logits for some pieces; its state is its own business."""

    def restricted(self, ids: Tensor) -> StepModel[Any]:
        """The same model with logits for these ids (C,) alone."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a batch is searched in, whose pieces have ids of their own.

    Args:
        ids: (C,) of the pieces, rising; None where an id is its own, since there are all.
        hidden: (B, C), True for what a segment may not write; None where each may write all.
        place_of: the index of each of `ids`.
    """

    ids: Tensor | None = None
    hidden: Tensor | None = None
    place_of: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def of(allowed: Tensor) -> "Scope":
        """The scope where each segment may write some pieces, (B, V).

        Which pieces have logits is a matter of speed alone: what a segment may not write is hidden
        from it, whoever else needs it.
        """
        ids = allowed.any(dim=0).nonzero()[:, 0]  # (C,)
        if len(ids) > _MOST * allowed.shape[1]:
            return Scope(None, None if bool(allowed.all()) else ~allowed)
        hidden = ~allowed[:, ids]
        place_of = {piece: place for place, piece in enumerate(ids.tolist())}
        return Scope(ids, hidden if bool(hidden.any()) else None, place_of)

    def model(self, models: Sequence[Restrictable]) -> StepModel[Any]:
        """What is searched: one model, or several as one."""
        within = [self._within(model) for model in models]
        return Ensemble(within) if len(within) > 1 else within[0]

    def _within(self, model: Restrictable) -> StepModel[Any]:
        """The model in these ids; one of several is normalised over what a segment may write."""
        if self.ids is not None:
            return Shortlisted(model.restricted(self.ids), self.ids, self.hidden)
        if self.hidden is not None:
            every = torch.arange(self.hidden.shape[1], device=self.hidden.device)
            return Shortlisted(model, every, self.hidden)
        return model

    def places(self, ids: Sequence[int]) -> list[int]:
        """The pieces of the vocabulary in these ids, without those that are not among them."""
        if self.ids is None:
            return list(ids)
        return [self.place_of[piece] for piece in ids if piece in self.place_of]

    def restored(self, hypothesis: Hypothesis) -> Hypothesis:
        """The hypothesis in ids of the vocabulary."""
        if self.ids is None:
            return hypothesis
        ids = self.ids[list(hypothesis.ids)].tolist()
        return dataclasses.replace(hypothesis, ids=tuple(ids))
