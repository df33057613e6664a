"""Several models as one, which believes the mean of what they believe."""

# B segments, R rows (K for each segment), V vocabulary, M models

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from tfm_cli.decoding.interface import StateT, StepModel


@dataclass(frozen=True, slots=True)
class EnsembleState(Generic[StateT]):
    """What each of the models keeps."""

    states: tuple[StateT, ...]

    def reorder(self, origin: Tensor) -> None:
        """Let row k of each segment continue what its row `origin[:, k]` was, in every model."""
        for state in self.states:
            state.reorder(origin)

    def keep(self, segments: Tensor) -> None:
        """Forget all segments but these, in every model."""
        for state in self.states:
            state.keep(segments)


@dataclass(frozen=True, slots=True)
class Ensemble(Generic[StateT]):
    """A StepModel whose probabilities are the mean of its models'.

    Args:
        models: over the same source and target vocabulary, at least one.
    """

    models: Sequence[StepModel[StateT]]

    def start(self, source: Tensor, source_keep: Tensor | None) -> EnsembleState[StateT]:
        """Let every model read B segments."""
        return EnsembleState(tuple(model.start(source, source_keep) for model in self.models))

    def step(self, pieces: Tensor, state: EnsembleState[StateT]) -> Tensor:
        """Log-probabilities (R, V) of what follows the newest piece (R,) of each row."""
        log_probs = []
        for model, own in zip(self.models, state.states, strict=True):
            logits = model.step(pieces, own)  # (R, V)
            half = logits.dtype in (torch.bfloat16, torch.float16)
            log_probs.append((logits.float() if half else logits).log_softmax(dim=1))
        return torch.stack(log_probs).logsumexp(dim=0) - math.log(
            len(log_probs)
        )  # (M, R, V) → (R, V)
