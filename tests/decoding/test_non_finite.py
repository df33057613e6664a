"""Every search refuses a model whose scores are not finite numbers, from whichever step on."""

import math
from collections.abc import Callable

import pytest

from tests.decoding.searching import beam_search, greedy_search, rules, sample
from tests.decoding.static_table import StaticTable, found_in, static_beams, static_greedy
from tests.decoding.table_model import EOS, START, TableModel, TableState, sources
from tfm_cli.decoding.ensemble import Ensemble
from tfm_cli.decoding.interface import NonFiniteScoresError

LIMITS = [5, 5]


def _beam(model: TableModel) -> None:
    beam_search(model, sources(0, 1), None, limits=LIMITS, start_id=START, eos_id=EOS)


def _renormalized(model: TableModel) -> None:
    beam_search(
        model, sources(0, 1), None, limits=LIMITS, start_id=START, eos_id=EOS, beam_size=2,
        renormalize=True, banned_ids=(2,), repetition_penalty=2, no_repeat_ngram_size=2,
    )  # fmt: skip


def _ensemble(model: TableModel) -> None:
    both: Ensemble[TableState] = Ensemble([TableModel(5, num_tables=2), model])
    beam_search(both, sources(0, 1), None, limits=LIMITS, start_id=START, eos_id=EOS)


def _greedy(model: TableModel) -> None:
    greedy_search(model, sources(0, 1), None, limits=LIMITS, start_id=START, eos_id=EOS)


def _sampling(model: TableModel) -> None:
    sample(model, sources(0, 1), None, limits=LIMITS, seeds=[1, 2], start_id=START, eos_id=EOS)


def _static_greedy(model: TableModel) -> None:
    found_in(static_greedy(StaticTable(model)), [0, 1], LIMITS)


def _static_beams(model: TableModel) -> None:
    found_in(static_beams(StaticTable(model), rules(START, EOS, beam_size=2)), [0, 1], LIMITS)


SEARCHES = [_beam, _renormalized, _ensemble, _greedy, _sampling, _static_greedy, _static_beams]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(
    value: float, step: int, search: Callable[[TableModel], None]
) -> None:
    model = TableModel(3, num_tables=2)
    model.logits[..., EOS] -= 30  # so that no translation ends before
    search(model)

    model.logits[1, step:] = value

    with pytest.raises(NonFiniteScoresError):
        search(model)


@pytest.mark.parametrize("search", [_beam, _sampling])
def test_impossible_end_at_the_limit_is_refused(search: Callable[[TableModel], None]) -> None:
    model = TableModel(3, num_tables=2)

    model.logits[..., EOS] = -math.inf

    with pytest.raises(NonFiniteScoresError):
        search(model)
