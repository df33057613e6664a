import contextlib
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.model.dropout import Dropout, Noise, WordDropout, token_mask


def noise(key: int) -> Noise:
    made = Noise()
    made.seed(key)
    return made


def dropped(rate: float, *, key: int = 1, shape: tuple[int, ...] = (100, 37)) -> Tensor:
    found = Dropout(rate, noise(key)).train()(torch.ones(shape))
    assert isinstance(found, Tensor)
    return found


def test_the_same_key_gives_the_same_masks_whatever_came_before() -> None:
    shared = noise(5)
    dropout = Dropout(0.3, shared).train()
    first = [dropout(torch.ones(7, 9)), dropout(torch.ones(3, 5))]
    dropout(torch.ones(1000))
    torch.randn(3)

    shared.seed(5)
    again = [dropout(torch.ones(7, 9)), dropout(torch.ones(3, 5))]

    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_different_keys_give_different_masks() -> None:
    masks = {tuple(dropped(0.5, key=key).flatten().tolist()) for key in (0, 1, 2, 2**63 - 1)}

    assert len(masks) == 4


def test_layers_that_share_the_noise_draw_different_masks() -> None:
    shared = noise(5)
    one, other = Dropout(0.5, shared).train(), Dropout(0.5, shared).train()

    assert not torch.equal(one(torch.ones(500)), other(torch.ones(500)))


@pytest.mark.parametrize("device", ["cuda:1", "mps", "cpu"])
def test_only_the_generator_of_the_device_that_computes_is_seeded(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded: list[str] = []
    current = [torch.device("cuda:0")]

    @contextlib.contextmanager
    def switch(to: torch.device) -> Iterator[None]:
        current.append(to)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", switch)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda key: seeded.append("all"))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda key: seeded.append(str(current[-1])))
    monkeypatch.setattr(torch.mps, "manual_seed", lambda key: seeded.append("mps"))

    Noise().seed(5, torch.device(device))

    assert seeded == ([] if device == "cpu" else [device])


def test_dropout_does_not_touch_the_ambient_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)

    dropped(0.5)

    assert torch.equal(torch.randn(4), expected)


@pytest.mark.parametrize(
    ("rate", "threshold"), [(0.1, 26), (0.3, 77), (0.5, 128), (0.001, 1), (0.9999, 255)]
)
def test_rate_is_rounded_to_a_256th_and_the_scale_is_exact_for_it(
    rate: float, threshold: int
) -> None:
    result = dropped(rate, shape=(200_000,))

    scale = torch.tensor(256 / (256 - threshold))
    assert set(result.tolist()) == {0.0, float(scale)}
    share = float((result == 0).double().mean())
    rounded = threshold / 256
    # Four standard deviations of a mean of 200,000 draws.
    assert abs(share - rounded) < 4 * math.sqrt(rounded * (1 - rounded) / 200_000)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_dropout_keeps_the_mean(rate: float) -> None:
    result = dropped(rate, shape=(200_000,)).double()

    # Four standard deviations of the mean, sqrt(rate / (1 - rate) / n) each.
    assert abs(float(result.mean()) - 1) < 4 * math.sqrt(rate / (1 - rate) / 200_000) * 1.05


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_evaluation_changes_nothing(rate: float) -> None:
    x = torch.randn(3, 4)

    assert Dropout(rate, noise(1)).eval()(x) is x


def test_rate_zero_changes_nothing_in_training() -> None:
    x = torch.randn(3, 4)

    assert Dropout(0.0, noise(1)).train()(x) is x


def test_bytes_are_uniform_at_every_position_of_a_word() -> None:
    drawn = noise(11).bytes(8 * 65_536)

    assert drawn.dtype == torch.uint8
    for place, column in enumerate(drawn.view(-1, 8).T):
        counts = torch.bincount(column.long(), minlength=256).double()
        chi_square = float(((counts - 256) ** 2 / 256).sum())
        # 255 degrees of freedom: the mean is 255, four standard deviations are 4 * sqrt(510).
        assert abs(chi_square - 255) < 4 * math.sqrt(510), place


def test_neighboring_bytes_are_independent() -> None:
    drawn = noise(12).bytes(400_000).double()

    correlation = float(torch.corrcoef(torch.stack((drawn[:-1], drawn[1:])))[0, 1])

    # Four standard deviations of the correlation of 400,000 independent pairs.
    assert abs(correlation) < 4 / math.sqrt(400_000)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 17])
def test_any_number_of_bytes_can_be_drawn(count: int) -> None:
    assert noise(1).bytes(count).shape == (count,)


@pytest.mark.parametrize("cuts", [[3], [1, 2, 5], [2, 6]])
def test_parts_of_a_batch_have_the_masks_of_the_whole(cuts: list[int]) -> None:
    x, shared = torch.rand(7, 5, 3) + 1, noise(5)
    dropout = Dropout(0.4, shared).train()
    whole = [dropout(x), dropout(x[:, :2])]
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])

    for start, stop in itertools.pairwise([0, *cuts, 7]):
        shared.seed(5)
        with shared.part(start, stop, of=7):
            parts[0].append(dropout(x[start:stop]))
            parts[1].append(dropout(x[start:stop, :2]))

    assert all(torch.equal(torch.cat(p), w) for p, w in zip(parts, whole, strict=True))
    shared.seed(5)
    assert torch.equal(dropout(x), whole[0])  # nothing is left of it


