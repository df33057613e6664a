import itertools
import math

import pytest
import torch

from tests.decoding.searching import beam_search, sample
from tests.decoding.table_model import EOS, START, VOCAB, TableModel, log_probabilities, sources
from tfm_cli.decoding.ensemble import Ensemble
from tfm_cli.decoding.interface import Hypothesis


def search(
    models: list[TableModel], tables: list[int], limits: list[int], *, beam_size: int = 256
) -> list[list[Hypothesis]]:
    return beam_search(
        Ensemble(models), sources(*tables), None, limits=limits, start_id=START, eos_id=EOS,
        beam_size=beam_size,
    )  # fmt: skip


def mean_log_probability(models: list[TableModel], ids: tuple[int, ...], table: int = 0) -> float:
    """Log-probability of these pieces and </s>, where each has the mean of its probabilities."""
    pieces = (*ids, EOS)
    return sum(
        math.log(
            sum(math.exp(log_probabilities(m, table, pieces[:step])[piece]) for m in models)
            / len(models)
        )
        for step, piece in enumerate(pieces)
    )


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_widest_beam_finds_every_sequence_by_the_mean_of_the_probabilities(
    seed: int, count: int
) -> None:
    models = [TableModel(10 * seed + number) for number in range(count)]
    expected = sorted(
        (
            (mean_log_probability(models, ids) / (length + 1), ids)
            for length in range(4)
            for ids in itertools.product(range(1, VOCAB), repeat=length)
        ),
        reverse=True,
    )

    (actual,) = search(models, [0], [3])

    assert [hypothesis.ids for hypothesis in actual] == [ids for _, ids in expected]
    assert [hypothesis.score for hypothesis in actual] == pytest.approx(
        [score for score, _ in expected], rel=1e-9
    )


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_segments_searched_together_are_found_as_alone(seed: int, beam_size: int) -> None:
    models = [TableModel(10 * seed + number, num_tables=4) for number in range(2)]
    tables, limits = [2, 0, 3, 1, 2], [3, 0, 4, 2, 1]

    together = search(models, tables, limits, beam_size=beam_size)

    for table, limit, result in zip(tables, limits, together, strict=True):
        (alone,) = search(models, [table], [limit], beam_size=beam_size)
        assert [hypothesis.ids for hypothesis in result] == [hypothesis.ids for hypothesis in alone]


@pytest.mark.parametrize("seed", range(5))
def test_model_twice_is_the_model(seed: int) -> None:
    model = TableModel(seed)

    (actual,) = search([model, TableModel(seed)], [0], [4], beam_size=3)

    (expected,) = beam_search(
        model, sources(0), None, limits=[4], start_id=START, eos_id=EOS, beam_size=3
    )
    assert [hypothesis.ids for hypothesis in actual] == [hypothesis.ids for hypothesis in expected]


def test_draws_have_the_mean_of_the_probabilities() -> None:
    models = [TableModel(1, num_tables=2), TableModel(2, num_tables=2)]

    drawn = sample(
        Ensemble(models), sources(0, 1, 0), None, limits=[4, 2, 6], seeds=[1, 2, 3],
        start_id=START, eos_id=EOS,
    )  # fmt: skip

    for table, hypothesis in zip((0, 1, 0), drawn, strict=True):
        expected = mean_log_probability(models, hypothesis.ids, table)
        assert hypothesis.log_probability == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_single(dtype: torch.dtype) -> None:
    models = [TableModel(1), TableModel(2)]
    for model in models:
        model.logits = model.logits.to(dtype)

    ((actual, *_),) = search(models, [0], [4], beam_size=2)

    expected = mean_log_probability(models, actual.ids)
    assert actual.log_probability == pytest.approx(expected, rel=1e-5)  # single has 7 digits
