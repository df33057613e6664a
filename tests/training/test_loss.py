import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tfm_cli.training import loss as loss_module
from tfm_cli.training.loss import cross_entropy

PIECES, WIDTH, VOCAB = 10, 6, 17

every_smoothing = pytest.mark.parametrize("smoothing", [0.0, 0.1])
# Logits of a chunk: all pieces at once; 3, 3, 3 and 1; 5 and 5; one by one, though not one fits.
every_chunk = pytest.mark.parametrize("chunk_logits", [1 << 21, 3 * VOCAB, 5 * VOCAB + 16, 4])


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hidden_weight_targets() -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.randint(VOCAB, (PIECES,), generator=torch.Generator().manual_seed(3))
    hidden, weight = draw(PIECES, WIDTH, seed=1), draw(VOCAB, WIDTH, seed=2)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def torch_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")


@every_smoothing
@every_chunk
def test_loss_and_both_gradients_equal_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, chunk_logits: int
) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK_LOGITS", chunk_logits)
    monkeypatch.setattr(loss_module, "_MIN_ROWS", 1)
    hidden, weight, targets = hidden_weight_targets()

    loss, _ = cross_entropy(hidden, weight, targets, label_smoothing=smoothing)
    actual = torch.autograd.grad(loss, (hidden, weight))

    expected = torch_loss(hidden, weight, targets, smoothing)
    # Single precision, sums of 10 losses or 10 to 17 products in another order.
    assert_close(loss, expected, rtol=1e-6, atol=0)
    assert_close(actual, torch.autograd.grad(expected, (hidden, weight)), rtol=0, atol=3e-6)


@every_smoothing
@every_chunk
def test_loss_and_all_gradients_with_a_bias_equal_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, chunk_logits: int
) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK_LOGITS", chunk_logits)
    monkeypatch.setattr(loss_module, "_MIN_ROWS", 1)
    hidden, weight, targets = (x.detach().double() for x in hidden_weight_targets())
    parameters = hidden, weight, draw(VOCAB, seed=4).double()
    targets = targets.long()
    for parameter in parameters:
        parameter.requires_grad_()

    loss, nll = cross_entropy(
        hidden, weight, targets, label_smoothing=smoothing, bias=parameters[2]
    )
    actual = torch.autograd.grad(loss, parameters)

    logits = F.linear(*parameters)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    # The sums are kept in single precision.
    assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert_close(nll.double(), F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-6, atol=0)
    assert_close(actual, torch.autograd.grad(expected, parameters), rtol=0, atol=3e-6)


@every_smoothing
@every_chunk
def test_negative_log_likelihood_is_that_of_the_targets_without_smoothing(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, chunk_logits: int
) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK_LOGITS", chunk_logits)
    monkeypatch.setattr(loss_module, "_MIN_ROWS", 1)
    hidden, weight, targets = hidden_weight_targets()

    _, nll = cross_entropy(hidden, weight, targets, label_smoothing=smoothing)

    log_probs = F.linear(hidden, weight).log_softmax(dim=1)
    expected = -sum(log_probs[row, targets[row]] for row in range(PIECES))
    assert not nll.requires_grad
    assert_close(nll, expected, rtol=1e-6, atol=0)  # single precision, as above


def test_without_smoothing_the_loss_is_the_negative_log_likelihood() -> None:
    loss, nll = cross_entropy(*hidden_weight_targets(), label_smoothing=0.0)

    assert torch.equal(loss, nll)


def test_smoothing_pulls_equally_towards_every_token() -> None:
    hidden, weight, targets = hidden_weight_targets()

    loss, _ = cross_entropy(hidden, weight, targets, label_smoothing=0.2)

    distribution = torch.full((PIECES, VOCAB), 0.2 / VOCAB)
    distribution[torch.arange(PIECES), targets] += 0.8
    expected = -(distribution * F.linear(hidden, weight).log_softmax(dim=1)).sum()
    assert_close(loss, expected, rtol=1e-6, atol=0)  # single precision, as above


def test_the_loss_of_two_parts_adds_up_to_that_of_the_whole() -> None:
    hidden, weight, targets = hidden_weight_targets()

    whole, _ = cross_entropy(hidden, weight, targets, label_smoothing=0.1)

    parts = [
        cross_entropy(hidden[part], weight, targets[part], label_smoothing=0.1)[0]
        for part in (slice(0, 3), slice(3, None))
    ]
    assert_close(parts[0] + parts[1], whole, rtol=1e-6, atol=0)  # single precision, as above


