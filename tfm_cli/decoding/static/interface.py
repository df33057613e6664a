"""The interface between search and models on a GPU: steps on tensors of fixed shapes and addresses.

Such a step can be recorded as a CUDA graph and replayed, since no operator that it launches depends
on the position of the search: the position is a tensor as well.
"""

# B segments, K beams of each, R = B * K rows, S source tokens, n steps of capacity, V vocabulary

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from torch import Tensor

from tfm_cli.decoding.interface import Hypothesis


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the tensors of a step."""

    segments: int  # B
    beams: int  # K
    source_tokens: int  # S
    capacity: int  # n


class StaticState(Protocol):
    """The data that a model stores between steps, in tensors that are reused for each batch."""

    @property
    def num_bytes(self) -> int:
        """Return the memory of the tensors."""

    def copy_from(self, other: Self, segments: Tensor) -> None:
        """Copy these segments (B,) from a state with the same beams and at most this capacity.

        B is the number of segments of this state; a segment may occur several times.
        """


StaticStateT = TypeVar("StaticStateT", bound=StaticState)


class StaticStepModel(Protocol[StaticStateT]):
    """A model that predicts one token at a time, in steps of fixed shapes."""

    def state(self, shape: Shape) -> StaticStateT:
        """Return an empty state."""

    def read(self, source: Tensor, source_keep: Tensor | None, state: StaticStateT) -> None:
        """Reset the state and encode the sources of its first segments, at most (B, S) ids.

        The other segments may hold any values that lead to finite logits.
        """

    def step(
        self, tokens: Tensor, position: Tensor, beam_ancestors: Tensor, state: StaticStateT
    ) -> Tensor:
        """Return scores (R, V) of the next token of each row, up to a constant.

        The caller may overwrite them. Operators may depend on the position of the search only
        through tensors, and none may wait for a value from the device.

        Args:
            tokens: (R,) newest tokens, the K of the first segment, then of the second …
            position: (1,) number of steps before this one, less than n.
            beam_ancestors: (B, K, n), the beam of its segment that each row was at each step up to
                `position`, inclusive; -1 after that.
            state: as `read` and the earlier steps left it.
        """


class SearchState(Protocol):
    """The state of a search over B segments, in tensors that are reused, and its step."""

    done: Tensor  # (B,) True for segments that need no more steps

    def reset(self, limits: Sequence[int]) -> None:
        """Reset for a new batch of segments with these limits; unused rows are ignored."""

    def copy_from(self, other: Self, segments: Tensor) -> None:
        """Copy these segments (B,) from a search with at most this capacity."""

    def step(self, model: StaticStepModel[StaticStateT], state: StaticStateT) -> None:
        """Append a token to each hypothesis."""

    def results(self, segments: Sequence[int]) -> Callable[[], list[list[Hypothesis]]]:
        """Start a copy of the results to the host; the returned function waits for it.

        That function returns the hypotheses of these segments, best first.
        """


SearchStateT = TypeVar("SearchStateT", bound=SearchState)

_SOURCE_BLOCK = 16  # tokens; attention on GPUs is faster with aligned masks
CAPACITY_BLOCK = 32  # steps


def bucket_size(count: int) -> int:
    """Return the smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24 … that is at least `count`.

    With few sizes, a recorded step can be replayed for many batches.
    """
    power = 1 << (count - 1).bit_length()  # the smallest power of two that is at least `count`
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def source_capacity(length: int) -> int:
    """Return the number of source tokens, rounded up to a multiple of `_SOURCE_BLOCK`."""
    return -(-length // _SOURCE_BLOCK) * _SOURCE_BLOCK
