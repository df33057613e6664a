from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.model import attention
from tfm_cli.model.transformer import Transformer

VOCAB, LAYERS = 30, 3
SHAPES: list[dict[str, Any]] = [
    {},
    {"norm": "pre", "activation": "swiglu", "positions": "rotary", "tied_embeddings": 0},
    {"output_bias": True, "tied_embeddings": 2},
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def model_of(shape: dict[str, Any]) -> Transformer:
    torch.manual_seed(1)
    model = transformer_of(
        VOCAB, encoder_layers=1, decoder_layers=LAYERS, width=16, heads=4, feed_forward_width=24,
        **shape,
    ).eval().double()  # fmt: skip
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)  # attention is not even, no bias is 0
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    source, target = torch.randint(0, VOCAB, (2, 6)), torch.randint(0, VOCAB, (2, 5))
    keep = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])[:, None, None, :]
    return source, keep, target


@torch.inference_mode()
@every_shape
def test_weights_are_those_of_decoding_step_by_step(
    shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(shape)
    source, keep, target = batch()
    state = model.start(source, keep)
    computed: list[Tensor] = []  # in each step two of each layer: to itself, to the source

    def remember(*arguments: Any, real: Any = attention.attention_weights) -> Tensor:
        computed.append(real(*arguments))
        return computed[-1]

    with monkeypatch.context() as patch:
        patch.setattr(attention, "attention_weights", remember)
        for step in range(5):
            model.step(target[:, step], state)

    for layer in range(LAYERS):
        expected = torch.cat(computed[2 * layer + 1 :: 2 * LAYERS], dim=2).mean(dim=1)
        actual = model.cross_attention_weights(source, keep, target, layer=layer)
        assert_close(actual, expected)
        assert_close(actual.sum(dim=2), torch.ones(2, 5, dtype=torch.float64))
        assert not actual[1, :, 4:].any()


@torch.inference_mode()
@every_shape
def test_restricted_logits_are_columns_of_the_full_ones(shape: dict[str, Any]) -> None:
    model = model_of(shape)
    source, keep, target = batch()
    ids = torch.tensor([3, 4, 17, 29])
    restricted = model.restricted(ids)
    state, wanted_state = restricted.start(source, keep), model.start(source, keep)

    for step in range(5):
        result = restricted.step(target[:, step], state)
        assert_close(result, model.step(target[:, step], wanted_state)[:, ids])
