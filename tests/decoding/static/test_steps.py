"""Steps of fixed shapes give the results of beam search and of greedy search."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.replay import ReplayedStep
from tests.decoding.searching import Rules, beam_search, greedy_search, rules
from tests.decoding.static_table import StaticTable, found_in, static_beams, static_greedy
from tests.decoding.table_model import EOS, START, TableModel, brute_force, sources
from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError
from tfm_cli.decoding.static import search as module

WIDEST = 256  # more than there are translations of 4 pieces


def with_beams(
    model: TableModel, tables: Sequence[int], limits: Sequence[int], how: Rules
) -> list[list[Hypothesis]]:
    """What `beam_search` finds, in the same single precision."""
    model.logits = model.logits.float()
    vocabulary, settings = how
    return beam_search(
        model, sources(*tables), None, limits=limits, vocabulary=vocabulary,
        settings=settings,
    )  # fmt: skip


def assert_same(actual: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[h.ids for h in each] for each in actual] == [
        [h.ids for h in each] for each in expected
    ]
    for ours, theirs in zip(actual, expected, strict=True):
        # Single precision: 6e-8 of each of a few sums of about 10.
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=2e-6)
        totals = [h.log_probability for h in theirs]
        assert [h.log_probability for h in ours] == pytest.approx(totals, abs=5e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    limits=st.lists(st.integers(0, 7), min_size=1, max_size=13),
    beam_size=st.sampled_from([1, 2, 3, 4, 7]),
    length_penalty=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    length_norm=st.sampled_from(["power", "wu"]),
    early_stopping=st.booleans(),
    renormalize=st.booleans(),
    banned_ids=st.sampled_from([(), (START,), (START, 2)]),
    reluctance=st.sampled_from([0.0, 3.0, -2.0]),
)
def test_any_search_finds_what_beam_search_finds(
    seed: int, limits: list[int], reluctance: float, **options: Any
) -> None:
    model = TableModel(seed, num_tables=3)
    model.logits[..., EOS] -= reluctance
    tables = [segment % 3 for segment in range(len(limits))]
    chosen = rules(START, EOS, **options)

    result = found_in(static_beams(StaticTable(model), chosen), tables, limits)

    assert_same(result, with_beams(model, tables, limits, chosen))


@pytest.mark.parametrize("seed", range(5))
def test_widest_beam_finds_every_sequence_in_the_order_of_scores(seed: int) -> None:
    model = TableModel(seed)
    how = rules(START, EOS, beam_size=WIDEST, length_penalty=0.6)

    (actual,) = found_in(static_beams(StaticTable(model), how), [0], [3])

    expected = brute_force(model, 0, limit=3, length_penalty=0.6)
    assert [hypothesis.ids for hypothesis in actual] == [hypothesis.ids for hypothesis in expected]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_segments_leave_rows_move_and_caches_grow(
    beam_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through all sizes and rooms, with recorded steps that two batches replay."""
    monkeypatch.setattr(module, "StepGraph", ReplayedStep)
    monkeypatch.setattr(module, "CAPACITY_BLOCK", 4)
    monkeypatch.setattr(module, "_FEW_SEGMENTS", 1)
    model = TableModel(4, num_tables=5)
    model.logits[..., EOS] -= 2.5
    table, how = StaticTable(model), rules(START, EOS, beam_size=beam_size)
    search = static_beams(table, how)
    before = ReplayedStep.replays

    for tables, limits in (
        ([0, 1, 2, 3, 4, 0, 1, 2, 3], [7, 1, 7, 3, 1, 1, 1, 2, 7]),
        ([4, 3, 2, 1, 0, 4, 3, 2], [0, 7, 7, 7, 7, 1, 1, 1]),
        ([0, 1, 2, 3, 4, 0, 1, 2, 3], [7, 7, 7, 1, 1, 1, 1, 1, 1]),
    ):
        assert_same(found_in(search, tables, limits), with_beams(model, tables, limits, how))

    assert {shape.capacity for shape in table.shapes} == {4, 8}
    assert len({shape.segments for shape in table.shapes}) > 3
    assert len(set(table.shapes)) == len(table.shapes)  # each was made once
    assert ReplayedStep.replays > before


@pytest.mark.parametrize("beam_size", [1, 2, 5])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_replayed_steps_find_what_beam_search_finds(
    beam_size: int, early_stopping: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "StepGraph", ReplayedStep)
    how = rules(START, EOS, (2,), beam_size=beam_size, early_stopping=early_stopping)
    model = TableModel(beam_size, num_tables=2)
    search = static_beams(StaticTable(model), how)

    for tables, limits in (([0, 1, 1], [7, 4, 2]), ([1, 0, 0], [1, 7, 6]), ([1, 1, 0], [5, 5, 5])):
        assert_same(found_in(search, tables, limits), with_beams(model, tables, limits, how))


