import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.training.rank_checks import checksums


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
@settings(deadline=None)  # other processes may have the core meanwhile
@given(place=st.integers(0, 11), bit=st.integers(0, 63))
def test_any_single_bit_changes_the_checksum(dtype: torch.dtype, place: int, bit: int) -> None:
    tensor = torch.arange(12).to(dtype).reshape(3, 4)
    bits = 8 * tensor.element_size()
    whole = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]
    other = tensor.clone()
    mask = torch.tensor(1, dtype=torch.int64).bitwise_left_shift(bit % bits).to(whole)
    other.view(whole).flatten()[place] ^= mask

    found = checksums({"a": tensor, "b": other, "c": tensor.clone()})

    assert found["a"] == found["c"] != found["b"]


def test_not_a_number_and_zeros_of_both_signs_have_checksums() -> None:
    zero, minus, nan = (torch.tensor([x]) for x in (0.0, -0.0, float("nan")))

    found = checksums({"zero": zero, "minus": minus, "nan": nan})

    assert len(set(found.values())) == 3
    assert checksums({}) == {}


def test_tensor_that_is_a_view_counts_by_its_values() -> None:
    tensor = torch.randn(4, 6)

    assert checksums({"x": tensor.T}) == checksums({"x": tensor.T.contiguous()})
