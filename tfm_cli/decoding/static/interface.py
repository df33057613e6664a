"""What search on a device asks of a model: steps whose tensors have fixed shapes and places.

Such a step can be recorded once and replayed, since nothing that it launches depends on how far
the search is: the position is a tensor as well.
"""

# B segments, K beams of each, R = B * K rows, S source pieces, n steps there is room for,
# V vocabulary

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from torch import Tensor

from tfm_cli.decoding.interface import Hypothesis


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the tensors of a step are."""

    segments: int  # B
    beams: int  # K
    source_pieces: int  # S
    room: int  # n


class FixedState(Protocol):
    """What a model keeps between steps, in tensors that stay where they are."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""

    def take(self, other: Self, segments: Tensor) -> None:
        """Become what these segments (B,) of a state are, which has as many beams and no more room.

        The B segments are those of this state; a segment may be named several times.
        """


FixedT = TypeVar("FixedT", bound=FixedState)


class FixedStepModel(Protocol[FixedT]):
    """A model that writes a piece at a time, in steps of fixed shapes."""

    def state(self, shape: Shape) -> FixedT:
        """A state that holds nothing yet."""

    def read(self, source: Tensor, source_keep: Tensor | None, state: FixedT) -> None:
        """Begin anew with the sources of the first segments, at most (B, S) ids.

        The other segments may get any that gives them finite logits.
        """

    def fixed_step(
        self, pieces: Tensor, position: Tensor, lineage: Tensor, state: FixedT
    ) -> Tensor:
        """Scores (R, V) of what follows the newest piece of each row, up to a constant.

        They are the caller's to write into. Only tensors may tell how far the search is, and no
        operator may wait for what a tensor holds.

        Args:
            pieces: (R,), the K of the first segment, then of the second …
            position: (1,) steps taken before, less than n.
            lineage: (B, K, n), which beam of its segment a row was at each step; at `position`
                itself; -1 behind.
            state: filled by `read` and the steps before.
        """


class Rows(Protocol):
    """What a search keeps of B segments, in tensors that stay where they are, and its step."""

    done: Tensor  # (B,) whether a segment needs no more steps

    def begin(self, limits: Sequence[int]) -> None:
        """Begin anew with segments of these limits; what becomes of those behind is all one."""

    def take(self, other: Self, segments: Tensor) -> None:
        """Become what these segments (B,) of a search with no more room are."""

    def step(self, model: FixedStepModel[FixedT], state: FixedT) -> None:
        """Write one more piece."""

    def results(self, segments: Sequence[int]) -> Callable[[], list[list[Hypothesis]]]:
        """Gives what was found for these segments, best first, when it has come to the host."""


RowsT = TypeVar("RowsT", bound=Rows)

_SOURCE_BLOCK = 16  # pieces; masks of such lengths are aligned as attention on a GPU likes them
ROOM_BLOCK = 32  # steps


def few_sizes(count: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24 … that is enough, so that sizes come again."""
    power = 1 << (count - 1).bit_length()  # the least power of two
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def source_room(length: int) -> int:
    """The least multiple of a block that is enough, so that lengths come again."""
    return -(-length // _SOURCE_BLOCK) * _SOURCE_BLOCK
