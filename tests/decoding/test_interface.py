"""The interface of search needs no PyTorch, and scores are normalized by length."""

import math
import subprocess
import sys

import pytest

from tfm_cli.decoding.interface import length_norm, output_limit


def test_hypotheses_need_no_pytorch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError\n"
        "print(Hypothesis((1, 2), -1.0, -0.5).ids, NonFiniteScoresError())"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "(1, 2) the scores of the next token are not finite\n"


@pytest.mark.parametrize(
    ("num_tokens", "alpha", "norm"),
    [(1, 0.6, 1.0), (7, 1.0, 2.0), (19, 0.5, 2.0), (19, 2.0, 16.0), (31, 1.0, 6.0)],
)
def test_length_norm_is_that_of_wu_et_al(num_tokens: int, alpha: float, norm: float) -> None:
    assert math.isclose(length_norm(num_tokens, alpha, "wu"), norm)


@pytest.mark.parametrize(("num_tokens", "alpha", "norm"), [(1, 0.6, 1.0), (9, 0.5, 3.0), (4, 1, 4)])
def test_length_norm_is_a_power_of_the_length(num_tokens: int, alpha: float, norm: float) -> None:
    assert math.isclose(length_norm(num_tokens, alpha), norm)


def test_penalty_of_zero_leaves_scores_as_they_are() -> None:
    assert {length_norm(num_tokens, 0.0) for num_tokens in range(1, 500)} == {1.0}


def test_higher_penalty_favors_the_longer() -> None:
    longer, shorter = -6.0, -5.0

    assert longer < shorter
    assert longer / length_norm(20, 1.0) > shorter / length_norm(10, 1.0)


@pytest.mark.parametrize(
    ("source_tokens", "factor", "limit"), [(0, 3.0, 10), (7, 3.0, 31), (7, 0.5, 13)]
)
def test_output_limit_grows_with_the_source(source_tokens: int, factor: float, limit: int) -> None:
    assert output_limit(source_tokens, factor) == limit
