import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.config.presets import PRESETS
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.training.optimizer import MovingAverage, learning_rate, make_optimizer

widths = st.integers(2, 4096)
warmups = st.integers(1, 20_000)


def paper_rate(update: int, *, width: int, warmup: int) -> float:
    """Vaswani et al. 2017, equation 3."""
    return float(width**-0.5 * min(update**-0.5, update * warmup**-1.5))


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, 3)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@settings(deadline=None)
@given(width=widths, warmup=warmups, update=st.integers(1, 300_000))
def test_rate_equals_the_papers_formula_everywhere(width: int, warmup: int, update: int) -> None:
    result = learning_rate(update, peak=width**-0.5 * warmup**-0.5, warmup=warmup)

    # Powers and roots in double, in another order.
    assert result == pytest.approx(paper_rate(update, width=width, warmup=warmup), rel=1e-12)


@settings(deadline=None)
@given(warmup=warmups)
def test_the_peak_is_at_the_end_of_warmup_and_nowhere_else(warmup: int) -> None:
    assert learning_rate(warmup, peak=0.3, warmup=warmup) == 0.3
    assert learning_rate(warmup + 1, peak=0.3, warmup=warmup) < 0.3
    assert warmup == 1 or learning_rate(warmup - 1, peak=0.3, warmup=warmup) < 0.3


@settings(deadline=None)
@given(warmup=st.integers(100, 20_000))
def test_the_rate_is_continuous_where_rise_meets_fall(warmup: int) -> None:
    before, at, after = (
        learning_rate(warmup + step, peak=1.0, warmup=warmup) for step in (-1, 0, 1)
    )

    # The rise is 1 / warm-up an update, the fall begins with half of that.
    assert at - before == pytest.approx(1 / warmup, rel=1e-9)
    assert at - after == pytest.approx(0.5 / warmup, rel=0.01)


def test_the_rate_rises_then_falls() -> None:
    rates = [learning_rate(update, peak=1.0, warmup=50) for update in range(1, 400)]

    assert rates[:50] == sorted(rates[:50])
    assert rates[49:] == sorted(rates[49:], reverse=True)
    assert rates[0] == pytest.approx(1 / 50)
    assert rates[199] == pytest.approx(1 / 2)  # four times the warm-up: half the peak


@pytest.mark.parametrize(("preset", "width"), [("base", 512), ("big", 1024)])
def test_presets_of_the_paper_peak_at_the_papers_rate(preset: str, width: int) -> None:
    peak = PRESETS[preset]["training"]["learn_rate"]

    assert isinstance(peak, float)
    result = learning_rate(4000, peak=peak, warmup=TrainingConfig().lr_warmup)
    assert result == pytest.approx(width**-0.5 * 4000**-0.5, rel=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_equal_adams_formula(weight_decay: float) -> None:
    config = TrainingConfig(
        learn_rate=0.01, weight_decay=weight_decay,
        adam_beta1=0.9, adam_beta2=0.98, adam_epsilon=1e-3,
    )  # fmt: skip
    model = linear().double()
    optimizer = make_optimizer(model, config)
    expected = weights(model)
    mean = {name: torch.zeros_like(p) for name, p in expected.items()}
    square = {name: torch.zeros_like(p) for name, p in expected.items()}

    for update in (1, 2, 3):
        for number, (name, parameter) in enumerate(model.named_parameters()):
            gradient = draw(*parameter.shape, seed=10 * update + number).double()
            parameter.grad = gradient
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.98 * square[name] + 0.02 * gradient**2
            unbiased_mean = mean[name] / (1 - 0.9**update)
            unbiased_square = square[name] / (1 - 0.98**update)
            if name == "weight":  # the bias does not decay
                expected[name] = expected[name] * (1 - 0.01 * weight_decay)
            expected[name] = expected[name] - 0.01 * unbiased_mean / (unbiased_square.sqrt() + 1e-3)
        optimizer.step()

        for name, parameter in model.named_parameters():
            # Double arithmetic in another order.
            assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-13)


