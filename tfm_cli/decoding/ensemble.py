"""An ensemble: several models whose probabilities are averaged."""

# B segments, R rows (K for each segment), V vocabulary, M models

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from tfm_cli.decoding.constraints import single_precision
from tfm_cli.decoding.interface import StateT, StepModel


@dataclass(frozen=True, slots=True)
class EnsembleState(Generic[StateT]):
    """The states of all models."""

    states: tuple[StateT, ...]

    def reorder(self, parents: Tensor) -> None:
        """Replace row k of each segment with its row `parents[:, k]`, (B, K), in every model."""
        for state in self.states:
            state.reorder(parents)

    def select(self, segments: Tensor) -> None:
        """Keep only these segments, in every model."""
        for state in self.states:
            state.select(segments)


@dataclass(frozen=True, slots=True)
class Ensemble(Generic[StateT]):
    """A StepModel whose probabilities are the mean of those of its models.

    Args:
        models: over the same source and target vocabulary, at least one.
    """

    models: Sequence[StepModel[StateT]]

    def start(self, source: Tensor, source_keep: Tensor | None) -> EnsembleState[StateT]:
        """Encode B segments with every model."""
        return EnsembleState(tuple(model.start(source, source_keep) for model in self.models))

    def step(self, tokens: Tensor, state: EnsembleState[StateT]) -> Tensor:
        """Return log-probabilities (R, V) of the next token, given the last of each row (R,)."""
        log_probs = torch.stack([
            single_precision(model.step(tokens, own)).log_softmax(dim=1)
            for model, own in zip(self.models, state.states, strict=True)
        ])  # fmt: skip  # (M, R, V)
        return log_probs.logsumexp(dim=0) - math.log(len(log_probs))  # (R, V)
