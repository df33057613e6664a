"""The engine's Transformer against the reference: whole pairs, read by teacher forcing."""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model.small_transformers import transformer as transformer_of
from tests.native.engine import EOS, START, EngineError, EngineModel, Workspace, call
from tests.native.engine_models import flat, int32s
from tfm_cli.model.transformer import Transformer
from tfm_cli.native import library
from tfm_cli.native.library import (
    ACTIVATIONS,
    BAD_ARGUMENT,
    NON_FINITE,
    NORMS,
    POSITIONS,
    PRECISIONS,
    Batch,
)

pytestmark = pytest.mark.skipif(not library.available(), reason="the native engine is not built")

Pair = tuple[list[int], list[int]]


def forced(
    engine: EngineModel, pairs: Sequence[Pair], *, layer: int | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return log-probabilities (T + 1,) of each pair, and a layer's attention (T + 1, S)."""
    workspace = Workspace()
    sources, targets = zip(*pairs, strict=True)
    lengths = int32s([len(source) for source in sources])
    batch = Batch(num_segments=len(pairs), source_ids=flat(sources), source_lengths=lengths)
    steps = [len(target) + 1 for target in targets]
    log_probs = (ctypes.c_float * sum(steps))()
    cells = [len(source) * step for source, step in zip(sources, steps, strict=True)]
    attention = None if layer is None else (ctypes.c_float * sum(cells))()
    call(
        "tfm_score", engine.handle, workspace.handle, batch, flat(targets),
        int32s([len(target) for target in targets]), log_probs, layer or 0, attention,
    )  # fmt: skip
    found = list(torch.split(torch.tensor(list(log_probs)), steps))
    if attention is None:
        return found, []
    parts = torch.split(torch.tensor(list(attention)), cells)
    return found, [part.view(n, -1) for part, n in zip(parts, steps, strict=True)]


def reference(
    model: Transformer, pair: Pair, *, layer: int | None = None
) -> tuple[Tensor, Tensor | None]:
    source, target = torch.tensor([pair[0]]), torch.tensor([[START, *pair[1]]])
    with torch.inference_mode():
        log_probs = model(source, None, target).log_softmax(2)[0]  # (T + 1, V)
        weights = None
        if layer is not None:
            weights = model.cross_attention_weights(source, None, target, layer=layer)[0]
    return log_probs.gather(1, torch.tensor([[*pair[1], EOS]]).T)[:, 0], weights


def random_model(seed: int, source_size: int | None, target_size: int, **shape: Any) -> Transformer:
    """A model whose biases and gains are no zeros and ones, as of a trained one."""
    torch.manual_seed(seed)
    model = transformer_of(target_size, source_vocab_size=source_size, dropout=0.0, **shape).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def inner_weight(model: Transformer) -> Tensor:
    return dict(model.named_parameters())["encoder_layers.0.feed_forward.inner.weight"].data


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    positions = draw(st.sampled_from(sorted(POSITIONS)))
    heads = draw(st.sampled_from([1, 2, 3, 4, 5]))
    head_width = draw(st.integers(1, 40))
    if positions == "rotary" or positions == "sinusoidal_marian":
        head_width += head_width % 2
    tied = draw(st.integers(0, 3))
    width = heads * head_width
    other_heads = [n for n in range(1, 9) if width % (2 * n if positions == "rotary" else n) == 0]
    return {
        "encoder_layers": draw(st.integers(1, 3)),
        "decoder_layers": draw(st.integers(1, 3)),
        "width": width,
        "heads": heads,
        "feed_forward_width": draw(st.integers(1, 80)),
        "decoder_heads": draw(st.sampled_from([0, *other_heads])),
        "decoder_feed_forward_width": draw(st.sampled_from([0, 7, 48])),
        "norm": draw(st.sampled_from(sorted(NORMS))),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "positions": positions,
        "max_positions": 40,
        "tied_embeddings": tied,
        "scale_embeddings": draw(st.booleans()),
        "output_bias": draw(st.booleans()),
        "source_size": None if tied & 1 else draw(st.integers(4, 90)),
        "target_size": draw(st.integers(4, 90)),
    }


def random_pairs(seed: int, source_size: int, target_size: int, count: int) -> list[Pair]:
    torch.manual_seed(seed)

    def ids(size: int, least: int) -> list[int]:
        length = int(torch.randint(least, 39, (1,)))
        return [int(i) for i in torch.randint(size, (length,))]

    return [(ids(source_size, 1), ids(target_size, 0)) for _ in range(count)]


@given(shape=shapes(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_forced_pairs_are_those_of_the_reference(shape: dict[str, Any], seed: int) -> None:
    source_size, target_size = shape.pop("source_size"), shape.pop("target_size")
    model = random_model(seed, source_size, target_size, **shape)
    pairs = random_pairs(seed, source_size or target_size, target_size, 4)
    layer = shape["decoder_layers"] - 1

    engine = EngineModel(model, shape)
    log_probs, attention = forced(engine, pairs, layer=layer)

    for pair, own, weights in zip(pairs, log_probs, attention, strict=True):
        expected, wanted_weights = reference(model, pair, layer=layer)
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(weights, wanted_weights, atol=1e-4, rtol=1e-5)


SHAPE: dict[str, Any] = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "width": 128,
    "heads": 4,
    "feed_forward_width": 200,
}


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("int8", 0.15)])
def test_lower_precisions_are_near(precision: str, tolerance: float) -> None:
    model = random_model(3, None, 500, **SHAPE)
    pairs = random_pairs(3, 500, 500, 20)

    engine = EngineModel(model, SHAPE, precision)
    log_probs, _ = forced(engine, pairs)

    expected = torch.cat([reference(model, pair)[0] for pair in pairs])
    error = (torch.cat(log_probs) - expected).abs()
    assert float(error.mean()) < tolerance, (float(error.mean()), float(error.max()))
    assert float(error.mean()) > 0  # it is the lower precision


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
@pytest.mark.parametrize("width", [128, 60])
def test_neighbors_do_not_matter(precision: str, width: int) -> None:
    shape = {**SHAPE, "width": width}
    model = random_model(4, None, 300, **shape)
    pairs = random_pairs(4, 300, 300, 70)

    engine = EngineModel(model, shape, precision)
    together = forced(engine, pairs)[0]
    backwards = forced(engine, pairs[::-1])[0][::-1]
    alone = [forced(engine, [pair])[0][0] for pair in pairs]

    for a, b, c in zip(together, backwards, alone, strict=True):
        assert a.tolist() == b.tolist() == c.tolist()


