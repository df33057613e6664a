import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tfm_cli.engine.int8 import (
    LARGEST,
    Int8Linear,
    RowwiseInt8Linear,
    has_fbgemm,
    int8_linear,
    quantized_rows,
)

SIZES = [(1, 1, 1), (2, 1, 5), (1, 64, 3), (3, 17, 5), (20, 64, 100), (65, 130, 33)]  # M, K, N
Kind = type[Int8Linear] | type[RowwiseInt8Linear]
needs_fbgemm = pytest.mark.skipif(
    not has_fbgemm(), reason="this processor has no products of bytes"
)
every_kind = pytest.mark.parametrize(
    "kind", [pytest.param(Int8Linear, marks=needs_fbgemm), RowwiseInt8Linear]
)
every_size = pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    inputs=st.integers(1, 40),
    scale=st.floats(1e-6, 1e6),
    outlier=st.floats(1, 1e4),
    seed=st.integers(0, 2**32),
)
def test_row_is_kept_to_half_a_step(
    rows: int, inputs: int, scale: float, outlier: float, seed: int
) -> None:
    x = scale * torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))
    x[0, 0] *= outlier

    stored, peak = quantized_rows(x)

    step = peak.double() / LARGEST
    assert stored.dtype == torch.int8
    assert torch.equal(peak[:, 0], x.abs().amax(1))
    assert int(stored.abs().max()) == 127  # -128 is never used
    # A millionth more, since the division is in single precision.
    assert bool(((stored * step - x).abs() <= 0.500001 * step + 1e-6 * x.abs()).all())


