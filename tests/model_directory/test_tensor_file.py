"""What is written is, byte for byte, what the safetensors library writes."""

import hashlib
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from tfm_cli.model_directory.weights import write_tensors

_TYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def written(tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> tuple[bytes, str]:
    stream = io.BytesIO()
    sha256 = write_tensors(stream, tensors, metadata)
    return stream.getvalue(), sha256


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(_TYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=6,
    ),
    st.one_of(st.none(), st.tuples(st.text(max_size=20))),
)
def test_bytes_are_those_of_the_library(
    shapes: dict[str, tuple[torch.dtype, list[int]]], words: tuple[str] | None
) -> None:
    tensors = {
        name: torch.arange(torch.Size(shape).numel()).to(dtype).reshape(shape)
        for name, (dtype, shape) in shapes.items()
    }
    metadata = None if words is None else {"tfm": words[0]}

    content, sha256 = written(tensors, metadata)

    assert content == save(tensors, metadata)
    assert sha256 == hashlib.sha256(content).hexdigest()


def test_types_are_in_the_order_of_the_library() -> None:
    tensors = {f"{index}": torch.ones(3).to(dtype) for index, dtype in enumerate(_TYPES)}

    assert written(tensors, None)[0] == save(tensors)


@pytest.mark.parametrize("dtype", _TYPES)
def test_what_is_read_is_what_was_written(dtype: torch.dtype) -> None:
    tensors = {"b": torch.tensor([[0, 1, 0]]).to(dtype), "a": torch.tensor(1).to(dtype)}

    content, _ = written(tensors, None)

    result = load(content)
    assert result.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(result[name], tensor, rtol=0, atol=0)


def test_single_number_of_any_stride_is_written() -> None:
    tensors = {"one": torch.tensor(7, dtype=torch.int32).expand(1)}
    assert tensors["one"].stride() == (0,)

    assert written(tensors, None)[0] == save(tensors)
