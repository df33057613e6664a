"""Random choices that are the same on every platform and Python version.

Everything comes from `Random.random()`, whose sequence Python promises to keep for a seed, and
from products and sums of floats, which IEEE 754 rounds the same everywhere.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Chooser:
    """A stream of choices, fixed by its seed."""

    def __init__(self, seed: int) -> None:
        """Starts the stream."""
        self._random = Random(seed)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, each as likely."""
        return items[int(self._random.random() * len(items))]

    def favor(self, items: Sequence[T]) -> T:
        """One of the items, the first about three times as likely as the last."""
        position = self._random.random()
        return items[int(position * (1 + position) / 2 * len(items))]

    def weighted(self, weights: Mapping[T, int]) -> T:
        """One of the keys, as likely as its weight says; whole weights add up the same anywhere."""
        remaining = self._random.random() * sum(weights.values())
        for item, weight in weights.items():
            remaining -= weight
            if remaining < 0:
                return item
        return item

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in another order."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = self.number(0, last)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed
