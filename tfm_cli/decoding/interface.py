"""The interface between search and models: what a model provides and what search returns.

This module imports no PyTorch, since the native engine returns the same hypotheses without it.
"""

# B segments, R rows (K for each segment, so R = B * K), V vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


class NonFiniteScoresError(ArithmeticError):
    """The error for a model whose scores are not finite numbers, so its weights are useless."""

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
    score: float  # log-probability after length normalisation, by which hypotheses are ranked
    token_log_probs: tuple[float, ...] = ()  # of each token and of </s>, if requested


class State(Protocol):
    """The data that a model stores between steps; search does not look inside."""

    def reorder(self, origin: Tensor) -> None:
        """Let row k of each segment continue row `origin[:, k]` of that segment, (B, K).

        The number K of rows of a segment may change.
        """

    def select(self, segments: Tensor) -> None:
        """Drop all segments but these, with their rows."""


StateT = TypeVar("StateT", bound=State)


class StepModel(Protocol[StateT]):
    """A model that writes one token at a time: a Transformer, an ensemble, a table."""

    def start(self, source: Tensor, source_keep: Tensor | None) -> StateT:
        """Read B segments, one row each."""

    def step(self, tokens: Tensor, state: StateT) -> Tensor:
        """Return scores (R, V) of the token after the newest (R,) of each row, up to a constant."""
