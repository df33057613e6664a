import math
from typing import Any

import pytest

from tests.decoding.searching import beam_search, greedy_search
from tests.decoding.table_model import EOS, START, TableModel, sources
from tfm_cli.decoding.interface import Hypothesis


def both(
    model: TableModel, tables: list[int], limits: list[int], banned: tuple[int, ...] = ()
) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """What greedy search finds, and a beam of one."""
    given: dict[str, Any] = {
        "limits": limits, "start_id": START, "eos_id": EOS, "banned_ids": banned,
    }  # fmt: skip
    greedy = greedy_search(model, sources(*tables), None, **given)
    beams = beam_search(model, sources(*tables), None, beam_size=1, **given)
    return greedy, [found for (found,) in beams]


def ids_of(found: list[Hypothesis]) -> list[tuple[int, ...]]:
    return [hypothesis.ids for hypothesis in found]


@pytest.mark.parametrize("banned", [(), (START,), (START, 2)])
@pytest.mark.parametrize("seed", range(30))
def test_finds_what_a_beam_of_one_finds(seed: int, banned: tuple[int, ...]) -> None:
    """Segments that end at different times, of themselves or since they have to."""
    model = TableModel(seed, num_tables=6)

    greedy, expected = both(model, [3, 0, 5, 1, 4, 2, 0], [6, 7, 0, 1, 7, 2, 3], banned)

    assert ids_of(greedy) == ids_of(expected)


@pytest.mark.parametrize("limit", range(8))
def test_limit_ends_a_translation(limit: int) -> None:
    model = TableModel(seed=limit)
    model.logits[..., EOS] -= 100

    greedy, expected = both(model, [0], [limit])

    assert len(greedy[0].ids) == limit
    assert ids_of(greedy) == ids_of(expected)


@pytest.mark.parametrize("seed", range(5))
def test_end_may_come_first(seed: int) -> None:
    model = TableModel(seed, num_tables=3)
    model.logits[1, 0, ..., EOS] += 100

    greedy, expected = both(model, [1, 0, 1, 2], [5, 5, 5, 5])

    assert greedy[0].ids == greedy[2].ids == ()
    assert ids_of(greedy) == ids_of(expected)


def test_no_step_is_taken_where_nothing_may_be_written() -> None:
    model = TableModel(0)

    result = greedy_search(model, sources(0, 0), None, limits=[0, 0], start_id=START, eos_id=EOS)

    assert ids_of(result) == [(), ()]
    assert model.rows_of_steps == []


def test_finished_segments_leave_the_batch() -> None:
    model = TableModel(1, num_tables=3)
    model.logits[..., EOS] -= 100

    greedy_search(model, sources(0, 1, 2), None, limits=[0, 3, 1], start_id=START, eos_id=EOS)

    assert model.rows_of_steps == [2, 1, 1]


def test_segments_found_together_are_found_as_alone() -> None:
    model = TableModel(2, num_tables=4)

    together, _ = both(model, [2, 0, 3, 1], [5, 3, 7, 1])

    for table, limit, result in zip([2, 0, 3, 1], [5, 3, 7, 1], together, strict=True):
        assert both(model, [table], [limit])[0][0].ids == result.ids


def test_scores_are_not_there() -> None:
    (result,), _ = both(TableModel(3), [0], [5])

    assert math.isnan(result.score)
    assert math.isnan(result.log_probability)
    assert result.token_log_probs == ()