def test_a_scaled_loss_has_scaled_gradients() -> None:
    hidden, weight, targets = hidden_weight_targets()

    loss, _ = cross_entropy(hidden, weight, targets, label_smoothing=0.1)
    plain = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    scaled = torch.autograd.grad(loss / 8, (hidden, weight))

    # Exactly: 8 is a power of two.
    assert torch.equal(scaled[0], plain[0] / 8)
    assert torch.equal(scaled[1], plain[1] / 8)


@pytest.mark.parametrize("wants", ["hidden", "weight"])
def test_one_side_can_be_learned_without_the_other(wants: str) -> None:
    hidden, weight, targets = hidden_weight_targets()
    (weight if wants == "hidden" else hidden).requires_grad_(False)
    wanted = hidden if wants == "hidden" else weight

    loss, _ = cross_entropy(hidden, weight, targets, label_smoothing=0.1)
    (actual,) = torch.autograd.grad(loss, wanted)

    (expected,) = torch.autograd.grad(torch_loss(hidden, weight, targets, 0.1), wanted)
    assert_close(actual, expected, rtol=0, atol=3e-6)  # single precision, as above


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_none_is_computed(
    monkeypatch: pytest.MonkeyPatch, mode: type[torch.no_grad]
) -> None:
    hidden, weight, targets = hidden_weight_targets()
    expected, expected_nll = cross_entropy(hidden, weight, targets, label_smoothing=0.1)

    def fail(*_: object) -> None:
        raise AssertionError("a gradient was made that nobody can ask for")

    monkeypatch.setattr(torch, "zeros_like", fail)
    monkeypatch.setattr(torch, "empty_like", fail)
    with mode():
        loss, nll = cross_entropy(hidden, weight, targets, label_smoothing=0.1)

    assert not loss.requires_grad
    assert float(loss) == expected.item()
    assert float(nll) == expected_nll.item()


def test_the_targets_and_inputs_stay_as_they_were() -> None:
    hidden, weight, targets = hidden_weight_targets()
    before = hidden.detach().clone(), weight.detach().clone(), targets.clone()

    loss, _ = cross_entropy(hidden, weight, targets, label_smoothing=0.1)
    torch.autograd.grad(loss, (hidden, weight))

    assert torch.equal(hidden, before[0])
    assert torch.equal(weight, before[1])
    assert torch.equal(targets, before[2])


@every_smoothing
def test_large_logits_do_not_overflow(smoothing: float) -> None:
    hidden, weight, targets = hidden_weight_targets()
    hidden = (1e4 * hidden).detach().requires_grad_()

    loss, _ = cross_entropy(hidden, weight, targets, label_smoothing=smoothing)
    actual = torch.autograd.grad(loss, (hidden, weight))

    expected = torch_loss(hidden, weight, targets, smoothing)
    assert bool(expected.isfinite())
    assert_close(loss, expected, rtol=1e-6, atol=0)  # single precision, as above
    # The weight's gradient is a sum of numbers up to 1e4.
    assert_close(actual, torch.autograd.grad(expected, (hidden, weight)), rtol=1e-5, atol=1e-2)


def test_double_inputs_get_double_gradients() -> None:
    hidden, weight, targets = hidden_weight_targets()
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))

    loss, _ = cross_entropy(hidden, weight, targets, label_smoothing=0.1)
    actual = torch.autograd.grad(loss, (hidden, weight))

    assert [gradient.dtype for gradient in actual] == [torch.float64, torch.float64]
    expected = torch.autograd.grad(torch_loss(hidden, weight, targets, 0.1), (hidden, weight))
    assert_close(actual, expected, rtol=0, atol=3e-6)  # the softmax is in single precision


def test_bf16_arithmetic_gives_single_gradients_that_point_the_same_way() -> None:
    hidden, weight, targets = hidden_weight_targets()

    with torch.autocast("cpu", torch.bfloat16):
        loss, nll = cross_entropy(hidden, weight, targets, label_smoothing=0.1)
    actual = torch.autograd.grad(loss, (hidden, weight))

    assert [loss.dtype, nll.dtype, *(x.dtype for x in actual)] == [torch.float32] * 4
    expected_loss = torch_loss(hidden, weight, targets, 0.1)
    expected = torch.autograd.grad(expected_loss, (hidden, weight))
    assert_close(loss, expected_loss, rtol=0.01, atol=0)  # bf16 has 8 bits: 2**-8 is 0.4 %
    for ours, theirs in zip(actual, expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02
