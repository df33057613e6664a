import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.replay import ReplayedStep
from tests.decoding.searching import greedy_search
from tests.decoding.static_table import StaticTable, found_in, static_greedy
from tests.decoding.table_model import EOS, START, TableModel, sources
from tfm_cli.decoding.static import search as module


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

    found = found_in(static_greedy(StaticTable(model), banned), tables, limits)

    assert [each[0].ids for each in found] == greedily(model, tables, limits, banned)
    assert all(math.isnan(each[0].score) for each in found)
    assert all(math.isnan(each[0].log_probability) for each in found)


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
        found = found_in(search, tables, limits)
        assert [each[0].ids for each in found] == greedily(model, tables, limits)

    assert {shape.capacity for shape in table.shapes} == {4, 8}
    assert len({shape.segments for shape in table.shapes}) > 2
    assert ReplayedStep.replays > before
