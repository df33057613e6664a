import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tfm_cli.engine.int8 import LARGEST, Int8Linear, quantized_rows

SIZES = [(1, 1, 1), (2, 1, 5), (1, 64, 3), (3, 17, 5), (20, 64, 100), (65, 130, 33)]  # M, K, N
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


def test_what_is_quantized_is_left_as_it_is() -> None:
    x = torch.randn(3, 5)
    before = x.clone()

    quantized_rows(x)
    Int8Linear(x, None)(x)

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

    found = Int8Linear(weight, bias)(x)

    # Scales are applied in single precision; the largest sums say how much a rounding is.
    wanted = reference(x, weight, bias)
    scale = 1 + float(wanted.abs().max())
    assert_close(found.double(), wanted, rtol=1e-6, atol=1e-7 * scale)


@every_size
def test_result_of_a_row_is_the_same_whatever_its_neighbours(
    rows: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(rows)
    x, linear = torch.randn(rows, inputs), Int8Linear(torch.randn(outputs, inputs), torch.randn(1))
    among_others = torch.cat((100 * torch.randn(7, inputs), x.flip(0)))

    together = linear(x)

    assert torch.equal(linear(among_others)[7:].flip(0), together)
    for row in range(rows):
        assert torch.equal(linear(x[row : row + 1])[0], together[row])


def test_rows_and_outputs_of_zeros_give_the_bias() -> None:
    weight, bias = torch.randn(4, 8), torch.randn(4)
    weight[1] = 0

    y = Int8Linear(weight, bias)(torch.stack((torch.zeros(8), torch.ones(8))))

    assert torch.equal(y[0], bias)
    assert y[1, 1] == bias[1]


@pytest.mark.parametrize("inputs", [16, 512, 2048])
def test_product_is_near_the_one_in_single_precision(inputs: int) -> None:
    torch.manual_seed(inputs)
    x, weight = torch.randn(50, inputs), torch.randn(60, inputs)

    error = Int8Linear(weight, None)(x) - x @ weight.t()

    # Both sides are off by an even spread over a step, a 127th of a peak of 2 to 4 deviations.
    assert float(error.norm() / (x @ weight.t()).norm()) < 0.015


def test_sums_do_not_overflow() -> None:
    found = Int8Linear(torch.ones(2, 4096), None)(torch.ones(1, 4096))

    assert found[0].tolist() == pytest.approx([4096.0] * 2)
