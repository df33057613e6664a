"""All kinds of dropout together, against a Transformer that is written out and draws its own masks.

The masks of that one are drawn here from PyTorch's generator, one byte for each element, in the
order of the computation.
"""

# B segments, S source tokens, T target tokens, D model width, H heads, E = D // H

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.model.attention import causal_mask
from tfm_cli.model.layers import EncoderLayer
from tfm_cli.model.positions import sinusoids
from tfm_cli.model.transformer import Transformer

WIDTH, HEADS, VOCAB = 8, 2, 20
RATES = {
    "dropout": 0.25,
    "attention_dropout": 0.5,
    "activation_dropout": 0.375,
    "word_dropout": 0.125,
}
SOURCE = torch.tensor([[3, 4, 5, 6, 2], [7, 8, 2, 2, 2]])
SOURCE_KEEP = torch.tensor([[True] * 5, [True, True, True, False, False]])[:, None, None, :]
TARGET = torch.tensor([[1, 9, 10, 11], [1, 12, 13, 14]])


def model_of(**options: Any) -> Transformer:
    torch.manual_seed(1)
    shape: dict[str, Any] = {"encoder_layers": 2, "decoder_layers": 2, "width": WIDTH,
                             "heads": HEADS, "feed_forward_width": 12, "activation": "gelu",
                             **RATES}  # fmt: skip
    return transformer_of(VOCAB, **{**shape, **options}).double().train()


