"""What verification asks of another program that runs a model."""

# T target pieces with </s>, V vocabulary

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Ids = tuple[int, ...]


class Runtime(Protocol):
    """A model in another program's hands; ids are ours and stand without </s>."""

    @property
    def name(self) -> str:
        """The program and its version."""

    @property
    def bans_before_softmax(self) -> bool:
        """Whether the mass of pieces that are never written goes to the others."""

    @property
    def most_pieces(self) -> int:
        """Longest source and longest translation that there are positions for."""

    def encode(self, lines: Sequence[str]) -> list[Ids] | None:
        """The ids of each line; None where cutting lines is no task of the program's."""

    def differences(
        self, sources: Sequence[Ids], targets: Sequence[Ids], logits: Sequence[Tensor]
    ) -> list[Tensor]:
        """How far what it computes for given targets is from our logits, (T,) for each segment.

        Args:
            sources: segments, padded together.
            targets: their given translations.
            logits: ours, (T, V) for each segment.
        """

    def search(self, sources: Sequence[Ids], *, beam_size: int, limit: int) -> list[Ids]:
        """The best translation of each segment, of at most about `limit` pieces.

        Scores are divided by the number of pieces with </s>, and the search stops when as many
        translations as the beam is wide have ended.
        """
