import math

import pytest
import torch

from tests.decoding.searching import beam_search
from tests.decoding.table_model import (
    EOS,
    START,
    TableModel,
    brute_force,
    forced_log_probability,
    log_probabilities,
    sources,
)
from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding import beam as beam_module
from tfm_cli.decoding.beam import SearchStep
from tfm_cli.decoding.interface import DecodingOptions, Hypothesis, TargetVocabulary

WIDEST = 256  # more than there are translations of 4 pieces


def search(
    model: TableModel,
    tables: list[int],
    limits: list[int],
    *,
    beam_size: int = WIDEST,
    length_penalty: float = 1.0,
    length_norm: str = "power",
    early_stopping: bool = False,
    banned: tuple[int, ...] = (),
) -> list[list[Hypothesis]]:
    return beam_search(
        model, sources(*tables), None, limits=limits, start_id=START, eos_id=EOS,
        banned_ids=banned, beam_size=beam_size, length_penalty=length_penalty,
        length_norm=length_norm, early_stopping=early_stopping,
    )  # fmt: skip


def assert_same(actual: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [hypothesis.ids for hypothesis in actual] == [hypothesis.ids for hypothesis in expected]
    for one, other in zip(actual, expected, strict=True):
        assert math.isclose(one.log_probability, other.log_probability, rel_tol=1e-9)
        assert math.isclose(one.score, other.score, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("length_norm", "length_penalty"), [("power", 0.0), ("power", 1.0), ("wu", 0.6), ("wu", 1.0)]
)
@pytest.mark.parametrize("seed", range(30))
def test_widest_beam_finds_every_sequence_in_the_order_of_scores(
    seed: int, length_norm: str, length_penalty: float
) -> None:
    model = TableModel(seed)

    (actual,) = search(model, [0], [4], length_penalty=length_penalty, length_norm=length_norm)

    expected = brute_force(
        model, 0, limit=4, length_penalty=length_penalty, length_norm=length_norm
    )
    assert_same(actual, expected)


@pytest.mark.parametrize("limit", range(5))
def test_limit_forces_the_end(limit: int) -> None:
    model = TableModel(seed=limit)
    model.logits[..., EOS] -= 100  # it never ends of its own accord

    (result,) = search(model, [0], [limit], beam_size=3)

    assert {len(hypothesis.ids) for hypothesis in result} == {limit}
    assert result[0].log_probability < -90  # an end that is forced is as unlikely as it is


@pytest.mark.parametrize("beam_size", [1, 2, 3, WIDEST])
@pytest.mark.parametrize("seed", range(10))
def test_segments_searched_together_are_found_as_alone(seed: int, beam_size: int) -> None:
    model = TableModel(seed, num_tables=4)
    tables, limits = [2, 0, 3, 1, 2], [3, 0, 4, 2, 1]

    together = search(model, tables, limits, beam_size=beam_size)

    for table, limit, result in zip(tables, limits, together, strict=True):
        (alone,) = search(model, [table], [limit], beam_size=beam_size)
        assert_same(result, alone)


@pytest.mark.parametrize("seed", range(10))
def test_scores_are_those_of_the_model(seed: int) -> None:
    model = TableModel(seed)

    (result,) = search(model, [0], [6], beam_size=3, length_penalty=0.6, length_norm="wu")

    for hypothesis in result:
        total = forced_log_probability(model, 0, hypothesis.ids)
        norm = ((5 + len(hypothesis.ids) + 1) / 6) ** 0.6
        assert math.isclose(hypothesis.log_probability, total, rel_tol=1e-9)
        assert math.isclose(hypothesis.score, total / norm, rel_tol=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_hypotheses_are_distinct_and_best_first(seed: int) -> None:
    (result,) = search(TableModel(seed), [0], [6], beam_size=5)

    scores = [hypothesis.score for hypothesis in result]
    assert len(result) == 5
    assert len({hypothesis.ids for hypothesis in result}) == 5
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("seed", range(30))
def test_beam_of_one_is_greedy(seed: int) -> None:
    model = TableModel(seed)
    greedy: list[int] = []
    while len(greedy) < 6:
        after = log_probabilities(model, 0, greedy)
        if after.index(max(after)) == EOS:
            break
        greedy.append(after.index(max(after)))

    ((result,),) = search(model, [0], [6], beam_size=1)

    assert result.ids == tuple(greedy)


@pytest.mark.parametrize(("beam_size", "rows"), [(1, [3, 2, 1, 1]), (2, [3, 2 * 2, 1 * 2, 1 * 2])])
def test_finished_segments_leave_the_batch(beam_size: int, rows: list[int]) -> None:
    model = TableModel(seed=1, num_tables=3)
    model.logits[..., EOS] -= 100

    search(model, [0, 1, 2], [0, 3, 1], beam_size=beam_size)

    assert model.rows_of_steps == rows


@pytest.mark.parametrize("seed", range(10))
def test_banned_pieces_are_never_written_but_keep_their_probability(seed: int) -> None:
    model = TableModel(seed)

    (result,) = search(model, [0], [4], banned=(START, 2))

    assert_same(result, brute_force(model, 0, limit=4, length_penalty=1.0, banned=(START, 2)))
    assert {piece for hypothesis in result for piece in hypothesis.ids} == {3}


@pytest.mark.parametrize("seed", range(10))
def test_renormalized_probabilities_of_all_that_may_be_written_sum_to_one(seed: int) -> None:
    model, allowed = TableModel(seed), TableModel(seed)
    allowed.logits[..., [START, 2]] = -math.inf

    (result,) = beam_search(
        model, sources(0), None, limits=[4], start_id=START, eos_id=EOS, banned_ids=(START, 2),
        beam_size=WIDEST, renormalize=True,
    )  # fmt: skip

    assert_same(result, brute_force(allowed, 0, limit=4, length_penalty=1.0, banned=(START, 2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_single(dtype: torch.dtype) -> None:
    model = TableModel(seed=3)
    model.logits = model.logits.to(dtype)

    (result,) = search(model, [0], [4], beam_size=2)

    total = forced_log_probability(model, 0, result[0].ids)
    assert math.isclose(result[0].log_probability, total, rel_tol=1e-5)  # single has 7 digits


@pytest.fixture
def poor_and_short() -> TableModel:
    """Short hypotheses end early and are poor; the good one ends after six pieces.

    Piece 2 follows on piece 2 with a probability of 0.95 and </s> with 0.05, so that a short
    hypothesis finishes at each step; from the seventh step on </s> is all but certain.
    """
    model = TableModel(0)
    model.logits = torch.full_like(model.logits, -6.0)
    model.logits[..., 2] = 0.0
    model.logits[..., EOS] = -3.0
    model.logits[:, 6:, ..., EOS] = 8.0
    return model


def test_early_stopping_ends_with_as_many_hypotheses_as_the_beam(
    poor_and_short: TableModel,
) -> None:
    (result,) = search(poor_and_short, [0], [7], beam_size=3, early_stopping=True)

    assert max(len(hypothesis.ids) for hypothesis in result) == 2


def test_without_early_stopping_poor_short_hypotheses_do_not_end_the_search(
    poor_and_short: TableModel,
) -> None:
    (result,) = search(poor_and_short, [0], [7], beam_size=3)

    assert result[0].ids == (2,) * 6


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_search_goes_on_while_the_worst_of_the_finished_may_be_beaten(
    seed: int, length_penalty: float
) -> None:
    """The stopping rule as a plain loop over lists, without early stopping."""
    model, beam_size, limit = TableModel(seed), 3, 6
    growing: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, limit + 2):
        continued = sorted(
            (
                (total + log_probability, (*ids, piece))
                for total, ids in growing
                for piece, log_probability in enumerate(log_probabilities(model, 0, ids))
                if length <= limit or piece == EOS
            ),
            reverse=True,
        )[: 2 * beam_size]
        for total, ids in continued[:beam_size]:
            if ids[-1] == EOS:
                finished.append((total / length**length_penalty, ids[:-1]))
        growing = [(total, ids) for total, ids in continued if ids[-1] != EOS][:beam_size]
        finished = sorted(finished, reverse=True)[:beam_size]
        hope = growing[0][0] / length**length_penalty if growing else -math.inf
        if len(finished) == beam_size and finished[-1][0] >= hope:
            break

    (result,) = search(model, [0], [limit], beam_size=beam_size, length_penalty=length_penalty)

    assert [hypothesis.ids for hypothesis in result] == [ids for _, ids in finished]


@pytest.mark.parametrize("beam_size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_observed_steps_spell_the_hypotheses(seed: int, beam_size: int) -> None:
    model = TableModel(seed, num_tables=2)
    steps: list[SearchStep] = []

    found = beam_module.beam_search(
        model, sources(0, 1), None, limits=[4, 3],
        vocabulary=TargetVocabulary(START, EOS),
        options=DecodingOptions(settings=SearchConfig(beam_size=beam_size)), observer=steps.append,
    )  # fmt: skip

    growing: dict[tuple[int, int], tuple[int, ...]] = {(0, 0): (), (1, 0): ()}
    finished: list[list[tuple[tuple[int, ...], float]]] = [[], []]
    for step in steps:
        children = {}
        for row, segment in enumerate(step.segments):
            for place, parent in enumerate(step.parents[row].tolist()):
                written = growing[segment, parent]
                if step.finished[row, place]:
                    finished[segment].append((written, float(step.scores[row, place])))
                if (beam := int(step.beams[row, place])) >= 0:
                    children[segment, beam] = (*written, int(step.tokens[row, place]))
        growing = children
    for hypotheses, observed in zip(found, finished, strict=True):
        best = sorted(observed, key=lambda each: -each[1])[:beam_size]
        assert [h.ids for h in hypotheses] == [ids for ids, _ in best]
        assert [h.score for h in hypotheses] == pytest.approx([score for _, score in best])
