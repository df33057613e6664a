"""How long segments are and how much longer than the other side, in tables of a fixed size."""

import math

import numpy as np

_MAX_EXACT = 1 << 14  # longer segments are one class, of which the longest is known
_STEPS = 64  # classes of ratios from 1 to 2, so that a quantile is known to 1 %
_MAX_POWER = 20


class LengthCounts:
    """Lengths of segments, counted by length.

    Attributes:
        count, total, longest: of all segments so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.longest = 0
        self._table = np.zeros(_MAX_EXACT + 1, dtype=np.int64)

    def add(self, lengths: np.ndarray) -> None:
        """Count segments."""
        if not len(lengths):
            return
        self.count += len(lengths)
        self.total += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))
        found = np.bincount(np.minimum(lengths, _MAX_EXACT))
        self._table[: len(found)] += found

    @property
    def mean(self) -> float:
        """0 where there are no segments."""
        return self.total / max(1, self.count)

    def quantile(self, share: float) -> int:
        """The smallest length that this share of the segments does not exceed.

        Exact up to 16,383; beyond, the longest length stands in.
        """
        length = _first_reaching(self._table, share)
        return self.longest if length >= _MAX_EXACT else length


class RatioCounts:
    """Target's length divided by the source's, counted in classes that grow by 1.09 %."""

    def __init__(self) -> None:
        self.count = 0
        self._table = np.zeros(2 * _MAX_POWER * _STEPS, dtype=np.int64)
        self._beyond = dict.fromkeys((2, 3, 9), 0)

    def add(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Count pairs by their lengths, none of which may be 0."""
        if not len(sources):
            return
        self.count += len(sources)
        shorter, longer = np.minimum(sources, targets), np.maximum(sources, targets)
        for factor in self._beyond:
            self._beyond[factor] += int((longer > factor * shorter).sum())
        power = np.log2(targets / sources) * _STEPS
        place = np.floor(power + 0.5).astype(np.int64) + _MAX_POWER * _STEPS
        found = np.bincount(np.clip(place, 0, len(self._table) - 1))
        self._table[: len(found)] += found

    def beyond(self, factor: int) -> int:
        """Pairs of which one side is more than 2, 3 or 9 times as long as the other."""
        return self._beyond[factor]

    def quantile(self, share: float) -> float:
        """The ratio that this share of the pairs does not exceed, within 0.6 %; 0 without pairs."""
        if not self.count:
            return 0.0
        place = _first_reaching(self._table, share) - _MAX_POWER * _STEPS
        return float(2.0 ** (place / _STEPS))


def _first_reaching(table: np.ndarray, share: float) -> int:
    wanted = max(1, math.ceil(share * int(table.sum())))
    return int(np.searchsorted(np.cumsum(table), wanted)) if table.any() else 0
