import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.corpus.check.statistics import LengthCounts, RatioCounts

SHARES = (0.001, 0.01, 0.5, 0.99, 1.0)
lengths = st.integers(0, 300)
pairs = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1)
in_its_own_time = settings(deadline=None, max_examples=30)


def nth(ordered: list[float], share: float) -> float:
    return ordered[max(1, math.ceil(share * len(ordered))) - 1]


@in_its_own_time
@given(st.lists(st.lists(lengths)))
def test_length_quantiles_equal_those_of_sorting(parts: list[list[int]]) -> None:
    counts = LengthCounts()
    for part in parts:
        counts.add(np.array(part, dtype=np.int64))

    every = sorted(length for part in parts for length in part)
    assert (counts.count, counts.total) == (len(every), sum(every))
    if every:
        assert counts.longest == every[-1]
        assert counts.mean == pytest.approx(sum(every) / len(every))
        assert [counts.quantile(s) for s in SHARES] == [nth(list(every), s) for s in SHARES]


def test_longest_segment_is_exact_beyond_the_histogram() -> None:
    counts = LengthCounts()
    counts.add(np.array([3, 3, 100_000, 1 << 40]))

    assert [counts.quantile(share) for share in (0.5, 0.75, 1)] == [3, 1 << 40, 1 << 40]


@in_its_own_time
@given(pairs)
def test_ratios_equal_those_counted_one_by_one(sides: list[tuple[int, int]]) -> None:
    ratios = RatioCounts()
    ratios.add(np.array([s for s, _ in sides]), np.array([t for _, t in sides]))

    ordered = sorted(target / source for source, target in sides)
    for factor in (2, 3, 9):
        assert ratios.beyond(factor) == sum(max(p) > factor * min(p) for p in sides)
    for share in SHARES:
        assert ratios.quantile(share) == pytest.approx(nth(ordered, share), rel=0.006)


def test_statistics_without_segments_are_zero() -> None:
    counts, ratios = LengthCounts(), RatioCounts()
    counts.add(np.array([], dtype=np.int64))
    ratios.add(np.array([]), np.array([]))

    assert (counts.mean, counts.quantile(0.5), counts.longest) == (0.0, 0, 0)
    assert (ratios.quantile(0.5), ratios.beyond(2)) == (0.0, 0)