@pytest.mark.parametrize("tied", [0, 2, 3])
def test_every_parameter_is_optimized_once_and_only_matrices_decay(tied: int) -> None:
    model = transformer_of(
        20, encoder_layers=1, decoder_layers=1, width=8, heads=2, feed_forward_width=16,
        tied_embeddings=tied,
    )  # fmt: skip
    optimizer = make_optimizer(model, TrainingConfig(weight_decay=0.1))

    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}

    result = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert sorted(result) == sorted(id(parameter) for parameter in model.parameters())
    assert {parameter.ndim for parameter in groups[0.1]} == {2}
    assert {parameter.ndim for parameter in groups[0.0]} == {1}


def test_frozen_parameters_are_left_out() -> None:
    model = linear()
    model.bias.requires_grad_(False)

    optimizer = make_optimizer(model, TrainingConfig())

    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]


def test_average_follows_its_formula() -> None:
    model = linear().double()
    average = MovingAverage(model, 0.5)
    expected = weights(model)

    for update in range(1, 21):
        for parameter in model.parameters():
            parameter.data += draw(*parameter.shape, seed=update)
        average.include(update)

        keep = min(0.5, (1 + update) / (10 + update))
        for name, parameter in model.named_parameters():
            expected[name] = keep * expected[name] + (1 - keep) * parameter.detach()
            # Double arithmetic in another order.
            assert_close(average.weights[name], expected[name], rtol=0, atol=1e-12)
    assert keep == 0.5  # both sides of the minimum were met: (1 + 1) / (10 + 1) is less


def test_average_starts_as_a_copy_of_the_weights() -> None:
    model = linear()
    average = MovingAverage(model, 0.9)
    before = weights(model)

    model.weight.data += 1

    assert torch.equal(average.weights["weight"], before["weight"])


def test_average_is_swapped_in_and_out_to_the_bit() -> None:
    model = linear()
    average = MovingAverage(model, 0.9)
    model.weight.data.copy_(draw(3, 5) * 1e-30)
    model.bias.data.copy_(torch.tensor([math.nan, -0.0, math.inf]))
    own, averaged = weights(model), {name: w.clone() for name, w in average.weights.items()}
    parameters = list(model.parameters())

    with average.in_place():
        inside = weights(model)
        output = model(torch.ones(5))

    assert all(torch.equal(inside[name], averaged[name]) for name in averaged)
    assert torch.equal(output, nn.functional.linear(torch.ones(5), *averaged.values()))
    for name, parameter in model.named_parameters():
        bits = parameter.detach().view(torch.int32)
        assert torch.equal(bits, own[name].view(torch.int32))
        assert torch.equal(average.weights[name], averaged[name])
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_own_weights_come_back_when_a_validation_fails() -> None:
    model = linear()
    average = MovingAverage(model, 0.9)
    model.weight.data += 1
    own = weights(model)

    with pytest.raises(KeyError), average.in_place():
        raise KeyError

    assert torch.equal(model.weight, own["weight"])


def test_training_continues_as_if_the_average_had_never_been_swapped_in() -> None:
    def trained(*, looks: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = linear()
        average, optimizer = MovingAverage(model, 0.9), make_optimizer(model, TrainingConfig())
        for update in (1, 2, 3):
            model(draw(4, 5, seed=update)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            average.include(update)
            if looks:
                with average.in_place():
                    model(torch.ones(5))
        return weights(model), average.weights

    for looked, never in zip(trained(looks=True), trained(looks=False), strict=True):
        assert all(torch.equal(looked[name], never[name]) for name in never)


def test_decay_zero_keeps_no_average() -> None:
    model = linear()
    average = MovingAverage(model, 0.0)
    model.weight.data += 1
    own = weights(model)

    average.include(1)

    assert average.weights == {}
    with average.in_place():
        assert torch.equal(model.weight, own["weight"])
    assert torch.equal(model.weight, own["weight"])
