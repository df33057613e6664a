"""What search gives back, and what it asks of a model.

Imports no PyTorch: the native engine, which does without, gives back the same.
"""

# B segments, R rows (K for each segment, so R = B * K), V vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


class NonFiniteScoresError(ArithmeticError):
    """A model's scores are not finite numbers, so its weights are of no use."""

    def __init__(self, message: str = "the scores of the next token are not finite") -> None:
        super().__init__(message)


def refuse_non_finite(values: Tensor) -> None:
    """Raise a NonFiniteScoresError if a value is not a finite number."""
    # A sum costs less, and is finite only if all values are.
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        raise NonFiniteScoresError


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A translation in pieces, without </s>."""

    ids: tuple[int, ...]
    log_probability: float  # of the pieces and </s>, natural logarithm
    score: float  # log-probability after length normalisation, by which hypotheses are ranked
    piece_scores: tuple[float, ...] = ()  # log-probability of each piece and of </s>, where asked


class State(Protocol):
    """What a model keeps between steps; search never looks inside."""

    def reorder(self, origin: Tensor) -> None:
        """Let row k of each segment continue what its row `origin[:, k]` was, (B, K).

        The number K of rows of a segment may change.
        """

    def keep(self, segments: Tensor) -> None:
        """Forget all segments but these, with their rows."""


StateT = TypeVar("StateT", bound=State)


class StepModel(Protocol[StateT]):
    """A model that writes a piece at a time: a Transformer, an ensemble, a table."""

    def start(self, source: Tensor, source_keep: Tensor | None) -> StateT:
        """Read B segments, one row each."""

    def step(self, pieces: Tensor, state: StateT) -> Tensor:
        """Scores (R, V) of what follows the newest piece (R,) of each row, up to a constant."""
