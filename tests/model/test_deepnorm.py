import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.model.deepnorm import deepnorm, post_norm_weights
from tfm_cli.model.dropout import Noise
from tfm_cli.model.layers import AddAndNorm
from tfm_cli.model.transformer import Transformer

VOCAB = 30


def model(norm: str, *, activation: str = "relu", layers: tuple[int, int] = (5, 3)) -> Transformer:
    torch.manual_seed(1)
    return transformer_of(
        VOCAB, encoder_layers=layers[0], decoder_layers=layers[1], width=32, heads=2,
        feed_forward_width=48, norm=norm, activation=activation, dropout=0.0,
    )  # fmt: skip


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("encoder", "decoder"), [(1, 1), (6, 6), (12, 6), (100, 18)])
def test_constants_are_those_of_the_paper(encoder: int, decoder: int) -> None:
    first, second = deepnorm(encoder, decoder)

    # Wang et al. 2022, figure 2, by logarithms.
    depth = (4 * math.log(encoder) + math.log(decoder)) / 16
    assert first.alpha == pytest.approx(math.exp(math.log(0.81) + depth))
    assert first.beta == pytest.approx(math.exp(math.log(0.87) - depth))
    assert second.alpha**4 == pytest.approx(3 * decoder)
    assert second.beta**-4 == pytest.approx(12 * decoder)


def test_norm_is_that_of_the_paper_but_for_the_constant_beside_the_variance() -> None:
    alpha = 2.5
    module = AddAndNorm(8, "deepnorm", 0.0, Noise(), alpha=alpha).double()
    module.norm.weight.data, module.norm.bias.data = draw(8, seed=2), draw(8, seed=3)
    x, sublayer = draw(4, 8), draw(4, 8, seed=4)

    result = module.leave(x, sublayer)

    total = alpha * x + sublayer
    off = total - total.mean(dim=-1, keepdim=True)
    variance = off.square().mean(dim=-1, keepdim=True)
    expected = off / (variance + 1e-5 * alpha**2).sqrt()
    # Double arithmetic in another order.
    assert_close(result, expected * module.norm.weight + module.norm.bias, rtol=0, atol=1e-12)
    assert torch.equal(module.enter(x), x)


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_post_norm_weights_compute_the_same(activation: str) -> None:
    deep = model("deepnorm", activation=activation).double()
    for number, parameter in enumerate(deep.parameters()):
        parameter.data += draw(*parameter.shape, seed=number) / 10
    post = model("post", activation=activation).double()
    post.load_state_dict(post_norm_weights(deep.state_dict(), 5, 3))
    source, target = torch.randint(VOCAB, (2, 3, 7), generator=torch.Generator().manual_seed(1))

    result = post(source, None, target)

    assert_close(result, deep(source, None, target), rtol=0, atol=1e-10)
    other = model("post", activation=activation).double()
    other.load_state_dict(deep.state_dict())
    assert not torch.allclose(other(source, None, target), result, atol=1e-3)


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_initial_matrices_have_the_gains_of_the_paper(activation: str) -> None:
    deep = model("deepnorm", activation=activation)
    constants = dict(zip(("encoder", "decoder"), deepnorm(5, 3), strict=True))

    found = 0
    for name, parameter in deep.named_parameters():
        if parameter.ndim < 2 or "layers" not in name:
            continue
        beta = constants[name.partition("_")[0]].beta
        gains = [beta]
        if "projection" in name:
            gains = [1.0, 1.0, beta]
        elif "inner" in name and activation == "swiglu":
            gains = [1.0, beta]
        for matrix, gain in zip(parameter.detach().chunk(len(gains)), gains, strict=True):
            bound = gain * math.sqrt(6 / sum(matrix.shape))
            # The largest of over 1000 uniform numbers is within 2 % of the bound.
            assert 0.98 * bound < float(matrix.abs().max()) <= bound, name
            found += 1
    assert found == 5 * (4 + 2) + 3 * (8 + 2) + (8 if activation == "swiglu" else 0)


def copy_losses(norm: str, *, updates: int, rate: float) -> list[float]:
    """Return the loss of each update on lines to copy, without a warm-up."""
    torch.manual_seed(1)
    deep = transformer_of(
        16, encoder_layers=36, decoder_layers=18, width=32, heads=2, feed_forward_width=64,
        norm=norm, dropout=0.0,
    )  # fmt: skip
    optimizer = torch.optim.Adam(deep.parameters(), lr=rate, betas=(0.9, 0.98), eps=1e-9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(updates):
        source = torch.randint(4, 16, (32, 8), generator=generator)
        target = torch.cat([torch.full((32, 1), 2), source[:, :-1]], dim=1)
        logits = deep(source, None, target)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), source.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(deep.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_stacks_of_36_and_18_layers_learn_without_a_warmup_where_post_norm_stalls() -> None:
    guess = math.log(12)  # the entropy of the tokens

    deep = copy_losses("deepnorm", updates=150, rate=3e-3)
    post = copy_losses("post", updates=150, rate=3e-3)

    assert sum(deep[-10:]) / 10 < guess - 0.2
    assert sum(post[-10:]) / 10 > guess - 0.02
