import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.config.presets import PRESETS
from tfm_cli.config.settings import ModelConfig
from tfm_cli.model.attention import causal_mask
from tfm_cli.model.positions import sinusoids
from tfm_cli.model.transformer import Transformer

WIDTH, HEADS, INNER, VOCAB = 16, 4, 24, 30
DECODER_HEADS, DECODER_INNER = 2, 40

every_tying = pytest.mark.parametrize("tied", [0, 1, 2, 3])


def small_model(**options: Any) -> Transformer:
    torch.manual_seed(1)
    shape = {
        "encoder_layers": 3,
        "decoder_layers": 2,
        "width": WIDTH,
        "heads": HEADS,
        "feed_forward_width": INNER,
        "dropout": 0.0,
    }
    return transformer_of(VOCAB, **{**shape, **options}).double()


def with_uneven_weights(model: Transformer) -> Transformer:
    """No bias is 0 and no gain is 1, so that none of them can be left out unseen."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    return model


class TorchTransformer(nn.Module):
    """The same model, made of PyTorch's own `nn.Transformer`."""

    def __init__(self, *, norm: str, activation: str, heads: int, inner: int) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "dropout": 0.0,
            "activation": activation,
            "batch_first": True,
            "norm_first": norm == "pre",
        }

        def last_norm() -> nn.LayerNorm | None:
            return nn.LayerNorm(WIDTH) if norm == "pre" else None

        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.stacks = nn.Transformer(
            WIDTH,
            HEADS,
            custom_encoder=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, **options),
                3,
                norm=last_norm(),
                enable_nested_tensor=False,
            ),
            custom_decoder=nn.TransformerDecoder(
                nn.TransformerDecoderLayer(WIDTH, heads, inner, **options), 2, norm=last_norm()
            ),
            batch_first=True,
        )

    def forward(self, source: Tensor, source_keep: Tensor, target: Tensor) -> Tensor:
        hidden = self.stacks(
            self._embed(source),
            self._embed(target),
            tgt_mask=~causal_mask(target.shape[1]),  # PyTorch's modules hide where it is True
            src_key_padding_mask=~source_keep[:, 0, 0],
            memory_key_padding_mask=~source_keep[:, 0, 0],
        )
        return F.linear(hidden, self.embedding.weight)

    def _embed(self, ids: Tensor) -> Tensor:
        positions = sinusoids(torch.arange(ids.shape[1]), WIDTH)
        embedded: Tensor = self.embedding(ids) * math.sqrt(WIDTH) + positions
        return embedded


def torch_names(model: Transformer) -> Iterator[tuple[str, str]]:
    """The name of each of our parameters, and what `TorchTransformer` calls it."""
    sublayers = {
        "encoder_layers": ["self_attention", "feed_forward"],
        "decoder_layers": ["self_attention", "cross_attention", "feed_forward"],
    }
    parts = {
        "self_attention.projection.": "self_attn.in_proj_",
        "self_attention.output.": "self_attn.out_proj.",
        "cross_attention.projection.": "multihead_attn.in_proj_",
        "cross_attention.output.": "multihead_attn.out_proj.",
        "feed_forward.inner.": "linear1.",
        "feed_forward.outer.": "linear2.",
    }
    for name, _ in model.named_parameters():
        theirs = name.replace("target_embedding", "embedding")
        for stack, order in sublayers.items():
            side = stack.split("_")[0]
            theirs = theirs.replace(stack, f"stacks.{side}.layers")
            theirs = theirs.replace(f"{side}_norm", f"stacks.{side}.norm")
            if name.startswith(stack):
                for number, sublayer in enumerate(order, start=1):
                    theirs = theirs.replace(f"{sublayer}_norm.norm", f"norm{number}")
        for ours_part, theirs_part in parts.items():
            theirs = theirs.replace(ours_part, theirs_part)
        yield name, theirs


