import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tfm_cli.model.attention import causal_mask
from tfm_cli.model.dropout import Noise
from tfm_cli.model.layers import AddAndNorm, DecoderLayer, EncoderLayer, FeedForward, LayerShape

every_norm = pytest.mark.parametrize("norm", ["post", "pre"])
every_activation = pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])

WIDTH, INNER = 8, 12


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def feed_forward(activation: str) -> FeedForward:
    torch.manual_seed(1)
    return FeedForward(WIDTH, INNER, activation).double()


def add_and_norm(norm: str, *, dropout: float = 0.0) -> AddAndNorm:
    """With a gain and a shift that are not those of a new layer."""
    module = AddAndNorm(WIDTH, norm, dropout, Noise()).double()
    module.norm.weight.data = 1 + draw(WIDTH, seed=2) / 4
    module.norm.bias.data = draw(WIDTH, seed=3)
    return module


def layer_norm(x: Tensor, module: AddAndNorm) -> Tensor:
    """Ba et al. 2016, written out."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * module.norm.weight + module.norm.bias


def test_layer_norm_normalizes_each_item_by_itself() -> None:
    module = AddAndNorm(WIDTH, "post", 0.0, Noise()).double()
    x = draw(3, 5, WIDTH) * draw(3, 5, 1, seed=2).exp() + draw(3, 5, 1, seed=3)

    normed = module.leave(x, torch.zeros_like(x))

    assert_close(normed.mean(dim=-1), torch.zeros(3, 5).double(), rtol=0, atol=1e-13)
    variance = x.var(dim=-1, correction=0)
    # The guard of 1e-5 beside the variance is all that keeps it from 1.
    expected = variance / (variance + 1e-5)
    assert_close(normed.var(dim=-1, correction=0), expected, rtol=1e-12, atol=0)
    for row in range(3):
        for column in range(5):
            item = x[row, column]
            alone = module.leave(item, torch.zeros_like(item))
            # Double arithmetic; a kernel for one row may add in another order.
            assert_close(alone, normed[row, column], rtol=0, atol=1e-13)


def test_changing_one_item_leaves_the_others_as_they_were() -> None:
    module = add_and_norm("post")
    x = draw(2, 3, WIDTH)
    changed = x.clone()
    changed[0, 1] *= 100

    before, after = module.leave(x, x), module.leave(changed, changed)

    same = torch.ones(2, 3, dtype=torch.bool)
    same[0, 1] = False
    assert torch.equal(before[same], after[same])


def test_post_norm_normalizes_the_sum() -> None:
    module, x, sublayer = add_and_norm("post"), draw(2, 3, WIDTH), draw(2, 3, WIDTH, seed=4)

    assert torch.equal(module.enter(x), x)
    # Double arithmetic in another order.
    assert_close(module.leave(x, sublayer), layer_norm(x + sublayer, module), rtol=0, atol=1e-12)


def test_pre_norm_normalizes_what_the_sublayer_sees_and_nothing_else() -> None:
    module, x, sublayer = add_and_norm("pre"), draw(2, 3, WIDTH), draw(2, 3, WIDTH, seed=4)

    assert_close(module.enter(x), layer_norm(x, module), rtol=0, atol=1e-12)  # as above
    assert torch.equal(module.leave(x, sublayer), x + sublayer)


def test_dropout_is_on_the_sublayer_not_on_the_residual() -> None:
    module = add_and_norm("pre", dropout=0.5).train()
    x, sublayer = draw(20, 30, WIDTH), torch.ones(20, 30, WIDTH, dtype=torch.float64)

    added = module.leave(x, sublayer) - x

    # What was added is 0 or 1 / (1 - 0.5), up to the rounding of the sum.
    assert_close(added, added.round(), rtol=0, atol=1e-14)
    assert set(added.round().flatten().tolist()) == {0.0, 2.0}


def test_relu_feed_forward_equals_its_formula() -> None:
    module, x = feed_forward("relu"), draw(2, 3, WIDTH)

    inner = (x @ module.inner.weight.T + module.inner.bias).clamp(min=0)

    expected = inner @ module.outer.weight.T + module.outer.bias
    assert_close(module(x), expected, rtol=0, atol=1e-14)  # doubles, in another order


def test_gelu_feed_forward_equals_its_formula() -> None:
    module, x = feed_forward("gelu"), draw(2, 3, WIDTH)

    inner = x @ module.inner.weight.T + module.inner.bias
    inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2  # x times the normal distribution

    expected = inner @ module.outer.weight.T + module.outer.bias
    assert_close(module(x), expected, rtol=0, atol=1e-14)  # doubles, in another order


def test_swish_feed_forward_equals_its_formula() -> None:
    feed_forward = FeedForward(4, 6, "swish").double()
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).double()

    inner = x @ feed_forward.inner.weight.T + feed_forward.inner.bias
    expected = (inner / (1 + torch.exp(-inner))) @ feed_forward.outer.weight.T

    assert_close(feed_forward(x), expected + feed_forward.outer.bias)


def test_swiglu_feed_forward_equals_its_formula() -> None:
    module, x = feed_forward("swiglu"), draw(2, 3, WIDTH)

    gate = x @ module.inner.weight[:INNER].T + module.inner.bias[:INNER]
    inner = x @ module.inner.weight[INNER:].T + module.inner.bias[INNER:]
    inner = gate / (1 + (-gate).exp()) * inner

    expected = inner @ module.outer.weight.T + module.outer.bias
    assert_close(module(x), expected, rtol=0, atol=1e-14)  # doubles, in another order


@every_activation
def test_feed_forward_sees_each_position_by_itself(activation: str) -> None:
    module, x = feed_forward(activation), draw(2, 3, WIDTH)

    whole = module(x)

    for row in range(2):
        for column in range(3):
            # Doubles; a product of one row may be summed in another order.
            assert_close(module(x[row, column]), whole[row, column], rtol=0, atol=1e-14)


@every_norm
@every_activation
def test_encoder_layer_is_attention_then_feed_forward_each_in_add_and_norm(
    norm: str, activation: str
) -> None:
    torch.manual_seed(1)
    layer = EncoderLayer(shape_of(norm, activation), None, Noise()).double()
    layer.self_attention_norm, layer.feed_forward_norm = add_and_norm(norm), add_and_norm(norm)
    first, second = layer.self_attention_norm, layer.feed_forward_norm
    x, keep = draw(2, 3, WIDTH), torch.tensor([[True] * 3, [True, False, False]])[:, None, None]

    def attend(y: Tensor) -> Tensor:
        return layer.self_attention.attend(*layer.self_attention.project(y), keep)

    if norm == "post":
        middle = layer_norm(x + attend(x), first)
        expected = layer_norm(middle + layer.feed_forward(middle), second)
    else:
        middle = x + attend(layer_norm(x, first))
        expected = middle + layer.feed_forward(layer_norm(middle, second))

    assert_close(layer(x, keep), expected, rtol=0, atol=1e-12)  # doubles, in another order


def shape_of(norm: str, activation: str = "relu") -> LayerShape:
    return LayerShape(
        width=WIDTH,
        heads=2,
        feed_forward_width=INNER,
        dropout=0.0,
        norm=norm,
        activation=activation,
    )


@every_norm
def test_decoder_layer_attends_to_itself_then_to_the_memory(norm: str) -> None:
    torch.manual_seed(1)
    layer = DecoderLayer(shape_of(norm), None, Noise()).double()
    norms = [add_and_norm(norm) for _ in range(3)]
    layer.self_attention_norm, layer.cross_attention_norm, layer.feed_forward_norm = norms
    x, memory, causal = draw(2, 3, WIDTH), draw(2, 4, WIDTH, seed=5), causal_mask(3)
    keep = torch.tensor([[True] * 4, [True, True, False, False]])[:, None, None]

    def attend_to_self(y: Tensor) -> Tensor:
        return layer.self_attention.attend(*layer.self_attention.project(y), causal)

    def attend_to_memory(y: Tensor) -> Tensor:
        query = layer.cross_attention.project_query(y)
        return layer.cross_attention.attend(
            query, *layer.cross_attention.project_memory(memory), keep
        )

    expected = x
    sublayers: tuple[Callable[[Tensor], Tensor], ...] = (
        attend_to_self,
        attend_to_memory,
        layer.feed_forward,
    )
    for sublayer, module in zip(sublayers, norms, strict=True):
        if norm == "post":
            expected = layer_norm(expected + sublayer(expected), module)
        else:  # the memory is normalized already, by the encoder
            expected = expected + sublayer(layer_norm(expected, module))

    actual = layer(x, memory, keep, causal)
    assert_close(actual, expected, rtol=0, atol=1e-12)  # doubles, in another order