def test_long_segments_are_read() -> None:
    model = random_model(5, None, 50, **SHAPE)
    torch.manual_seed(5)
    source, target = ([int(i) for i in torch.randint(50, (n,))] for n in (1100, 700))

    engine = EngineModel(model, SHAPE)
    log_probs, _ = forced(engine, [(source, target)])

    torch.testing.assert_close(
        log_probs[0], reference(model, (source, target))[0], atol=1e-4, rtol=1e-5
    )


def test_learned_positions_are_bounded() -> None:
    shape = {**SHAPE, "positions": "learned", "max_positions": 8}
    model = random_model(6, None, 50, **shape)

    engine = EngineModel(model, shape)
    assert len(forced(engine, [([3] * 8, [3] * 7)])[0][0]) == 8
    for pair in ([3] * 9, [3]), ([3], [3] * 8):
        with pytest.raises(EngineError, match="learned positions") as caught:
            forced(engine, [pair])
        assert caught.value.status == BAD_ARGUMENT


def test_weights_that_are_not_finite_are_refused() -> None:
    model = random_model(7, None, 50, **SHAPE)
    inner_weight(model)[3, 4] = math.nan

    with pytest.raises(EngineError, match=r"inner\.weight") as caught:
        EngineModel(model, SHAPE)

    assert caught.value.status == NON_FINITE


def test_overflow_is_told() -> None:
    model = random_model(8, None, 50, **SHAPE)
    inner = inner_weight(model)
    inner[0], inner[1] = 3e38, -3e38  # one of them overflows before the ReLU

    engine = EngineModel(model, SHAPE)
    with pytest.raises(EngineError) as caught:
        forced(engine, [([3, 4], [5])])

    assert caught.value.status == NON_FINITE


def test_no_pairs_are_no_work() -> None:
    model = random_model(9, None, 50, **SHAPE)

    engine = EngineModel(model, SHAPE)
    workspace = Workspace()
    batch = Batch(num_segments=0)
    call("tfm_score", engine.handle, workspace.handle, batch, None, None, None, 0, None)