@pytest.mark.parametrize(
    ("norm", "activation", "heads", "inner"),
    [
        ("post", "relu", HEADS, INNER),
        ("pre", "gelu", HEADS, INNER),
        ("post", "relu", DECODER_HEADS, DECODER_INNER),
    ],
)
def test_logits_and_gradients_equal_those_of_torch_with_the_same_weights(
    norm: str, activation: str, heads: int, inner: int
) -> None:
    """`heads` and `inner` are the decoder's."""
    shape = {"decoder_heads": heads, "decoder_feed_forward_width": inner}
    model = with_uneven_weights(small_model(norm=norm, activation=activation, **shape))
    reference = TorchTransformer(norm=norm, activation=activation, heads=heads, inner=inner)
    reference = reference.double()
    theirs = dict(reference.named_parameters())
    names = list(torch_names(model))
    for our_name, their_name in names:
        theirs[their_name].data.copy_(model.get_parameter(our_name).data)
    source = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 2, 2]])
    source_keep = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None]
    target = torch.tensor([[1, 11, 12, 13], [1, 14, 15, 16]])
    weight = torch.randn(2, 4, VOCAB, generator=torch.Generator().manual_seed(3)).double()

    logits, their_logits = (
        model(source, source_keep, target),
        reference(source, source_keep, target),
    )
    (logits * weight).sum().backward()
    (their_logits * weight).sum().backward()

    assert {their_name for _, their_name in names} == set(theirs)
    # Double arithmetic through five layers, in another order.
    assert_close(logits, their_logits, rtol=0, atol=1e-11)
    for our_name, their_name in names:
        gradient = model.get_parameter(our_name).grad
        assert gradient is not None
        # The biases of keys have no effect and a gradient of 0: an absolute bound for all.
        assert_close(gradient, theirs[their_name].grad, rtol=1e-9, atol=1e-10)


@every_tying
def test_tied_matrices_are_one_parameter(tied: int) -> None:
    model = small_model(tied_embeddings=tied)
    matrices = [name for name, p in model.named_parameters() if p.shape == (VOCAB, WIDTH)]

    expected = {
        0: {"source_embedding.weight", "target_embedding.weight", "output.weight"},
        1: {"target_embedding.weight", "output.weight"},
        2: {"source_embedding.weight", "target_embedding.weight"},
        3: {"target_embedding.weight"},
    }[tied]

    assert set(matrices) == expected
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert (model.output_weight is model.target_embedding.weight) == (tied >= 2)


@every_tying
def test_source_target_and_output_read_the_matrix_they_are_tied_to(tied: int) -> None:
    model = small_model(tied_embeddings=tied)
    source, target = torch.tensor([[3, 4]]), torch.tensor([[1, 5]])
    before = model(source, None, target)

    def reaches(piece: int) -> bool:
        """Whether the target embedding of a piece has a say in any other piece's logit."""
        changed = model.target_embedding.weight.data
        saved = changed[piece].clone()
        changed[piece] = -saved
        after = model(source, None, target)
        changed[piece] = saved
        others = torch.arange(VOCAB) != piece
        return not torch.equal(after[..., others], before[..., others])

    def has_logit_from_target_embedding(piece: int) -> bool:
        (gradient,) = torch.autograd.grad(
            model(source, None, target)[..., piece].sum(), model.target_embedding.weight
        )
        return bool(gradient[piece].any())

    assert reaches(5)
    assert reaches(3) == (tied in (1, 3))
    assert not reaches(20)
    assert has_logit_from_target_embedding(20) == (tied >= 2)


@every_tying
def test_every_parameter_gets_a_gradient(tied: int) -> None:
    model = small_model(
        tied_embeddings=tied, positions="learned", max_positions=4, output_bias=True
    )

    model(torch.tensor([[3, 4]]), None, torch.tensor([[1, 5]])).square().sum().backward()

    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_output_bias_is_added_to_the_logits() -> None:
    model = small_model(output_bias=True)
    source, target = torch.tensor([[3, 4]]), torch.tensor([[1, 5]])
    before = model(source, None, target)
    assert model.output_bias is not None
    bias = torch.linspace(-2, 2, VOCAB, dtype=torch.float64)

    model.output_bias.data += bias

    assert_close(model(source, None, target), before + bias)
    assert_close(model.step(target[:, 0], model.start(source, None)), (before + bias)[:, 0])


