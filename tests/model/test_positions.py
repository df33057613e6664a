import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.model.positions import (
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    marian_sinusoids,
    sinusoids,
    sinusoids_in_halves,
)


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def formula(length: int, width: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5, one number at a time."""
    table = torch.empty(length, width, dtype=torch.float64)
    for position in range(length):
        for column in range(width):
            angle = position / 10000 ** (2 * (column // 2) / width)
            table[position, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table


@pytest.mark.parametrize("width", [1, 2, 7, 16])
def test_sinusoids_equal_the_formula(width: int) -> None:
    table = sinusoids(torch.arange(300), width)

    # Single precision holds numbers below 1 to 6e-8.
    assert_close(table.double(), formula(300, width), rtol=0, atol=6e-8)


@pytest.mark.parametrize("width", [1, 2, 7, 16])
def test_halves_are_the_sines_then_the_cosines_of_the_paper(width: int) -> None:
    table = sinusoids_in_halves(torch.arange(300), width)

    paper = sinusoids(torch.arange(300), width)
    assert_close(table, torch.cat((paper[:, 0::2], paper[:, 1::2]), dim=1), rtol=0, atol=0)


@pytest.mark.parametrize("width", [2, 4, 16])
def test_marians_sinusoids_equal_its_formula(width: int) -> None:
    table = marian_sinusoids(torch.arange(50), width)

    half = width // 2
    increment = math.log(10000) / max(half - 1, 1)
    for position in range(50):
        for column in range(half):
            angle = position * math.exp(-column * increment)
            assert table[position, column] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, half + column] == pytest.approx(math.cos(angle), abs=1e-6)


def test_marians_sinusoids_refuse_an_odd_width() -> None:
    with pytest.raises(ValueError, match="need an even width, got 7"):
        SinusoidalPositions(7, layout="marian")


def test_sinusoids_of_distant_positions_keep_their_digits() -> None:
    table = sinusoids(torch.tensor([123_456]), 4)

    angles = [123_456.0, 123_456 / 100]
    expected = [
        [math.sin(angles[0]), math.cos(angles[0]), math.sin(angles[1]), math.cos(angles[1])]
    ]
    # In single the angle alone would be off by 4e-3.
    assert_close(table.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-8)


@pytest.mark.parametrize("distance", [1, 2, 17, 250])
def test_a_distance_is_one_linear_map_wherever_it_starts(distance: int) -> None:
    width = 16
    blocks = []
    for i in range(width // 2):
        angle = distance / 10000 ** (2 * i / width)
        cos, sin = math.cos(angle), math.sin(angle)
        # sin(a + b) = cos(b) sin(a) + sin(b) cos(a), and its like for cos(a + b)
        blocks.append(torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64))
    turn = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]

    here = sinusoids(torch.arange(500), width).double()
    there = sinusoids(torch.arange(distance, 500 + distance), width).double()

    # Each side is rounded to single once: twice 6e-8, and the turn adds two of them.
    assert_close(here @ turn.T, there, rtol=0, atol=3e-7)


def test_positions_beyond_any_training_length_work() -> None:
    positions = SinusoidalPositions(6)
    first = positions(torch.zeros(1, 3, 6))

    far = positions(torch.zeros(2, 1500, 6))
    further = positions(torch.zeros(1, 1, 6), start=9000)

    # Single precision, as above.
    assert_close(far[1].double(), formula(1500, 6), rtol=0, atol=6e-8)
    assert torch.equal(far[0, :3], first[0])
    assert torch.equal(further[0], sinusoids(torch.tensor([9000]), 6))


def test_a_position_table_made_for_inference_serves_training_too() -> None:
    positions = SinusoidalPositions(6)
    with torch.inference_mode():
        positions(torch.zeros(1, 3, 6))
    x = torch.zeros(1, 3, 6, requires_grad=True)

    positions(x).square().sum().backward()

    # The gradient of a square is twice the value; single precision.
    assert x.grad is not None
    assert_close(x.grad[0].double(), 2 * formula(3, 6), rtol=0, atol=2e-7)


def test_sinusoids_are_no_weights() -> None:
    positions = SinusoidalPositions(6)
    positions(torch.zeros(1, 3, 6))

    assert positions.state_dict() == {}


@pytest.mark.parametrize(
    ("positions", "shape"),
    [
        (SinusoidalPositions(8), (2, 9, 8)),
        (LearnedPositions(8, 9).double(), (2, 9, 8)),
        (RotaryPositions(), (2, 3, 9, 8)),
    ],
    ids=["sinusoidal", "learned", "rotary"],
)
def test_positions_step_by_step_equal_all_at_once(
    positions: nn.Module, shape: tuple[int, ...]
) -> None:
    x = draw(*shape)

    steps = [positions(x[..., at : at + 1, :], start=at) for at in range(9)]

    # Sines of a vector and of a single number may differ in the last place of a double.
    assert_close(torch.cat(steps, dim=-2), positions(x), rtol=0, atol=1e-14)


def test_learned_positions_add_the_row_of_each_position() -> None:
    positions = LearnedPositions(8, 9)

    result = positions(torch.zeros(2, 4, 8), start=3)

    assert torch.equal(result[1], positions.embedding.weight[3:7])


def test_learned_positions_start_narrow_in_a_model_too() -> None:
    torch.manual_seed(1)
    model = transformer_of(
        10, width=64, heads=2, encoder_layers=1, decoder_layers=1, positions="learned",
        max_positions=500,
    )  # fmt: skip

    for positions in (model.source_positions, model.target_positions):
        assert isinstance(positions, LearnedPositions)
        # 32,000 normal numbers: the standard deviation is known to 0.4 %.
        result = float(positions.embedding.weight.detach().std())
        assert result == pytest.approx(0.02, rel=0.02)


def test_learned_positions_are_learned() -> None:
    positions = LearnedPositions(8, 9)

    positions(torch.zeros(2, 4, 8), start=3).sum().backward()

    assert positions.embedding.weight.grad is not None
    by_position = positions.embedding.weight.grad[:, 0]
    assert torch.equal(by_position, torch.tensor([0.0, 0, 0, 2, 2, 2, 2, 0, 0]))


@pytest.mark.parametrize(("length", "start"), [(10, 0), (1, 9)])
def test_a_segment_beyond_the_learned_positions_is_refused(length: int, start: int) -> None:
    positions = LearnedPositions(8, 9)

    assert positions(torch.zeros(1, 9, 8)).shape == (1, 9, 8)
    with pytest.raises(ValueError, match="has 9 learned positions, the segment needs 10"):
        positions(torch.zeros(1, length, 8), start=start)


def test_rotary_positions_turn_each_pair_by_the_angle_of_its_position() -> None:
    x = draw(1, 1, 5, 6)

    turned = RotaryPositions()(x, start=2)

    for row in range(5):
        for pair in range(3):
            angle = (row + 2) / 10000 ** (2 * pair / 6)
            a, b = x[0, 0, row, 2 * pair : 2 * pair + 2].tolist()
            number = complex(a, b) * complex(math.cos(angle), math.sin(angle))
            result = turned[0, 0, row, 2 * pair : 2 * pair + 2].tolist()
            assert result == pytest.approx([number.real, number.imag], abs=1e-14)


def test_rotary_product_depends_on_the_distance_only() -> None:
    rotary = RotaryPositions()
    query, key = draw(1, 1, 1, 8, seed=1), draw(1, 1, 1, 8, seed=2)

    def product(query_position: int, key_position: int) -> float:
        turned_query, turned_key = rotary(query, query_position), rotary(key, key_position)
        return float((turned_query * turned_key).sum())

    for distance in (0, 1, 5, 40):
        first = product(distance, 0)
        for start in (1, 7, 100, 2000):
            # Angles up to 2000 hold 13 digits after the point.
            assert product(start + distance, start) == pytest.approx(first, abs=1e-11)
    assert product(0, 0) == pytest.approx(float((query * key).sum()), abs=1e-14)
    assert abs(product(1, 0) - product(0, 1)) > 1e-3


def test_rotary_positions_keep_every_length() -> None:
    x = draw(2, 3, 7, 8)

    turned = RotaryPositions()(x, start=500)

    # Double arithmetic: the squares of sine and cosine add up to 1 within a few units.
    assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("heads", [{"heads": 2}, {"heads": 3, "decoder_heads": 2}])
def test_rotary_positions_refuse_heads_of_odd_width(heads: dict[str, int]) -> None:
    shape: dict[str, Any] = {"width": 6, "encoder_layers": 1, "decoder_layers": 1, **heads}

    with pytest.raises(ValueError, match="rotary positions need heads of even width, got 3"):
        transformer_of(10, positions="rotary", **shape)
