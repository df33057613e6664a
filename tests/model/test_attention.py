import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.model.attention import (
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    scaled_dot_product_attention,
)
from tfm_cli.model.transformer import Transformer

every_position_encoding = pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
every_norm = pytest.mark.parametrize("norm", ["post", "pre"])

# True keeps: the second segment has two real keys of five.
PADDING = torch.tensor([[True] * 5, [True, True, False, False, False]])[:, None, None, :]


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def queries_keys_values() -> tuple[Tensor, Tensor, Tensor]:
    return draw(2, 3, 5, 4, seed=1), draw(2, 3, 5, 4, seed=2), draw(2, 3, 5, 4, seed=3)


def small_model(*, norm: str = "post", positions: str = "sinusoidal") -> Transformer:
    torch.manual_seed(1)
    return (
        transformer_of(
            20,
            encoder_layers=2,
            decoder_layers=2,
            width=8,
            heads=2,
            feed_forward_width=16,
            norm=norm,
            positions=positions,
            tied_embeddings=0,
        )
        .double()
        .eval()
    )


@pytest.mark.parametrize("keep", [None, PADDING, causal_mask(5)], ids=["all", "padding", "causal"])
def test_attention_rows_sum_to_one(keep: Tensor | None) -> None:
    query, key, _ = queries_keys_values()

    rows = attention_weights(query, key, keep).sum(dim=-1)

    # Five doubles are added: a few units in the last place.
    assert_close(rows, torch.ones_like(rows), rtol=0, atol=1e-14)


def test_attention_is_the_softmax_of_scaled_products() -> None:
    query = torch.tensor([[2.0, 0, 0, 0], [0, 0, 4, 0]], dtype=torch.float64)[None, None]
    key = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.float64)[None, None]
    value = torch.tensor([[10.0, 0, 1, 0], [0, 20, 1, 0]], dtype=torch.float64)[None, None]
    # The products are 2, 0 and 0, 4; sqrt(4) = 2 makes them 1, 0 and 0, 2.
    first, second = math.e / (math.e + 1), 1 / (1 + math.e**2)
    weights = torch.tensor([[first, 1 - first], [second, 1 - second]], dtype=torch.float64)
    averages = torch.tensor(
        [[10 * first, 20 * (1 - first), 1, 0], [10 * second, 20 * (1 - second), 1, 0]],
        dtype=torch.float64,
    )

    # Double arithmetic on numbers up to 20.
    assert_close(attention_weights(query, key)[0, 0], weights, rtol=0, atol=1e-15)
    attended = scaled_dot_product_attention(query, key, value)
    assert_close(attended[0, 0], averages, rtol=0, atol=1e-14)


def test_causal_mask_leaves_exactly_zero_above_the_diagonal() -> None:
    query, key, _ = queries_keys_values()

    weights = attention_weights(100 * query, key, causal_mask(5))

    above = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert torch.equal(weights[..., above], torch.zeros_like(weights[..., above]))
    assert torch.equal(weights[..., 0, 0], torch.ones_like(weights[..., 0, 0]))
    assert bool((attention_weights(query, key, causal_mask(5))[..., ~above] > 0).all())


@pytest.mark.parametrize("keep", [None, PADDING, causal_mask(5)], ids=["all", "padding", "causal"])
def test_explicit_attention_equals_the_fused_kernel(keep: Tensor | None) -> None:
    query, key, value = queries_keys_values()

    explicit = scaled_dot_product_attention(query, key, value, keep)

    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
    # Both in double; the kernel adds in another order.
    assert_close(explicit, fused, rtol=0, atol=1e-14)


