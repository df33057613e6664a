import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tfm_cli.decoding.leading import leading


def assert_leading(logits: Tensor, count: int) -> None:
    """What comes back are the values of `topk`, largest first, and where they stand."""
    before = logits.clone()

    values, ids = leading(logits, count)

    wanted = logits.topk(count, dim=1).values
    assert torch.equal(values, wanted)
    assert torch.equal(logits.gather(1, ids), wanted)
    assert all(len(set(row)) == count for row in ids.tolist())
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [17, 63, 64, 1023, 1024, 1025, 1087, 1088, 4099, 32000])
def test_largest_are_those_of_topk(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    logits = torch.randn(5, size).to(dtype)

    for count in (1, 8, 16, 17):
        assert_leading(logits, count)


@pytest.mark.parametrize("size", [1, 2, 1024])
def test_all_may_be_asked_for(size: int) -> None:
    assert_leading(torch.randn(3, size), size)


@pytest.mark.parametrize("place", [0, 63, 64, 1023, 1024, 1025, 1099])
def test_largest_is_found_at_the_borders_of_groups(place: int) -> None:
    logits = torch.zeros(2, 1100)
    logits[:, place] = 1.0

    assert leading(logits, 1)[1].tolist() == [[place], [place]]
    assert_leading(logits, 4)


@pytest.mark.parametrize("size", [1024, 1100])
def test_largest_may_stand_in_one_group_or_behind_the_last(size: int) -> None:
    logits = torch.randn(3, size)
    logits[0, 128:192] += 100
    logits[1, -8:] += 100
    logits[2, 60:68] += 100

    assert_leading(logits, 8)


@pytest.mark.parametrize("finite", [0, 1, 3, 8, 20])
@pytest.mark.parametrize("size", [1024, 1060, 2000])
def test_rows_that_may_write_little_or_nothing(size: int, finite: int) -> None:
    """As after all other pieces were forbidden; the ids behind are those of some pieces."""
    logits = torch.full((4, size), -math.inf)
    for row in logits:
        row[torch.randperm(size)[:finite]] = torch.randn(finite)

    assert_leading(logits, 8)


def test_equal_logits_are_told_apart() -> None:
    assert_leading(torch.zeros(2, 1500), 8)
    assert_leading(torch.randint(0, 3, (20, 1500)).float(), 8)


def test_some_columns_of_a_matrix_will_do() -> None:
    assert_leading(torch.randn(3, 3000)[:, 100:1700], 5)
    assert_leading(torch.randn(1600, 3).t(), 5)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    size=st.integers(1, 1400),
    count=st.integers(1, 40),
    kinds=st.integers(1, 2000),
    forbidden=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_any_logits_and_any_count(
    rows: int, size: int, count: int, kinds: int, forbidden: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-kinds, kinds, (rows, size), generator=generator).float()
    logits[torch.rand(rows, size, generator=generator) < forbidden] = -math.inf

    assert_leading(logits, min(count, size))


def test_values_never_rise() -> None:
    values, _ = leading(torch.randn(1, 5000), 30)

    assert all(one >= other for one, other in pairwise(values[0].tolist()))