def test_equal_scores_keep_the_hypothesis_that_ended_first() -> None:
    """Without a length penalty, </s> after certain pieces costs nothing more."""
    model = TableModel(0)
    model.logits = torch.full_like(model.logits, -50.0)
    model.logits[:, 0, ..., EOS] = 0.0
    model.logits[:, 0, ..., 2] = 0.0
    model.logits[:, 1:, ..., EOS] = 0.0  # after the second piece it ends for sure
    how = rules(START, EOS, beam_size=2, length_penalty=0.0)

    (result,) = found_in(static_beams(StaticTable(model), how), [0], [5])

    assert [hypothesis.ids for hypothesis in result] == [(), (2,)]
    assert result[0].score == result[1].score
    assert_same([result], with_beams(model, [0], [5], how))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_model_whose_scores_are_not_finite_is_refused(value: float) -> None:
    model = TableModel(0, num_tables=2)
    model.logits[1] = value
    how = rules(START, EOS, beam_size=2)

    with pytest.raises(NonFiniteScoresError):
        found_in(static_beams(StaticTable(model), how), [0, 1], [5, 5])
    with pytest.raises(NonFiniteScoresError):
        with_beams(model, [0, 1], [5, 5], how)


def test_batch_whose_memory_there_was_not_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = TableModel(0)
    table = StaticTable(model)
    search = static_beams(table, rules(START, EOS))
    found_in(search, [0], [3])

    def fails(*others: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(table, "encode", fails)
        with pytest.raises(torch.OutOfMemoryError):
            found_in(search, [0, 0], [3, 3])
    found_in(search, [0], [3])

    assert [shape.segments for shape in table.shapes] == [1, 2, 1]


@pytest.mark.parametrize(("name", "limit"), [("_MAX_STAGES", 2), ("_MAX_BYTES", 1)])
def test_old_stages_are_forgotten(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, limit)
    table = StaticTable(TableModel(0))
    search = static_beams(table, rules(START, EOS))

    for count in (1, 2, 1, 3, 1, 2):
        found_in(search, [0] * count, [3] * count)

    made = [shape.segments for shape in table.shapes]
    assert made == ([1, 2, 3, 2] if limit == 2 else [1, 2, 1, 3, 1, 2])


def greedily(
    model: TableModel, tables: list[int], limits: list[int], banned: tuple[int, ...] = ()
) -> list[tuple[int, ...]]:
    found = greedy_search(
        model, sources(*tables), None, limits=limits, start_id=START, eos_id=EOS, banned_ids=banned
    )
    return [hypothesis.ids for hypothesis in found]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    limits=st.lists(st.integers(0, 7), min_size=1, max_size=13),
    banned=st.sampled_from([(), (START,), (START, 2)]),
    reluctance=st.sampled_from([0.0, 3.0]),
)
def test_any_search_finds_what_greedy_search_finds(
    seed: int, limits: list[int], banned: tuple[int, ...], reluctance: float
) -> None:
    model = TableModel(seed, num_tables=3)
    model.logits[..., EOS] -= reluctance
    tables = [segment % 3 for segment in range(len(limits))]

    result = found_in(static_greedy(StaticTable(model), banned), tables, limits)

    assert [each[0].ids for each in result] == greedily(model, tables, limits, banned)
    assert all(math.isnan(each[0].score) for each in result)
    assert all(math.isnan(each[0].log_probability) for each in result)


def test_segments_leave_and_caches_grow_in_replayed_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "StepGraph", ReplayedStep)
    monkeypatch.setattr(module, "CAPACITY_BLOCK", 4)
    monkeypatch.setattr(module, "_FEW_SEGMENTS", 1)
    model = TableModel(4, num_tables=5)
    model.logits[..., EOS] -= 2.5
    table = StaticTable(model)
    search = static_greedy(table)
    before = ReplayedStep.replays

    for tables, limits in (
        ([0, 1, 2, 3, 4, 0, 1, 2, 3], [7, 1, 7, 3, 1, 1, 1, 2, 7]),
        ([4, 3, 2, 1, 0, 4, 3, 2], [0, 7, 7, 7, 7, 1, 1, 1]),
        ([4, 3, 2, 1, 0, 4, 3, 2], [7, 7, 7, 7, 7, 7, 7, 7]),
    ):
        result = found_in(search, tables, limits)
        assert [each[0].ids for each in result] == greedily(model, tables, limits)

    assert {shape.capacity for shape in table.shapes} == {4, 8}
    assert len({shape.segments for shape in table.shapes}) > 2
    assert ReplayedStep.replays > before
