"""Prepared models in fewer bits, and greedy search in prepared models."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.engine.small_models import (
    EOS,
    SHAPES,
    START,
    VOCAB,
    every_shape,
    model_of,
    source_of,
)
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.greedy import GreedyModel, greedy_search
from tfm_cli.decoding.hypothesis import Hypothesis, StateT, StepModel
from tfm_cli.engine import linear
from tfm_cli.engine.prepared import PreparedTransformer

LIMITS = [20, 3, 0, 33, 11]


@pytest.fixture(autouse=True)
def nothing_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices as small as those of these models would stay in fp32."""
    monkeypatch.setattr(linear, "_WORTH_ROUNDING", 0)


def logits_of(
    model: PreparedTransformer, source: Tensor, keep: Tensor | None, target: Tensor
) -> Tensor:
    """After each piece of the target (B, T), (B, T, V)."""
    state = model.start(source, keep)
    return torch.stack([model.step(column, state) for column in target.t()], dim=1)


@torch.inference_mode()
@pytest.mark.parametrize(("precision", "share"), [("bf16", 0.025), ("int8", 0.04)])
@every_shape
def test_logits_are_near_those_of_single_precision(
    shape: dict[str, Any], precision: str, share: float
) -> None:
    model = model_of(shape)
    source, keep = source_of(6, 2, 4)
    target = torch.randint(4, VOCAB, (3, 12))
    wanted = logits_of(PreparedTransformer(model), source, keep, target)

    found = logits_of(PreparedTransformer(model, precision), source, keep, target)

    # A product's factors are off by 2 parts in 1000 in bf16, and in int8 by half a 127th of the
    # peak, 1 in 100 of a usual element. A dozen products follow on each other, whose errors are
    # independent and add up to a few times that; twice what was found.
    assert found.dtype == torch.float32
    assert float((found - wanted).norm() / wanted.norm()) < share
    assert not torch.equal(found, wanted)


def greedily(model: StepModel[StateT], source: Tensor, keep: Tensor | None) -> list[Any]:
    found = greedy_search(
        model, source, keep, limits=LIMITS, start_id=START, eos_id=EOS, banned_ids=(0, 1, 7)
    )
    return [hypothesis.ids for hypothesis in found]


def with_beams(
    model: StepModel[StateT], source: Tensor, keep: Tensor | None, beam_size: int = 1
) -> list[list[Hypothesis]]:
    return beam_search(
        model, source, keep, limits=LIMITS, start_id=START, eos_id=EOS, banned_ids=(0, 1, 7),
        beam_size=beam_size,
    )  # fmt: skip


@torch.inference_mode()
@every_shape
def test_greedy_search_finds_what_a_beam_of_one_finds(shape: dict[str, Any]) -> None:
    """Segments that leave the batch at different times, in the model and in the prepared one."""
    model = model_of(shape)
    source, keep = source_of(7, 3, 2, 1, 5)
    wanted = [found.ids for (found,) in with_beams(model, source, keep)]

    prepared = PreparedTransformer(model)

    assert isinstance(prepared, GreedyModel)
    assert not isinstance(model, GreedyModel)
    assert greedily(model, source, keep) == wanted
    assert greedily(prepared, source, keep) == wanted
    assert [found.ids for (found,) in with_beams(prepared, source, keep)] == wanted
    assert len({len(ids) for ids in wanted}) > 2


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@every_shape
def test_greedy_search_in_fewer_bits_follows_its_own_hidden_states(
    shape: dict[str, Any], precision: str
) -> None:
    """Each piece has the largest logit that fp32 weights give the hidden state."""
    model = model_of(shape)
    prepared = PreparedTransformer(model, precision)
    source, keep = source_of(7, 3, 2, 1, 5)
    banned = torch.tensor([0, 1, 7])
    state, other = prepared.start(source, keep), prepared.start(source, keep)
    pieces = torch.full((5,), START)

    for _ in range(6):
        hidden = prepared._hidden(pieces, other).double()
        bias = 0 if model.output_bias is None else model.output_bias
        logits = hidden @ model.output_weight.double().t() + bias
        pieces = prepared.step_greedily(pieces, state, banned)

        assert pieces.tolist() == logits.index_fill(1, banned, -math.inf).argmax(1).tolist()
        # Where that piece may not follow: the logits that it was chosen by, of some rows.
        again = prepared.last_logits(state, torch.tensor([len(pieces) - 1, 0]))
        assert_close(again.double(), logits[[-1, 0]], atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
def test_wide_beams_of_long_translations(shape: dict[str, Any]) -> None:
    """Caches that grow several times, while segments leave and beams change places."""
    model = model_of(shape)
    source, keep = source_of(7, 3, 2, 9, 5)

    wanted = with_beams(model, source, keep, beam_size=5)
    found = with_beams(PreparedTransformer(model), source, keep, beam_size=5)

    assert max(len(each[0].ids) for each in wanted) > 16
    for ours, theirs in zip(found, wanted, strict=True):
        assert [h.ids for h in ours] == [h.ids for h in theirs]
        # Single precision, sums in another order, over some thirty pieces.
        scores = [h.log_probability for h in theirs]
        assert [h.log_probability for h in ours] == pytest.approx(scores, abs=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_segments_searched_together_are_found_as_alone(precision: str, beam_size: int) -> None:
    """Not so in int8, whose scales are those of a whole batch."""
    prepared = PreparedTransformer(model_of(SHAPES[1]), precision)
    source, _ = source_of(5, 5, 5, 5, 5)

    together = with_beams(prepared, source, None, beam_size)

    for row, limit in enumerate(LIMITS):
        (alone,) = beam_search(
            prepared, source[row : row + 1], None, limits=[limit], start_id=START, eos_id=EOS,
            banned_ids=(0, 1, 7), beam_size=beam_size,
        )  # fmt: skip
        assert together[row][0].ids == alone[0].ids
