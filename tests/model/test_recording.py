import contextlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.model.recording import recording
from tfm_cli.model.transformer import Transformer

VOCAB = 30
SHAPES: list[dict[str, Any]] = [
    {},
    {"norm": "pre", "activation": "swiglu", "positions": "rotary", "tied_embeddings": 0},
    {"positions": "learned", "max_positions": 9, "tied_embeddings": 2, "output_bias": True},
    {"decoder_heads": 2, "decoder_feed_forward_width": 40, "decoder_layers": 3},
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def model_of(shape: dict[str, Any]) -> Transformer:
    torch.manual_seed(1)
    defaults = {"encoder_layers": 2, "decoder_layers": 2, "width": 16, "heads": 4}
    model = transformer_of(VOCAB, **{"feed_forward_width": 24, **defaults, **shape}).eval().double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)  # attention is not even, no bias is 0
    return model


def batch_of_seed(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    source, target = torch.randint(0, VOCAB, (2, 6)), torch.randint(0, VOCAB, (2, 5))
    keep = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])[:, None, None, :]
    return source, keep, target


@torch.inference_mode()
@every_shape
def test_recording_changes_neither_the_output_nor_the_weights(shape: dict[str, Any]) -> None:
    model = model_of(shape)
    names, wanted = list(model.state_dict()), model(*batch_of_seed(2))

    with recording(model):
        found = model(*batch_of_seed(2))

    assert torch.equal(found, wanted)
    assert list(model.state_dict()) == names
    assert all(module.record is None for module in model.modules() if hasattr(module, "record"))


@torch.inference_mode()
@every_shape
def test_attention_is_that_of_the_paper(shape: dict[str, Any]) -> None:
    model = model_of(shape)
    source, keep, target = batch_of_seed(2)

    with recording(model) as values:
        model(source, keep, target)

    masks = {
        "encoder.0.self_attention": keep,
        "decoder.1.self_attention": torch.ones(5, 5, dtype=torch.bool).tril(),
        "decoder.1.cross_attention": keep,
    }
    for name, mask in masks.items():
        part = {each.removeprefix(f"{name}."): values[each] for each in values if name in each}
        query, key, value = part["query"], part["key"], part["value"]
        scores = query @ key.mT / math.sqrt(query.shape[3])
        hidden = ~mask.expand_as(scores)
        assert_close(part["scores"], scores.masked_fill(hidden, -math.inf))
        assert_close(part["weights"], part["scores"].softmax(dim=3))
        assert_close(part["weights"].sum(dim=3), torch.ones_like(scores[..., 0]))
        assert not part["weights"][hidden].any()
        assert_close(part["heads"], part["weights"] @ value)
        matrix = model.get_submodule(name.replace(".", "_layers.", 1) + ".output")
        assert_close(part["output"], matrix(part["heads"].transpose(1, 2).flatten(2)))


@torch.inference_mode()
@every_shape
def test_each_layer_reads_the_output_of_the_one_before(shape: dict[str, Any]) -> None:
    model = model_of(shape)
    source, keep, target = batch_of_seed(2)

    with recording(model) as values:
        logits = model(source, keep, target)

    for stack, side in (("encoder", "source"), ("decoder", "target")):
        x = values[f"{side}.input"]
        positions = values.get(f"{side}.positions", torch.zeros_like(x))
        assert_close(values[f"{side}.embedding"] + positions, x)
        layers = model.encoder_layers if stack == "encoder" else model.decoder_layers
        for layer, module in enumerate(layers):
            sublayers = ["self_attention", "cross_attention", "feed_forward"]
            for sublayer in [each for each in sublayers if hasattr(module, each)]:
                name = f"{stack}.{layer}.{sublayer}_norm"
                assert torch.equal(values[f"{name}.input"], x)
                assert_close(values[f"{name}.sum"], x + values[f"{name}.sublayer"])
                norm = module.get_submodule(f"{sublayer}_norm.norm")
                if model.encoder_norm is None:
                    assert_close(values[f"{name}.output"], norm(values[f"{name}.sum"]))
                else:
                    assert_close(values[f"{name}.normed"], norm(x))
                    assert torch.equal(values[f"{name}.output"], values[f"{name}.sum"])
                x = values[f"{name}.output"]
        final = model.get_submodule(f"{stack}_norm") if model.encoder_norm else torch.nn.Identity()
        assert_close(values[f"{stack}.output"], final(x))
    assert_close(model.logits(values["decoder.output"]), logits)


@torch.inference_mode()
def test_a_step_is_recorded_like_a_forward_pass() -> None:
    model = model_of({})
    source, keep, target = batch_of_seed(2)
    with recording(model) as wanted:
        model(source, keep, target)

    state = model.start(source, keep)
    for step in range(5):
        with recording(model) as values:
            model.step(target[:, step], state)
        for layer in (0, 1):
            name = f"decoder.{layer}.feed_forward_norm.output"
            assert_close(values[name][:, 0], wanted[name][:, step])


def test_a_recording_ends_with_the_block_and_resumes_the_one_around_it() -> None:
    model = model_of({})

    with recording(model) as outer:
        with contextlib.suppress(RuntimeError), recording(model) as inner:
            raise RuntimeError
        model(*batch_of_seed(2))
    model(*batch_of_seed(3))

    assert not inner
    assert "encoder.output" in outer
    assert model.record is None
