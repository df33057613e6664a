"""Tests of self-attention against recurrence: what is measured, counted, and claimed."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from tfm_cli.model.layers import LayerShape
from tfm_cli.pictures import cost
from tfm_cli.pictures.cost import (
    ENCODER_LAYER,
    LENGTHS,
    LSTM,
    LSTM_OPEN,
    NAMES,
    SELF_ATTENTION,
    Cost,
    Repetitions,
    cost_page,
    cost_text,
    measure_cost,
)

SHAPE = LayerShape(
    width=16, heads=2, feed_forward_width=32, dropout=0.1, norm="post", activation="relu"
)


def clock(*steps: float) -> "itertools.accumulate[float]":
    """A clock that goes on by these steps, again and again."""
    return itertools.accumulate(itertools.cycle(steps), initial=0.0)


@pytest.fixture(scope="module")
def measured() -> Cost:
    """A measurement by a clock that goes on by a second at each look."""
    torch.set_num_threads(1)
    ticks = clock(1.0)
    return measure_cost(SHAPE, seconds=1e6, clock=lambda: next(ticks))


def test_every_length_is_measured_three_times_for_each_layer(measured: Cost) -> None:
    assert measured.lengths == LENGTHS
    assert measured.omitted_lengths == ()
    for layer in measured.layers:
        for times in (layer.update, layer.sentence):
            assert [each.values for each in times] == [(1.0,) * 3] * len(LENGTHS)


def test_long_sentences_are_left_out_if_time_does_not_suffice() -> None:
    ticks = clock(1.0)

    result = measure_cost(SHAPE, seconds=150, clock=lambda: next(ticks))

    assert 2 <= len(result.lengths) < len(LENGTHS)
    assert result.lengths + result.omitted_lengths == LENGTHS
    assert "left out for lack of time" in cost_text(result)


def test_short_sentences_are_measured_in_any_time() -> None:
    assert measure_cost(SHAPE, seconds=0.0).lengths == LENGTHS[:2]


def test_layers_are_measured_by_turns() -> None:
    subjects = cost._subjects(SHAPE, is_rotary=False)

    order = [subject.name for subject, _, _ in cost._schedule(subjects, [8])]

    a, b, c = NAMES
    assert order == [a, b, c, a, b, c, b, c, a, b, c, a, c, a, b, c, a, b]


def test_multiply_adds_are_those_that_torch_counts(measured: Cost) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for subject in cost._subjects(SHAPE, is_rotary=False)[:2]:  # torch does not count an LSTM's
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            subject.forward(torch.randn(1, 8, SHAPE.width))

        assert measured.layer(subject.name).multiply_adds[0] == counter.get_total_flops() // 2


def test_multiply_adds_of_an_lstm_are_its_matrices_at_each_step(measured: Cost) -> None:
    lstm = torch.nn.LSTM(SHAPE.width, SHAPE.width)
    matrices = sum(p.numel() for p in lstm.parameters() if p.ndim == 2)

    assert measured.layer(LSTM).multiply_adds == tuple(n * matrices for n in LENGTHS)


def test_operations_in_sequence_and_paths_grow_with_recurrence_only(measured: Cost) -> None:
    assert measured.layer(LSTM).sequential_operations == tuple(n + 1 for n in LENGTHS)
    assert measured.layer(LSTM).path_length == tuple(n - 1 for n in LENGTHS)
    for name in (SELF_ATTENTION, ENCODER_LAYER):
        assert len(set(measured.layer(name).sequential_operations)) == 1
        assert set(measured.layer(name).path_length) == {1}


def test_gradient_norm_is_that_of_the_jacobian() -> None:
    torch.manual_seed(3)
    (_, layer, _) = cost._subjects(SHAPE, is_rotary=False)
    norms = cost._gradient(layer, SHAPE.width, torch.Generator().manual_seed(5))
    drawn = torch.Generator().manual_seed(5)
    x = torch.randn(1, 64, SHAPE.width, generator=drawn, dtype=torch.float64)

    jacobian = torch.func.jacrev(lambda x: layer.forward(x)[0, -1])(x)  # (D, 1, N, D)
    exact = jacobian.square().sum(dim=(0, 1, 3)).sqrt().flip(0)

    torch.testing.assert_close(norms, exact, rtol=0.5, atol=0)  # of 16 random directions
    assert abs((norms / exact).mean() - 1) < 0.1


def test_gradient_of_an_lstm_falls_with_distance(measured: Cost) -> None:
    norms = {name: [each.median for each in each_of] for name, each_of in measured.gradient.items()}

    assert list(norms) == [ENCODER_LAYER, LSTM, LSTM_OPEN]
    assert norms[LSTM][63] < 1e-6 * norms[LSTM][1]
    assert norms[LSTM_OPEN][63] > norms[LSTM][63]
    assert norms[ENCODER_LAYER][63] > 0.1 * norms[ENCODER_LAYER][1]


def test_no_claim_where_ranges_overlap() -> None:
    assert Repetitions((1.0, 2.0, 3.0)).ratio(Repetitions((3.0, 4.0, 5.0))) is None
    assert Repetitions((3.5, 4.0, 5.0)).ratio(Repetitions((1.0, 2.0, 3.0))) == 2.0
    assert Repetitions((1.0, 2.0, 3.0)).ratio(Repetitions((3.5, 4.0, 5.0))) == 0.5


def test_text_claims_only_what_was_measured(measured: Cost) -> None:
    text = cost_text(measured)

    assert "no claim, since the ranges overlap, at 8, 16, 32, 64, 128, 256, 512 words" in text
    assert "faster" not in text
    assert "arXiv:1902.10186" in text
    assert measured.machine.processor in text
    assert "1 thread," in text


def test_rotary_positions_are_measured() -> None:
    result = measure_cost(SHAPE, is_rotary=True, seconds=0.0)

    assert math.isfinite(result.gradient[ENCODER_LAYER][63].median)


def test_json_has_all_numbers(measured: Cost) -> None:
    content = json.loads(json.dumps(measured.to_json(), allow_nan=False))

    assert content["layers"][2]["name"] == LSTM
    assert content["layers"][2]["sentence_seconds"][0] == [1.0, 1.0, 1.0]
    assert len(content["gradient"][LSTM]) == 64


@pytest.mark.parametrize("suffix", ["html", "svg"])
def test_page_shows_the_measurement(measured: Cost, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="pip install 'tfm-cli[pictures]'")
    path = tmp_path / f"cost.{suffix}"

    cost_page(measured).write(path)

    page = path.read_text("utf-8")
    for expected in ("One encoded sentence", "The gradient by distance", "1902.10186"):
        assert expected in page