def test_multi_head_is_the_concatenation_of_single_heads() -> None:
    attention = MultiHeadAttention(12, 3).double()
    x, memory = draw(2, 4, 12, seed=4), draw(2, 5, 12, seed=5)
    query_weight, key_weight, value_weight = attention.projection.weight.chunk(3)
    query_bias, key_bias, value_bias = attention.projection.bias.chunk(3)

    heads = []
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
        query = x @ query_weight[rows].T + query_bias[rows]
        key = memory @ key_weight[rows].T + key_bias[rows]
        value = memory @ value_weight[rows].T + value_bias[rows]
        scores = (query @ key.transpose(1, 2) / math.sqrt(4)).masked_fill(~PADDING[:, 0], -math.inf)
        heads.append(scores.softmax(dim=-1) @ value)
    expected = torch.cat(heads, dim=-1) @ attention.output.weight.T + attention.output.bias

    actual = attention.attend(
        attention.project_query(x), *attention.project_memory(memory), keep=PADDING
    )
    # Double arithmetic; the sums of 12 products run in another order.
    assert_close(actual, expected, rtol=0, atol=1e-14)


def test_self_attention_projects_as_attention_to_itself_does() -> None:
    attention = MultiHeadAttention(12, 3).double()
    x = draw(2, 4, 12)

    together = attention.project(x)

    apart = (attention.project_query(x), *attention.project_memory(x))
    # One product of 36 columns may be summed in another order than three of 12.
    assert_close(together, apart, rtol=0, atol=1e-14)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must divide the width, got 5 and 12"):
        MultiHeadAttention(12, 5)


@every_norm
@every_position_encoding
def test_no_gradient_flows_from_a_position_to_what_comes_after_it(
    norm: str, positions: str
) -> None:
    model = small_model(norm=norm, positions=positions)
    target = torch.tensor([[3, 4, 5, 6, 7, 8]])  # all different: a row of the matrix each
    memory = model.encode(torch.tensor([[9, 10, 11]]), None)

    for position in range(6):
        hidden = model.decode(target, memory.detach(), None)
        weight = draw(8, seed=position)
        (gradient,) = torch.autograd.grad(
            hidden[0, position] @ weight, model.target_embedding.weight
        )

        reached = gradient[target[0]].abs().sum(dim=1)
        assert torch.equal(reached[position + 1 :], torch.zeros(5 - position, dtype=torch.float64))
        assert bool((reached[: position + 1] > 0).all())


@every_norm
@every_position_encoding
def test_padding_is_never_attended(norm: str, positions: str) -> None:
    model = small_model(norm=norm, positions=positions)
    source = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 2, 2, 2]])
    other = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
    target = torch.tensor([[1, 13, 14], [1, 15, 16]])

    logits = model(source, PADDING, target)
    logits.sum().backward()

    assert torch.equal(model(other, PADDING, target), logits)
    assert model.source_embedding is not None
    assert model.source_embedding.weight.grad is not None
    reached = model.source_embedding.weight.grad[2]  # the id of the padding and of nothing else
    assert torch.equal(reached, torch.zeros_like(reached))


@every_position_encoding
def test_a_segment_means_the_same_alone_and_padded_among_others(positions: str) -> None:
    model = small_model(positions=positions)
    source = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 2, 2, 2]])
    target = torch.tensor([[1, 13, 14], [1, 15, 16]])

    together = model(source, PADDING, target)

    alone = model(source[1:, :2], None, target[1:])
    # Double arithmetic; products of other shapes are summed in another order.
    assert_close(together[1:], alone, rtol=0, atol=1e-12)


@every_norm
def test_encoder_without_positions_is_permutation_equivariant(norm: str) -> None:
    model = small_model(norm=norm)
    model.source_positions = None
    source = torch.tensor([[3, 4, 5, 6, 7, 3]])
    order = torch.tensor([4, 0, 5, 2, 1, 3])

    turned = model.encode(source[:, order], None)

    # Double arithmetic; a softmax adds its terms in another order.
    assert_close(turned, model.encode(source, None)[:, order], rtol=0, atol=1e-12)


@every_norm
@every_position_encoding
def test_encoder_with_positions_is_not_permutation_equivariant(norm: str, positions: str) -> None:
    model = small_model(norm=norm, positions=positions)
    source = torch.tensor([[3, 4, 5, 6, 7, 3]])
    order = torch.tensor([4, 0, 5, 2, 1, 3])

    turned = model.encode(source[:, order], None)

    difference = (turned - model.encode(source, None)[:, order]).detach().abs()
    assert bool((difference > 1e-3).any())
