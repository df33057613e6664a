import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tfm_cli.decoding.hypothesis import NonFiniteScoresError
from tfm_cli.engine.output import OutputLayer, _Screen

NONE = torch.tensor([], dtype=torch.long)
SIZES = [1, 2, 63, 64, 65, 128, 200, 1000]
every_size = pytest.mark.parametrize("size", SIZES)


def logits_of(weight: Tensor, bias: Tensor | None, hidden: Tensor, banned: Tensor) -> Tensor:
    """In double precision, in which random logits have no near ties."""
    logits = hidden.double() @ weight.double().t()
    if bias is not None:
        logits += bias.double()
    return logits.index_fill(1, banned, -torch.inf)


def assert_best(
    weight: Tensor, bias: Tensor | None, hidden: Tensor, banned: Tensor = NONE
) -> Tensor:
    """The ids found are the best, and among the candidates."""
    wanted = logits_of(weight, bias, hidden, banned).argmax(1)

    found = OutputLayer(weight, bias, "fp32").best(hidden, banned)

    assert found.tolist() == wanted.tolist()
    row, piece = _Screen(weight, bias).candidates(hidden, banned)
    candidates = list(zip(row.tolist(), piece.tolist(), strict=True))
    assert set(enumerate(wanted.tolist())) <= set(candidates)
    assert len(set(candidates)) == len(candidates)
    assert row.tolist() == sorted(row.tolist())
    assert not set(piece.tolist()) & set(banned.tolist())
    assert int(piece.max()) < len(weight)
    return found


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [1, 9])
@every_size
def test_best_is_that_of_single_precision(size: int, rows: int, biased: bool) -> None:
    torch.manual_seed(size)
    weight, hidden = torch.randn(size, 48), torch.randn(rows, 48)

    assert_best(weight, 5 * torch.randn(size) if biased else None, hidden)


@pytest.mark.parametrize("biased", [True, False])
@every_size
def test_banned_ids_are_not_chosen(size: int, biased: bool) -> None:
    """The best of some rows, and ids at the borders of groups; then the next best."""
    torch.manual_seed(size)
    weight, hidden = torch.randn(size, 48), torch.randn(7, 48)
    bias = torch.randn(size) if biased else None
    ends = [i for i in (0, 63, 64, 127, size - 1) if i < size]
    banned = [i for i in ends if size > 5]

    for _ in range(min(size, 6)):
        if len(set(banned)) == size:
            break
        best = assert_best(weight, bias, hidden, torch.tensor(banned, dtype=torch.long))
        banned.append(int(best[0]))


def test_rows_of_very_different_scale_do_not_bear_on_each_other() -> None:
    weight = torch.randn(500, 32)
    hidden = torch.randn(8, 32) * torch.tensor([[10.0**power] for power in range(-4, 4)])

    found = assert_best(weight, None, hidden)

    alone = [int(OutputLayer(weight, None, "fp32").best(row[None], NONE)) for row in hidden]
    assert found.tolist() == alone


@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-6])
def test_small_hidden_states_are_rounded_to_wider_steps(scale: float, rows: int) -> None:
    """The product in 8 bits has a least step, whatever it rounds."""
    torch.manual_seed(1)
    weight, hidden = torch.randn(700, 64), scale * torch.randn(rows, 64)

    assert_best(weight, None, hidden)
    assert_best(weight, scale * torch.randn(700), hidden)


@pytest.mark.parametrize("factor", [10.0, 100.0, 1000.0])
def test_outliers_among_the_weights_cost_candidates_but_no_best(factor: float) -> None:
    weight, hidden = torch.randn(700, 64), torch.randn(20, 64)
    weight[:, 3] *= factor
    weight[5] *= factor
    hidden[:10, 3] = 0

    assert_best(weight, None, hidden)
    assert_best(weight, factor * torch.randn(700), hidden)


def test_nearly_equal_logits_are_told_apart() -> None:
    """More candidates than 8 bits can tell apart: a common part, and little of each piece's own."""
    common, hidden = torch.randn(48), torch.randn(6, 48)
    weight = common + 1e-3 * torch.randn(900, 48)

    assert_best(weight, None, hidden)
    assert len(_Screen(weight, None).candidates(hidden, NONE)[0]) > 6 * 100