def test_parts_have_the_masks_of_the_whole_where_the_device_draws_them() -> None:
    x, shared = torch.rand(7, 5) + 1, Noise()
    torch.manual_seed(5)
    whole = shared.dropped(x, 0.4)
    result = []

    for start, stop in ((0, 4), (4, 7)):
        torch.manual_seed(5)
        with shared.part(start, stop, of=7):
            result.append(shared.dropped(x[start:stop], 0.4))

    torch.testing.assert_close(torch.cat(result), whole, rtol=1e-6, atol=0)


def test_gradient_is_the_mask() -> None:
    x = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)

    y = Dropout(0.4, noise(3)).train()(x)
    y.sum().backward()

    assert x.grad is not None
    mask = Dropout(0.4, noise(3)).train()(torch.ones_like(x))
    assert torch.equal(x.grad, mask)
    assert torch.equal(y, x * mask)


def test_values_that_do_not_lie_in_a_row_are_dropped_as_any_others() -> None:
    x = torch.randn(6, 5)

    turned = Dropout(0.5, noise(3)).train()(x.T)

    assert torch.equal(turned, Dropout(0.5, noise(3)).train()(x.T.contiguous()))


def test_a_models_training_logits_are_a_function_of_the_key() -> None:
    torch.manual_seed(1)
    model = transformer_of(
        20, encoder_layers=1, decoder_layers=1, width=8, heads=2, feed_forward_width=16, dropout=0.3
    )
    source, target = torch.tensor([[3, 4, 5]]), torch.tensor([[1, 6, 7]])

    def logits(key: int) -> Tensor:
        model.noise.seed(key)
        result = model(source, None, target)
        assert isinstance(result, Tensor)
        return result

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    model.eval()
    assert torch.equal(logits(1), logits(2))


def test_dropout_is_on_the_embeddings_and_on_each_sublayer() -> None:
    model = transformer_of(
        20, encoder_layers=2, decoder_layers=3, width=8, heads=2, feed_forward_width=16, dropout=0.3
    )
    calls: list[float] = []
    for module in model.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda module, *_: calls.append(module.rate))

    model(torch.tensor([[3, 4, 5]]), None, torch.tensor([[1, 6, 7]]))

    # Two embeddings; two sub-layers in each encoder layer, three in each decoder layer.
    assert calls == [0.3] * (2 + 2 * 2 + 3 * 3)


def test_word_dropout_zeroes_whole_embeddings_and_keeps_the_mean() -> None:
    scale = WordDropout(0.2, noise(7)).train()(torch.ones(300, 100, 5))

    assert torch.equal(scale, scale[..., :1].expand_as(scale))
    rate = 51 / 256  # 0.2, rounded
    assert set(scale.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - rate)))}
    share = float((scale[..., 0] == 0).double().mean())
    # Four standard deviations of a mean of 30,000 draws.
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / 30_000)


def test_word_dropout_changes_nothing_in_evaluation_or_at_rate_zero() -> None:
    x, shared = torch.randn(3, 4, 5), noise(1)
    state = shared.state()

    assert WordDropout(0.4, shared).eval()(x) is x
    assert WordDropout(0.0, shared).train()(x) is x
    assert torch.equal(shared.state(), state)


def test_word_dropout_of_a_part_of_a_batch_is_that_of_the_whole() -> None:
    x, shared = torch.rand(7, 5, 3) + 1, noise(5)
    dropout = WordDropout(0.4, shared).train()
    whole, parts = dropout(x), []

    for start, stop in ((0, 3), (3, 7)):
        shared.seed(5)
        with shared.part(start, stop, of=7):
            parts.append(dropout(x[start:stop]))

    assert torch.equal(torch.cat(parts), whole)


def test_token_mask_hides_its_share_of_tokens_and_scales_none() -> None:
    mask = token_mask(torch.zeros(300, 100, dtype=torch.int64), 0.2, noise(7))

    assert mask.shape == (300, 100, 1)
    assert mask.dtype == torch.bool
    rate = 51 / 256  # 0.2, rounded
    share = float((~mask).double().mean())
    # Four standard deviations of a mean of 30,000 draws.
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / 30_000)


def test_token_mask_of_a_part_of_a_batch_is_that_of_the_whole() -> None:
    ids, shared = torch.zeros(7, 5, dtype=torch.int64), noise(5)
    whole, parts = token_mask(ids, 0.4, shared), []

    for start, stop in ((0, 3), (3, 7)):
        shared.seed(5)
        with shared.part(start, stop, of=7):
            parts.append(token_mask(ids[start:stop], 0.4, shared))

    assert torch.equal(torch.cat(parts), whole)