class WrittenOut:
    """The logits of a post-norm model with sinusoids, with masks from a stream of its own."""

    def __init__(self, model: Transformer, rates: dict[str, float], key: int) -> None:
        self.weights = dict(model.named_parameters())
        self.rates = rates
        self.generator = torch.Generator().manual_seed(key)

    def drop(self, x: Tensor, name: str, shape: torch.Size | None = None) -> Tensor:
        """Drop elements of `x`, with one decision for each element of a broadcast shape."""
        shape, rate = shape or x.shape, self.rates[name]
        if not rate:
            return x
        words = torch.empty(math.ceil(shape.numel() / 8), dtype=torch.int64)
        words.random_(-(2**63), None, generator=self.generator)
        drawn = words.view(torch.uint8)[: shape.numel()].view(shape).double()
        return torch.where(drawn < 256 * rate, 0.0, x / (1 - rate))

    def embed(self, ids: Tensor) -> Tensor:
        vectors = self.weights["target_embedding.weight"][ids] * WIDTH**0.5  # (B, T, D)
        vectors = self.drop(vectors, "word_dropout", torch.Size((*ids.shape, 1)))
        return self.drop(vectors + sinusoids(torch.arange(ids.shape[1]), WIDTH), "dropout")

    def attention(self, name: str, x: Tensor, memory: Tensor, keep: Tensor) -> Tensor:
        weight, bias = (self.weights[f"{name}.projection.{kind}"] for kind in ("weight", "bias"))
        parts = []
        for values, rows, offset in zip(
            (x, memory, memory), weight.chunk(3), bias.chunk(3), strict=True
        ):
            projected = values @ rows.T + offset
            parts.append(
                projected.view(*projected.shape[:-1], HEADS, -1).transpose(1, 2)
            )  # (B, H, T, E)
        query, key, value = parts
        scores = torch.einsum("bhte,bhse->bhts", query, key) / (WIDTH // HEADS) ** 0.5
        weights = F.softmax(torch.where(keep, scores, -math.inf), dim=-1)
        weights = self.drop(weights, "attention_dropout")
        heads = torch.einsum("bhts,bhse->bthe", weights, value).flatten(2)  # (B, T, D)
        out = self.weights[f"{name}.output.weight"], self.weights[f"{name}.output.bias"]
        return self.leave(name, x, F.linear(heads, *out))

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        inner, outer = (
            (self.weights[f"{name}.{part}.weight"], self.weights[f"{name}.{part}.bias"])
            for part in ("inner", "outer")
        )
        hidden = self.drop(F.gelu(F.linear(x, *inner)), "activation_dropout")
        return self.leave(name, x, F.linear(hidden, *outer))

    def leave(self, name: str, x: Tensor, sublayer: Tensor) -> Tensor:
        total = x + self.drop(sublayer, "dropout")
        gain, bias = (self.weights[f"{name}_norm.norm.{kind}"] for kind in ("weight", "bias"))
        return F.layer_norm(total, (WIDTH,), gain, bias)

    def logits(self) -> Tensor:
        memory = self.embed(SOURCE)
        for number in range(2):
            name = f"encoder_layers.{number}"
            memory = self.attention(f"{name}.self_attention", memory, memory, SOURCE_KEEP)
            memory = self.feed_forward(f"{name}.feed_forward", memory)
        x, causal = self.embed(TARGET), causal_mask(TARGET.shape[1])
        for number in range(2):
            name = f"decoder_layers.{number}"
            x = self.attention(f"{name}.self_attention", x, x, causal)
            x = self.attention(f"{name}.cross_attention", x, memory, SOURCE_KEEP)
            x = self.feed_forward(f"{name}.feed_forward", x)
        return x @ self.weights["target_embedding.weight"].T


@pytest.mark.parametrize("only", [*RATES, "all"])
def test_logits_and_gradients_equal_those_of_a_model_written_out(only: str) -> None:
    rates = RATES if only == "all" else {name: RATES[name] * (name == only) for name in RATES}
    model = model_of(**rates)
    model.noise.seed(17)

    actual = model(SOURCE, SOURCE_KEEP, TARGET)
    expected = WrittenOut(model, rates, key=17).logits()

    assert_close(actual, expected, rtol=0, atol=1e-12)  # doubles, in another order
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(x.square().sum(), parameters) for x in (actual, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", RATES)
def test_each_kind_changes_training_and_nothing_else(name: str) -> None:
    model, plain = model_of(**{**dict.fromkeys(RATES, 0.0), name: 0.5}), model_of(
        **dict.fromkeys(RATES, 0.0)
    )  # fmt: skip
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.noise.seed(1)

    assert not torch.equal(model(SOURCE, None, TARGET), plain(SOURCE, None, TARGET))

    model.eval()
    plain.eval()
    assert torch.equal(model(SOURCE, None, TARGET), plain(SOURCE, None, TARGET))
    states = [each.start(SOURCE, None) for each in (model, plain)]
    steps = [
        each.step(TARGET[:, 0], state) for each, state in zip((model, plain), states, strict=True)
    ]
    assert torch.equal(*steps)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swish", "swiglu"])
@pytest.mark.parametrize("norm", ["post", "pre", "deepnorm"])
def test_parts_of_a_batch_have_the_logits_of_the_whole(norm: str, activation: str) -> None:
    model = model_of(norm=norm, activation=activation, positions="rotary")
    model.noise.seed(3)
    whole, parts = model(SOURCE, SOURCE_KEEP, TARGET), []

    for row in range(2):
        model.noise.seed(3)
        with model.noise.part(row, row + 1, of=2):
            rows = slice(row, row + 1)
            parts.append(model(SOURCE[rows], SOURCE_KEEP[rows], TARGET[rows]))

    # A product of one row may add in another order.
    assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)


def test_attention_is_dropped_at_its_rate_in_lower_precision_too() -> None:
    model = model_of(dropout=0.0, activation_dropout=0.0, word_dropout=0.0).float()
    attention = cast(EncoderLayer, model.encoder_layers[0]).self_attention
    assert attention.dropout is not None
    seen: list[Tensor] = []
    attention.dropout.register_forward_hook(lambda module, x, y: seen.append(y / x[0]))
    source = torch.randint(3, VOCAB, (50, 40))

    with torch.autocast("cpu", torch.bfloat16):
        model.encode(source, None)

    (factors,) = seen
    assert factors.dtype == torch.float32  # (50, HEADS, 40, 40)
    kept = factors > 1
    assert_close(factors[kept], torch.full_like(factors[kept], 2.0))
    assert not factors[~kept].any()
    # Four standard deviations of a mean of 160,000 draws.
    assert abs(float(kept.double().mean()) - 0.5) < 4 * 0.5 / 400