@pytest.mark.parametrize("size", [1, 64, 130])
def test_first_of_equal_ones_wins(size: int) -> None:
    weight, hidden = torch.randn(1, 16).expand(size, -1).contiguous(), torch.randn(3, 16)
    layer = OutputLayer(weight, None, "fp32")

    assert layer.best(hidden, NONE).tolist() == [0, 0, 0]
    if size > 1:
        assert layer.best(hidden, torch.tensor([0])).tolist() == [1, 1, 1]


def test_row_of_zeros_has_the_largest_bias() -> None:
    weight, bias = torch.randn(300, 16), torch.randn(300)
    hidden = torch.stack((torch.zeros(16), torch.randn(16)))

    assert OutputLayer(weight, None, "fp32").best(hidden, NONE)[0] == 0
    assert_best(weight, bias, hidden)


def test_weights_of_zeros_may_win() -> None:
    weight, hidden = -torch.rand(200, 16), torch.rand(3, 16)
    weight[150] = 0

    assert assert_best(weight, None, hidden).tolist() == [150] * 3


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 400),
    width=st.sampled_from([2, 3, 8, 64]),
    rows=st.integers(1, 5),
    scale=st.floats(1e-3, 1e3),
    outlier=st.floats(1, 1e3),
    bias=st.floats(0, 100),
    alike=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_best_is_always_among_the_candidates(
    size: int, width: int, rows: int, scale: float, outlier: float, bias: float, alike: float,
    seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, width, generator=generator) * (1 - alike)
    weight += torch.randn(width, generator=generator) * alike
    weight[:, 0] *= outlier
    hidden = scale * torch.randn(rows, width, generator=generator)
    added = bias * torch.randn(size, generator=generator)
    wanted = logits_of(weight, added, hidden, NONE).argmax(1).tolist()

    row, piece = _Screen(weight, added).candidates(hidden, NONE)

    found = set(zip(row.tolist(), piece.tolist(), strict=True))
    assert set(enumerate(wanted)) <= found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 300))
def test_hidden_states_that_look_like_a_piece_find_the_largest_logit(seed: int, size: int) -> None:
    """As of a trained model, whose hidden states point to the weights of the piece to come."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, 64, generator=generator)
    weight[:, 0] *= 30
    hidden = weight[:8] + 0.1 * torch.randn(min(size, 8), 64, generator=generator)

    assert_best(weight, None, hidden)


# --- logits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [1, 6])
def test_logits_are_the_product(rows: int, biased: bool) -> None:
    weight, hidden = torch.randn(130, 32), torch.randn(rows, 32)
    bias = torch.randn(130) if biased else None

    found = OutputLayer(weight, bias, "fp32").logits(hidden)

    # Single precision, sums in another order.
    assert_close(found.double(), logits_of(weight, bias, hidden, NONE), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("biased", [True, False])
def test_restricted_layer_is_some_columns_of_it(biased: bool, precision: str) -> None:
    weight, hidden = torch.randn(130, 32), torch.randn(5, 32)
    bias = torch.randn(130) if biased else None
    whole = OutputLayer(weight, bias, precision)
    ids = torch.tensor([4, 9, 64, 127, 129])

    some = whole.restricted(ids)

    # Outputs have a scale each, so that only the order of sums may differ.
    assert_close(some.logits(hidden), whole.logits(hidden)[:, ids], rtol=1e-5, atol=1e-5)
    wanted = logits_of(weight, bias, hidden, NONE)[:, ids].argmax(1)
    assert some.best(hidden, NONE).tolist() == wanted.tolist()


def test_being_ready_changes_nothing() -> None:
    weight, hidden = torch.randn(300, 16), torch.randn(4, 16)
    early, late = OutputLayer(weight, None, "fp32"), OutputLayer(weight, None, "fp32")

    early.prepare_best()
    early.prepare_best()

    assert early.best(hidden, NONE).tolist() == late.best(hidden, NONE).tolist()


@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@torch.inference_mode()
def test_state_that_is_not_finite_is_refused(value: float, rows: int) -> None:
    hidden = torch.randn(rows, 8)
    hidden[rows // 2, 3] = value

    with pytest.raises(NonFiniteScoresError):
        OutputLayer(torch.randn(70, 8), None, "fp32").best(hidden, torch.tensor([0]))


@pytest.mark.parametrize("rows", [1, 2, 6])
@torch.inference_mode()
def test_logits_that_overflow_are_refused(rows: int) -> None:
    hidden = torch.full((rows, 8), 1e30)

    with pytest.raises(NonFiniteScoresError):
        OutputLayer(torch.full((70, 8), 1e30), None, "fp32").best(hidden, torch.tensor([0]))
