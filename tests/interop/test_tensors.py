import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tfm_cli.config.settings import ModelConfig
from tfm_cli.errors import ModelError
from tfm_cli.interop.tensors import ForeignTensor, assemble, raise_if_any, required_tensors

REQUIRED = [
    ForeignTensor("a.q", (2, 3), "a", 0),
    ForeignTensor("a.k", (3, 2), "a", 1, transposed=True),
    ForeignTensor("b", (1, 4), "b", 0, as_row=True),
]


def tensors() -> dict[str, Tensor]:
    return {
        "a.q": torch.arange(6.0).reshape(2, 3),
        "a.k": torch.arange(6.0, 12.0).reshape(2, 3).T,
        "b": torch.arange(4.0)[None],
    }


def put_together(
    stored: dict[str, Tensor], *, ignored: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    return assemble(REQUIRED, shapes, stored.__getitem__, source="the file", ignored=ignored)


def test_parts_are_joined_in_their_order() -> None:
    weights, notes = put_together(tensors())

    assert notes == ()
    assert_close(weights["a"], torch.arange(12.0).reshape(4, 3), rtol=0, atol=0)
    assert_close(weights["b"], torch.arange(4.0), rtol=0, atol=0)


def test_ignored_tensors_may_be_present() -> None:
    weights, _ = put_together({**tensors(), "c": torch.ones(1)}, ignored=("c", "d"))

    assert set(weights) == {"a", "b"}


def test_all_differences_are_listed() -> None:
    stored = {**tensors(), "c": torch.ones(1), "b": torch.ones(4, 1)}
    del stored["a.q"]

    with pytest.raises(ModelError) as caught:
        put_together(stored)

    assert str(caught.value) == (
        "the file: its tensors do not match its configuration\n"
        "  a.q: missing\n"
        "  c: unknown\n"
        "  b: has shape (4, 1), expected (1, 4)"
    )


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_refused(number: float) -> None:
    stored = tensors()
    stored["b"][0, 2] = number

    with pytest.raises(ModelError, match="b: has values that are not finite numbers"):
        put_together(stored)


def test_double_beyond_fp32_is_refused() -> None:
    stored = tensors()
    stored["b"] = torch.full((1, 4), 1e300, dtype=torch.float64)

    with pytest.raises(ModelError, match="b: has values that are not finite numbers"):
        put_together(stored)


def test_integer_weights_are_refused() -> None:
    stored = tensors()
    stored["b"] = torch.ones(1, 4, dtype=torch.int8)

    with pytest.raises(ModelError, match="b: has type int8, expected float32"):
        put_together(stored)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_to_fp32_with_a_note(dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in tensors().items()}

    weights, notes = put_together(stored)

    assert_close(weights["a"], torch.arange(12.0).reshape(4, 3), rtol=0, atol=0)
    assert notes == (f"weights stored as {str(dtype)[6:]} are kept as float32",)


def test_only_the_first_problems_are_listed() -> None:
    with pytest.raises(ModelError) as caught:
        raise_if_any([f"problem {number}" for number in range(11)], "the title", hint="mend it")

    lines = str(caught.value).split("\n")
    assert (lines[0], lines[8], lines[9]) == ("the title", "  problem 7", "  … and 3 more")
    assert (len(lines), caught.value.hint) == (10, "mend it")


def test_no_problem_is_no_error() -> None:
    raise_if_any([], "the title")


def test_required_parts_have_their_share_of_the_rows() -> None:
    config = ModelConfig(width=16, heads=2, feed_forward_width=24)

    required = required_tensors(config, (30, 30), lambda name: f"{name.tfm}/{name.part}")

    shapes = {item.name: item.shape for item in required}
    assert shapes["encoder_layers.0.self_attention.projection.weight/2"] == (16, 16)
    assert shapes["decoder_layers.5.feed_forward.inner.bias/0"] == (24,)
    assert shapes["target_embedding.weight/0"] == (30, 16)