@pytest.mark.parametrize(("rows", "inputs"), [(2049, 1024), (4097, 512), (3, 1_000_000)])
def test_large_matrix_is_rounded_like_its_rows(rows: int, inputs: int) -> None:
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1))

    stored, peak = quantized_rows(x)

    assert stored.shape == x.shape
    for place in (0, rows // 2, rows - 1):
        one, one_peak = quantized_rows(x[place : place + 1])
        assert torch.equal(stored[place], one[0])
        assert torch.equal(peak[place], one_peak[0])


def test_row_of_zeros_stays_zero() -> None:
    stored, peak = quantized_rows(torch.tensor([[0.0, 0.0], [-3.0, 1.5]]))

    assert stored.tolist() == [[0, 0], [-127, 64]]
    assert float(peak[0]) > 0


@every_kind
def test_what_is_quantized_is_left_as_it_is(kind: Kind) -> None:
    x = torch.randn(3, 5)
    before = x.clone()

    quantized_rows(x)
    kind(x, None)(x)

    assert torch.equal(x, before)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sums in 64-bit integers, the rest in double precision."""
    bytes_of, peaks = [], []
    for matrix in (x, weight):
        peak = matrix.abs().amax(1, keepdim=True).clamp_min(1e-12)
        bytes_of.append((matrix * (127 / peak)).round().long())
        peaks.append(peak.double())
    sums = (bytes_of[0][:, None] * bytes_of[1][None]).sum(2).double()  # (M, N)
    y = sums * peaks[0] * peaks[1].t() / 127**2
    return y if bias is None else y + bias


@pytest.mark.parametrize("biased", [True, False])
@every_size
def test_product_is_that_of_the_integers(
    rows: int, inputs: int, outputs: int, biased: bool
) -> None:
    torch.manual_seed(inputs)
    x, weight = 5 * torch.randn(rows, inputs), 0.1 * torch.randn(outputs, inputs)
    x[-1] *= 1000
    weight[0] *= 1000
    bias = torch.randn(outputs) if biased else None

    found = RowwiseInt8Linear(weight, bias)(x)

    # Scales are applied in single precision; the largest sums say how much a rounding is.
    wanted = reference(x, weight, bias)
    scale = 1 + float(wanted.abs().max())
    assert_close(found.double(), wanted, rtol=1e-6, atol=1e-7 * scale)


@every_size
def test_result_of_a_row_is_the_same_whatever_its_neighbours(
    rows: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(rows)
    x = torch.randn(rows, inputs)
    linear = RowwiseInt8Linear(torch.randn(outputs, inputs), torch.randn(1))
    among_others = torch.cat((100 * torch.randn(7, inputs), x.flip(0)))

    together = linear(x)

    assert torch.equal(linear(among_others)[7:].flip(0), together)
    for row in range(rows):
        assert torch.equal(linear(x[row : row + 1])[0], together[row])


@every_kind
def test_rows_and_outputs_of_zeros_give_the_bias(kind: Kind) -> None:
    weight, bias = torch.randn(4, 8), torch.randn(4)
    weight[1] = 0

    y = kind(weight, bias)(torch.stack((torch.zeros(8), torch.ones(8))))

    assert torch.equal(y[0], bias)
    assert y[1, 1] == bias[1]


@every_kind
@pytest.mark.parametrize("inputs", [16, 512, 2048])
def test_product_is_near_the_one_in_single_precision(inputs: int, kind: Kind) -> None:
    torch.manual_seed(inputs)
    x, weight = torch.randn(50, inputs), torch.randn(60, inputs)

    error = kind(weight, None)(x) - x @ weight.t()

    # Both sides are off by an even spread over a step, a 127th of a peak of 2 to 4 deviations.
    assert float(error.norm() / (x @ weight.t()).norm()) < 0.015


@every_kind
def test_sums_do_not_overflow(kind: Kind) -> None:
    found = kind(torch.ones(2, 4096), None)(torch.ones(1, 4096))

    assert found[0].tolist() == pytest.approx([4096.0] * 2)


@every_kind
@every_size
def test_relu_is_that_of_the_product(rows: int, inputs: int, outputs: int, kind: Kind) -> None:
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)

    assert torch.equal(kind(weight, bias, relu=True)(x), kind(weight, bias)(x).relu())


# --- one scale for all rows ----------------------------------------------------------------------


@needs_fbgemm
@pytest.mark.parametrize("biased", [True, False])
@every_size
def test_no_number_is_off_by_more_than_half_a_step_of_each_factor(
    rows: int, inputs: int, outputs: int, biased: bool
) -> None:
    torch.manual_seed(inputs)
    x, weight = 5 * torch.randn(rows, inputs), 0.1 * torch.randn(outputs, inputs)
    x[-1] *= 100
    weight[0] *= 1000
    bias = torch.randn(outputs) if biased else None

    found = Int8Linear(weight, bias)(x)

    # 256 steps from the lowest to the highest with 0 among them, which may move by half a step.
    step = (x.max().clamp_min(0) - x.min().clamp_max(0)).double() / 255
    half = weight.abs().amax(1).double() / 127 / 2  # of the weights of an output
    x, weight = x.double(), weight.double()
    wanted = x @ weight.t() + (0 if bias is None else bias)
    most = step * weight.abs().sum(1) + (x.abs().sum(1, keepdim=True) + inputs * step) * half
    assert bool(((found - wanted).abs() <= 1.001 * most + 1e-5).all())


@needs_fbgemm
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_row_that_has_no_numbers_is_no_error(odd: float) -> None:
    x = torch.randn(4, 8)
    x[2, 3] = odd

    assert Int8Linear(torch.randn(5, 8), None)(x).shape == (4, 5)


def test_processor_without_products_of_bytes_has_the_other_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FBGEMM would sum two products in 16 bits there, which overflow."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": False})
    has_fbgemm.cache_clear()
    try:
        assert type(int8_linear(torch.ones(1, 1), None)) is RowwiseInt8Linear
    finally:
        has_fbgemm.cache_clear()


def test_choice_of_the_engine_is_left_as_it_is() -> None:
    before = torch.backends.quantized.engine

    int8_linear(torch.ones(1, 1), None)

    assert torch.backends.quantized.engine == before
