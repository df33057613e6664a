"""Search over part of the vocabulary, such as a shortlist for each segment.

Fewer logits are computed. Search uses local ids: token i of a segment is token
`ids[segment, i]` of the model.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import torch
from torch import Tensor

from tfm_cli.decoding.ensemble import Ensemble
from tfm_cli.decoding.interface import Hypothesis, StateT, StepModel, TargetVocabulary

# B segments still open, K beam, R = B * K rows, V vocabulary, C tokens that a segment may generate,
# U logits of the model: of the tokens that some segment may generate, or of all


@dataclass(frozen=True, slots=True)
class Shortlists:
    """The tokens that each segment may generate; short lists are padded."""

    ids: Tensor  # (B, C), in the vocabulary
    columns: Tensor  # (B, C), the positions of their logits among the U
    is_padding: Tensor  # (B, C)

    def select(self, segments: Tensor) -> "Shortlists":
        """Return the lists of only these segments."""
        ids, columns, is_padding = (
            tensor.index_select(0, segments) for tensor in (self.ids, self.columns, self.is_padding)
        )
        return Shortlists(ids, columns, is_padding)


@dataclass(slots=True)
class ShortlistedState(Generic[StateT]):
    """The model's state and the shortlists of the segments still open."""

    state: StateT
    shortlists: Shortlists

    def reorder(self, parents: Tensor) -> None:
        """Replace row k of each segment with row `parents[:, k]` of that segment, (B, K)."""
        self.state.reorder(parents)

    def select(self, segments: Tensor) -> None:
        """Keep only these segments."""
        self.state.select(segments)
        self.shortlists = self.shortlists.select(segments)


@dataclass(frozen=True, slots=True)
class ShortlistedModel(Generic[StateT]):
    """A StepModel in which the vocabulary of each segment is its shortlist.

    The tokens and probabilities of a segment do not depend on other segments.

    Args:
        model: reads ids of the vocabulary and computes logits (R, U).
        shortlists: of the segments that `start` will read.
    """

    model: StepModel[StateT]
    shortlists: Shortlists

    def start(self, source: Tensor, source_keep: Tensor | None) -> ShortlistedState[StateT]:
        """Encode B segments, one row each, and return the state before the first step."""
        return ShortlistedState(self.model.start(source, source_keep), self.shortlists)

    def step(self, tokens: Tensor, state: ShortlistedState[StateT]) -> Tensor:
        """Return logits (R, C) of the next token, given local ids (R,) of the last ones."""
        shortlists = state.shortlists
        segments, count = shortlists.ids.shape
        generated = shortlists.ids.gather(1, tokens.view(segments, -1))  # (B, K)
        logits = self.model.step(generated.flatten(), state.state)  # (R, U)
        columns = shortlists.columns[:, None].expand(-1, generated.shape[1], -1)  # (B, K, C)
        own = torch.gather(logits.view(segments, -1, logits.shape[1]), 2, columns)  # (B, K, C)
        return own.masked_fill_(shortlists.is_padding[:, None], -math.inf).view(-1, count)


# Share of the vocabulary above which a model computes all logits, since little would be saved.
_MAX_RESTRICTED_SHARE = 0.75


class RestrictableModel(StepModel[Any], Protocol):
    """A StepModel that can compute logits for a subset of the vocabulary."""

    def restricted(self, ids: Tensor) -> StepModel[Any]:
        """Return a view of this model that computes logits only for these ids (U,)."""


@dataclass(frozen=True, slots=True)
class RestrictedVocabulary:
    """The tokens over which a batch is searched; they have local ids if they are not all.

    Args:
        special: tokens that have the first local ids in every segment.
        shortlists: of each segment, beginning with the special tokens; None for the whole
            vocabulary, in which tokens have their own ids.
        required: (U,) tokens whose logits a model has to compute; None for all.
    """

    special: Sequence[int] = ()
    shortlists: Shortlists | None = None
    required: Tensor | None = None

    @staticmethod
    def of(allowed: Tensor, special: Sequence[int]) -> "RestrictedVocabulary":
        """Return the vocabulary in which segments may generate certain tokens and the special ones.

        The set of logits that a model computes affects only the speed: each segment uses the
        logits of its own shortlist.

        Args:
            allowed: (B, V), True for tokens that a segment may generate.
            special: ids of tokens that all segments may generate.
        """
        if bool(allowed.all()):
            return RestrictedVocabulary()
        special, device = list(dict.fromkeys(special)), allowed.device
        others = allowed.clone()
        others[:, special] = False
        row, token = others.nonzero(as_tuple=True)  # (tokens of all segments,) each
        counts = row.bincount(minlength=len(allowed))  # (B,)
        counts += len(special)
        ids = torch.full((len(allowed), int(counts.max())), special[0], device=device)  # (B, C)
        ids[:, : len(special)] = torch.tensor(special, device=device)
        local_id = torch.arange(ids.shape[1], device=device)
        is_padding = local_id >= counts[:, None]
        ids.masked_scatter_(~is_padding & (local_id >= len(special)), token)
        column = torch.zeros(allowed.shape[1], dtype=torch.long, device=device)  # (V,)
        column[ids.flatten()] = 1
        required = column.nonzero()[:, 0]  # (U,)
        if len(required) > _MAX_RESTRICTED_SHARE * allowed.shape[1]:
            return RestrictedVocabulary(special, Shortlists(ids, ids, is_padding))
        column[required] = torch.arange(len(required), device=device)
        return RestrictedVocabulary(special, Shortlists(ids, column[ids], is_padding), required)

    def model(self, models: Sequence[RestrictableModel]) -> StepModel[Any]:
        """Return the model to search: one model or an ensemble, restricted to the shortlists."""
        restricted = [self._restricted(model) for model in models]
        return Ensemble(restricted) if len(restricted) > 1 else restricted[0]

    def _restricted(self, model: RestrictableModel) -> StepModel[Any]:
        if self.shortlists is None:
            return model
        return ShortlistedModel(
            model if self.required is None else model.restricted(self.required), self.shortlists
        )

    def vocabulary(self, whole: TargetVocabulary) -> TargetVocabulary:
        """Return special tokens and UTF-8 constraint of the whole vocabulary in local ids."""
        if self.shortlists is None:
            return whole
        start_id, eos_id, *banned_ids = (
            self.special.index(token) for token in (whole.start_id, whole.eos_id, *whole.banned_ids)
        )
        utf8 = None if whole.utf8 is None else whole.utf8.within(self.shortlists.ids)
        return TargetVocabulary(start_id, eos_id, banned_ids, utf8)

    def prefix(self, segment: int, ids: Sequence[int]) -> list[int]:
        """Return a segment's prefix in local ids; its shortlist must contain all these tokens."""
        if self.shortlists is None or not ids:
            return list(ids)
        local_ids: dict[int, int] = {}
        for local_id, token in enumerate(self.shortlists.ids[segment].tolist()):
            local_ids.setdefault(token, local_id)
        return [local_ids[token] for token in ids]

    def restored(self, segment: int, hypothesis: Hypothesis) -> Hypothesis:
        """Return a segment's hypothesis with the ids of the whole vocabulary."""
        if self.shortlists is None:
            return hypothesis
        ids = self.shortlists.ids[segment, list(hypothesis.ids)].tolist()
        return dataclasses.replace(hypothesis, ids=tuple(ids))
