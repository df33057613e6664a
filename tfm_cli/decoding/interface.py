"""The interface between search and models: step models, their states, and hypotheses.

This module imports no PyTorch, since the native engine returns the same hypotheses without it.
"""

# B segments, R rows (K for each segment, so R = B * K), V vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


class NonFiniteScoresError(ArithmeticError):
    """The error for scores that are not finite numbers, as unusable weights produce them."""

    def __init__(self, message: str = "the scores of the next token are not finite") -> None:
        super().__init__(message)


def refuse_non_finite(values: Tensor) -> None:
    """Raise a NonFiniteScoresError if a value is not a finite number."""
    # A sum costs less, and is finite only if all values are.
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        raise NonFiniteScoresError


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A translation in token ids, without </s>."""

    ids: tuple[int, ...]
    log_probability: float  # of the tokens and </s>, natural logarithm
    score: float  # log-probability after length normalization, by which hypotheses are ranked
    token_log_probs: tuple[float, ...] = ()  # of each token and of </s>, if requested


class State(Protocol):
    """The data that a model stores between steps, which is opaque to search."""

    def reorder(self, origin: Tensor) -> None:
        """Replace row k of each segment with row `origin[:, k]` of that segment, (B, K).

        The number K of rows of a segment may change.
        """

    def select(self, segments: Tensor) -> None:
        """Keep only these segments, with their rows."""


StateT = TypeVar("StateT", bound=State)


class StepModel(Protocol[StateT]):
    """A model that predicts one token at a time, such as a Transformer or an ensemble."""

    def start(self, source: Tensor, source_keep: Tensor | None) -> StateT:
        """Encode B segments, one row each, and return the state before the first step."""

    def step(self, tokens: Tensor, state: StateT) -> Tensor:
        """Return scores (R, V) of the token after the newest (R,) of each row, up to a constant."""
