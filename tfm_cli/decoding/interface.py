"""The interface of search: step models, hypotheses and their scores, options.

This module imports no PyTorch, since the native engine returns the same hypotheses without it.
"""

# B segments, R rows (K for each segment, so R = B * K), V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from tfm_cli.config.settings import SearchConfig

if TYPE_CHECKING:
    from torch import Tensor

    from tfm_cli.decoding.utf8 import Utf8


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

    def reorder(self, parents: Tensor) -> None:
        """Replace row k of each segment with row `parents[:, k]` of that segment, (B, K).

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
        """Return scores (R, V) of the next token of each row, up to a constant.

        Args:
            tokens: (R,) last token of each row.
            state: as `start` and the earlier steps left it; it is extended.
        """


@dataclass(frozen=True, slots=True)
class TargetVocabulary:
    """The tokens of the target vocabulary that search treats specially.

    Attributes:
        start_id: the decoder's first input.
        eos_id: ends a translation; must not be banned.
        banned_ids: never generated.
        utf8: restricts byte tokens to valid UTF-8. A hypothesis neither ends nor continues with
            another token inside a character, and begins no character that the limit would cut
            off. Scores remain those of the model. None for no such constraint.
    """

    start_id: int
    eos_id: int
    banned_ids: Sequence[int] = ()
    utf8: Utf8 | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError if the end of a translation is banned."""
        if self.eos_id in self.banned_ids:
            raise ValueError(f"</s>, id {self.eos_id}, is banned, so no translation could end")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingOptions:
    """The options of a search, the same for all segments of a batch.

    Attributes:
        settings: the settings of the search; those of segmentation and of batches are ignored.
        stops_loops: end a hypothesis that repeats the same few tokens, as if at its limit.
        token_log_probs: store the log-probability of each token of a hypothesis.
    """

    settings: SearchConfig = field(default_factory=SearchConfig)
    stops_loops: bool = False
    token_log_probs: bool = False


DEFAULT_OPTIONS = DecodingOptions()


def length_norm(num_tokens: int, alpha: float, kind: str = "power") -> float:
    """Return the divisor of a hypothesis' log-probability.

    Args:
        num_tokens: n, tokens including </s>, at least 1.
        alpha: 0 leaves scores as they are; 0.6–1.0 is usual.
        kind: `power` for n ** alpha, as in most toolkits; `wu` for ((5 + n) / 6) ** alpha.

    Source: Wu et al. 2016, arXiv:1609.08144, equation 14, for `wu`.
    """
    base = (5 + num_tokens) / 6 if kind == "wu" else num_tokens
    return float(base**alpha)


def output_limit(source_tokens: int, factor: float) -> int:
    """Return the maximum number of tokens of a translation, without </s>.

    It is `factor` for each source token, plus 10. It also ends output that repeats endlessly.
    """
    return int(source_tokens * factor) + 10
