from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.corpus.batch import make_batch
from tfm_cli.model.linear import Linear, linear, round_down_rows, round_up_rows
from tfm_cli.model.transformer import Transformer
from tfm_cli.training.parallel_model import batch_loss

BF16 = torch.bfloat16


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch has no types there
    """Notes the sizes of all products in bf16."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if any(word in name for word in ("mm.", "bmm.", "mv.", "matmul", "linear")):
            tensors = [each for each in args if isinstance(each, Tensor) and each.dtype == BF16]
            if tensors:
                self.found.add((name, *(tuple(each.shape) for each in tensors)))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def small() -> Transformer:
    torch.manual_seed(1)
    return transformer_of(
        60, width=16, heads=2, feed_forward_width=32, encoder_layers=1, decoder_layers=1,
        dropout=0.0,
    )  # fmt: skip


def batches(count: int) -> Iterator[Any]:
    """Batches each of which has another number of pairs and other lengths."""
    draw = torch.Generator().manual_seed(3)
    for _ in range(count):
        pairs, source, target = torch.randint(20, 40, (3,), generator=draw).tolist()
        yield make_batch(
            [[5] * source for _ in range(pairs)], [[6] * target for _ in range(pairs)],
            start_id=2, eos_id=3,
        )  # fmt: skip


def test_there_are_few_numbers_of_rows() -> None:
    numbers = {round_up_rows(count) for count in range(1, 4097)}

    assert len(numbers) <= 28
    assert all(
        count <= round_up_rows(count) <= max(16, 1.25 * count + 16) for count in range(1, 4097)
    )
    assert {round_up_rows(number) for number in numbers} == numbers
    assert all(round_down_rows(count) in numbers for count in range(16, 4097))
    assert all(round_down_rows(count) <= count for count in range(16, 4097))


def test_products_of_many_batches_have_few_sizes(small: Transformer) -> None:
    with Sizes() as sizes:
        for batch in batches(40):
            with torch.autocast("cpu", dtype=BF16):
                loss, _ = batch_loss(small, batch, label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]

    # 6 numbers of rows between 400 and 1,600, and for each as many products as the model has.
    assert 0 < len(sizes.found) <= 140


@pytest.mark.parametrize("shape", [(7, 16), (5, 9, 16), (1, 1, 16), (300, 16)])
def test_padding_changes_neither_result_nor_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    layer = Linear(16, 24)
    x = torch.randn(shape, requires_grad=True)
    with torch.autocast("cpu", dtype=BF16):
        expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    inputs = (x, layer.weight, layer.bias)
    wanted_gradients = torch.autograd.grad(expected.float().square().sum(), inputs)

    with torch.autocast("cpu", dtype=BF16):
        actual = layer(x)
    gradients = torch.autograd.grad(actual.float().square().sum(), inputs)

    assert actual.dtype == BF16
    # Rounding to bf16 after sums in another order: a last place of its eight bits.
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=2**-7)
    for each, other in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(each, other, rtol=2**-6, atol=2**-4)


def test_in_single_precision_it_is_the_linear_map_of_pytorch_to_the_bit() -> None:
    torch.manual_seed(1)
    layer = Linear(16, 24)
    x = torch.randn(5, 9, 16)

    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert torch.equal(linear(x, layer.weight), torch.nn.functional.linear(x, layer.weight))


def test_loss_and_gradients_in_bf16_are_near_those_in_single_precision(small: Transformer) -> None:
    def actual(dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        small.zero_grad()
        batch = next(batches(1))
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == BF16):
            loss, nll = batch_loss(small, batch, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {n: p.grad.clone() for n, p in small.named_parameters() if p.grad is not None}
        return nll / batch.target_tokens, gradients

    expected, wanted_gradients = actual(torch.float32)
    near, gradients = actual(BF16)

    torch.testing.assert_close(near, expected, rtol=1e-3, atol=0)
    total = sum(float(each.square().sum()) for each in wanted_gradients.values()) ** 0.5
    off = sum(
        float((gradients[name] - each).square().sum()) for name, each in wanted_gradients.items()
    )
    assert off**0.5 < 0.03 * total
