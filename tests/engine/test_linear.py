import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from tests.engine.small_models import EOS, SHAPES, START, every_shape, model_of, source_of
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.hypothesis import Hypothesis, StateT, StepModel
from tfm_cli.engine import linear as module
from tfm_cli.engine.linear import by_columns, linear_of, prepared_linear
from tfm_cli.engine.prepared import PreparedTransformer

SIZES = [(1, 1), (3, 5), (64, 48), (512, 128), (7, 1000)]  # K, N
every_size = pytest.mark.parametrize(("inputs", "outputs"), SIZES)


@pytest.fixture(params=[True, False], ids=["columns", "packed"])
def likes_columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    likes = bool(request.param)
    monkeypatch.setattr(module, "_likes_columns", lambda device: likes)
    return likes


def random_linear(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(inputs)
    return nn.Linear(inputs, outputs).requires_grad_(False)


def tolerance(precision: str, x: Tensor, weight: Tensor) -> float:
    """How far an output may be off, by what a product's factors are rounded to."""
    # bf16 has 8 digits, of each factor and of the sum; int8 has half a step, a 254th of the peak.
    relative = {"fp32": 1e-6, "bf16": 3 * 2**-9, "int8": 2 / 254}[precision]
    peaks = x.abs().amax() * weight.abs().amax() * x.shape[1]
    return relative * float(peaks)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@every_size
@pytest.mark.usefixtures("likes_columns")
def test_product_is_that_of_the_linear_map(inputs: int, outputs: int, precision: str) -> None:
    linear = random_linear(inputs, outputs)
    prepared = prepared_linear(linear, precision)

    for rows in (1, 2, 70):
        x = torch.randn(rows, inputs)
        wanted, before = linear(x), x.clone()
        found = prepared(x)

        assert found.dtype == torch.float32
        assert_close(found, wanted, rtol=0, atol=tolerance(precision, x, linear.weight))
        assert torch.equal(x, before)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("outputs", [slice(20), slice(20, None), slice(5, 6)], ids=str)
@pytest.mark.usefixtures("likes_columns")
def test_some_outputs_alone(outputs: slice, precision: str) -> None:
    linear, x = random_linear(24, 60), torch.randn(9, 24)

    found = prepared_linear(linear, precision, outputs)(x)

    wanted = linear(x)[:, outputs]
    assert_close(found, wanted, rtol=0, atol=tolerance(precision, x, linear.weight))


@pytest.mark.parametrize("rows", [1, 5])
def test_processor_without_onednn_multiplies_as_well(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_has_onednn", lambda device: False)
    monkeypatch.setattr(module, "_likes_columns", lambda device: False)
    weight, bias, x = torch.randn(30, 20), torch.randn(30), torch.randn(rows, 20)
    wanted = F.linear(x, weight, bias)

    for precision in ("fp32", "bf16"):
        found = linear_of(weight, bias, precision)(x)
        assert_close(found, wanted, rtol=0, atol=tolerance(precision, x, weight))


@every_size
def test_matrix_by_columns_has_the_same_values(inputs: int, outputs: int) -> None:
    weight = torch.randn(outputs, inputs)

    stored = by_columns(weight)

    assert torch.equal(stored, weight)
    assert stored.stride(0) == 1
    assert stored.stride(1) > outputs or inputs == 1


def test_matrix_is_stored_by_columns_once() -> None:
    linear = random_linear(32, 64)

    first, second = (prepared_linear(linear, "fp32", slice(n)) for n in (10, 20))
    place = linear.weight.data_ptr()
    prepared_linear(linear, "fp32")

    assert linear.weight.data_ptr() == place
    x = torch.randn(3, 32)
    assert_close(first(x), second(x)[:, :10])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@every_shape
@pytest.mark.usefixtures("likes_columns")
def test_weights_of_a_prepared_model_keep_their_values(
    shape: dict[str, object], precision: str
) -> None:
    model = model_of(shape)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    prepared = PreparedTransformer(model, precision)
    source, keep = source_of(4, 2)
    with torch.inference_mode():
        prepared.step(torch.tensor([5, 6]), prepared.start(source, keep))

    after = {name: value.contiguous() for name, value in model.state_dict().items()}
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
        assert after[name].is_contiguous()


@torch.inference_mode()
@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
@pytest.mark.usefixtures("likes_columns")
def test_whole_search_finds_the_same_on_any_processor(
    shape: dict[str, object], beam_size: int
) -> None:
    model = model_of(shape)
    source, keep = source_of(4, 9, 2)

    def search(searched: StepModel[StateT]) -> list[list[Hypothesis]]:
        return beam_search(
            searched, source, keep, limits=[9, 4, 12], start_id=START, eos_id=EOS,
            banned_ids=(0, 1), beam_size=beam_size,
        )  # fmt: skip

    wanted, found = search(model), search(PreparedTransformer(model))

    assert [each[0].ids for each in found] == [each[0].ids for each in wanted]
