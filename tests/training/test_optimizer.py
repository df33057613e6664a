import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.training.optimizer import MovingAverage, make_optimizer


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, 3)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


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