def test_unscaled_embeddings_are_those_of_a_scaled_model_with_smaller_weights() -> None:
    scaled, unscaled = (
        small_model(tied_embeddings=0),
        small_model(tied_embeddings=0, scale_embeddings=False),
    )
    weights = scaled.state_dict()
    for name in ("source_embedding.weight", "target_embedding.weight"):
        weights[name] = weights[name] * math.sqrt(WIDTH)
    unscaled.load_state_dict(weights)
    source, target = torch.tensor([[3, 4]]), torch.tensor([[1, 5]])

    assert_close(unscaled(source, None, target), scaled(source, None, target))


def test_vocabularies_of_two_sizes_have_embeddings_of_two_sizes() -> None:
    model = small_model(tied_embeddings=2, source_vocab_size=VOCAB + 7)

    logits = model(torch.tensor([[VOCAB + 6, 4]]), None, torch.tensor([[1, 5]]))

    assert logits.shape == (1, 2, VOCAB)
    assert model.source_embedding is not None
    assert model.source_embedding.weight.shape == (VOCAB + 7, WIDTH)


@pytest.mark.parametrize("tied", [1, 3])
def test_tied_source_and_target_of_two_sizes_are_refused(tied: int) -> None:
    with pytest.raises(ValueError, match="need vocabularies of one size, got 37 and 30"):
        small_model(tied_embeddings=tied, source_vocab_size=VOCAB + 7)


@pytest.mark.parametrize(("preset", "millions"), [("base", 65), ("big", 213)])
def test_parameter_counts_are_those_of_the_paper(preset: str, millions: int) -> None:
    settings = PRESETS[preset]
    shape: dict[str, Any] = {**dataclasses.asdict(ModelConfig()), **settings.get("model", {})}
    assert settings["tokenizer"]["vocab_size"] == 37_000
    with torch.device("meta"):
        model = transformer_of(37_000, **shape)

    count = sum(parameter.numel() for parameter in model.parameters())

    # Table 3; the paper counts in millions, and its vocabulary is "about 37000".
    assert count == pytest.approx(millions * 1e6, rel=0.03)


def test_norm_of_the_whole_stack_is_there_for_pre_norm_only() -> None:
    def last_norms(norm: str) -> list[str]:
        names = [name for name, _ in small_model(norm=norm).named_modules()]
        return [name for name in names if name in ("encoder_norm", "decoder_norm")]

    assert last_norms("post") == []
    assert last_norms("pre") == ["encoder_norm", "decoder_norm"]


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_matrices_start_with_a_third_of_glorots_variance(activation: str) -> None:
    torch.manual_seed(1)
    model = transformer_of(
        50, encoder_layers=1, decoder_layers=1, width=96, heads=4, feed_forward_width=160,
        activation=activation,
    )  # fmt: skip

    for name, parameter in model.named_parameters():
        if "embedding" in name or parameter.ndim < 2:
            continue
        # Queries, keys and values are apart, and so is the gate from what it opens for.
        parts = (
            3 if "projection" in name else 2 if "inner" in name and activation == "swiglu" else 1
        )
        for matrix in parameter.detach().chunk(parts):
            bound = math.sqrt(6 / sum(matrix.shape) / 3)
            largest = float(matrix.abs().max())
            # The largest of over 9000 uniform numbers is within 1 % of the bound.
            assert 0.99 * bound < largest <= bound, name
            # Their standard deviation is bound / sqrt(3), give or take 1 / sqrt(9000).
            assert float(matrix.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03), name


@pytest.mark.parametrize("norm", ["post", "pre", "deepnorm"])
def test_biases_start_at_zero_and_gains_at_one(norm: str) -> None:
    model = small_model(norm=norm)

    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            is_gain = "norm" in name and name.endswith("weight")
            assert torch.equal(parameter.data, torch.full_like(parameter, float(is_gain))), name


@every_tying
def test_scaled_embeddings_start_with_unit_variance(tied: int) -> None:
    torch.manual_seed(1)
    model = transformer_of(500, width=64, encoder_layers=1, decoder_layers=1, tied_embeddings=tied)

    for name, parameter in model.named_parameters():
        if parameter.shape == (500, 64):
            # 32,000 normal numbers: the standard deviation is known to 0.4 %.
            assert float(parameter.detach().std()) * math.sqrt(64) == pytest.approx(1, rel=0.02), (
                name
            )
