import math

import pytest

from tfm_cli.decoding.length import length_norm, output_limit


@pytest.mark.parametrize(
    ("num_pieces", "alpha", "norm"),
    [(1, 0.6, 1.0), (7, 1.0, 2.0), (19, 0.5, 2.0), (19, 2.0, 16.0), (31, 1.0, 6.0)],
)
def test_length_norm_is_that_of_wu_et_al(num_pieces: int, alpha: float, norm: float) -> None:
    assert math.isclose(length_norm(num_pieces, alpha, "wu"), norm)


@pytest.mark.parametrize(("num_pieces", "alpha", "norm"), [(1, 0.6, 1.0), (9, 0.5, 3.0), (4, 1, 4)])
def test_length_norm_is_a_power_of_the_length(num_pieces: int, alpha: float, norm: float) -> None:
    assert math.isclose(length_norm(num_pieces, alpha), norm)


def test_penalty_of_zero_leaves_scores_as_they_are() -> None:
    assert {length_norm(num_pieces, 0.0) for num_pieces in range(1, 500)} == {1.0}


def test_higher_penalty_favors_the_longer() -> None:
    longer, shorter = -6.0, -5.0

    assert longer < shorter
    assert longer / length_norm(20, 1.0) > shorter / length_norm(10, 1.0)


@pytest.mark.parametrize(
    ("source_pieces", "factor", "limit"), [(0, 3.0, 10), (7, 3.0, 31), (7, 0.5, 13)]
)
def test_output_limit_grows_with_the_source(source_pieces: int, factor: float, limit: int) -> None:
    assert output_limit(source_pieces, factor) == limit
