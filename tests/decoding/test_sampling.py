import math
from collections import Counter

import pytest
import torch

from tests.decoding.searching import beam_search, sample
from tests.decoding.table_model import (
    EOS,
    START,
    VOCAB,
    TableModel,
    forced_log_probability,
    log_probabilities,
    sources,
)
from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding import sampling
from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.decoding.sampling import uniform


def draw(
    model: TableModel,
    tables: list[int],
    seeds: list[int],
    *,
    limits: list[int] | None = None,
    banned: tuple[int, ...] = (),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[Hypothesis]:
    return sample(
        model, sources(*tables), None, limits=limits or [6] * len(tables), seeds=seeds,
        start_id=START, eos_id=EOS, banned_ids=banned, length_penalty=0.6,
        temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip


def first_pieces(model: TableModel, count: int, **how: float) -> list[float]:
    """How often each piece came first, as shares."""
    drawn = draw(model, [0] * count, list(range(count)), **how)  # type: ignore[arg-type]
    counts = Counter((*hypothesis.ids, EOS)[0] for hypothesis in drawn)
    return [counts[piece] / count for piece in range(VOCAB)]


def greedy_ids(model: TableModel, table: int) -> tuple[int, ...]:
    ((best,),) = beam_search(
        model, sources(table), None, limits=[6], start_id=START, eos_id=EOS, beam_size=1
    )
    return best.ids


def assert_shares(actual: list[float], expected: list[float], count: int) -> None:
    """Each share lies within four standard deviations."""
    for one, other in zip(actual, expected, strict=True):
        assert abs(one - other) <= 4 * math.sqrt(other * (1 - other) / count)


def test_same_seed_draws_the_same() -> None:
    model = TableModel(1)

    assert draw(model, [0] * 3, [5, 6, 7]) == draw(model, [0] * 3, [5, 6, 7])


def test_other_seeds_draw_otherwise() -> None:
    drawn = draw(TableModel(1, spread=0.5), [0] * 50, list(range(50)))

    assert len({hypothesis.ids for hypothesis in drawn}) > 10


@pytest.mark.parametrize("seed", range(5))
def test_what_is_drawn_does_not_depend_on_the_neighbors(seed: int) -> None:
    model = TableModel(seed, num_tables=4)
    tables, seeds, limits = [3, 1, 0, 2, 1], [9, 8, 7, 6, 5], [6, 2, 0, 5, 6]

    together = draw(model, tables, seeds, limits=limits)

    for table, chance, limit, result in zip(tables, seeds, limits, together, strict=True):
        assert [result] == draw(model, [table], [chance], limits=[limit])


@pytest.mark.parametrize("how", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-300}])
@pytest.mark.parametrize("seed", range(5))
def test_only_the_likeliest_left_is_greedy(seed: int, how: dict[str, float]) -> None:
    model = TableModel(seed)

    drawn = draw(model, [0] * 3, [1, 2, 3], **how)  # type: ignore[arg-type]

    assert {hypothesis.ids for hypothesis in drawn} == {greedy_ids(model, 0)}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_pieces_are_drawn_by_their_probability(temperature: float) -> None:
    model = TableModel(2)
    logits = model.logits[0, 0, START, START]

    shares = first_pieces(model, 4000, temperature=temperature)

    assert_shares(shares, (logits / temperature).softmax(0).tolist(), 4000)


def test_second_piece_is_drawn_by_its_probability_after_the_first() -> None:
    model = TableModel(2)

    drawn = draw(model, [0] * 4000, list(range(4000)))

    after_two = [hypothesis.ids for hypothesis in drawn if hypothesis.ids[:1] == (2,)]
    counts = Counter((*ids[1:], EOS)[0] for ids in after_two)
    shares = [counts[piece] / len(after_two) for piece in range(VOCAB)]
    expected = [math.exp(log_probability) for log_probability in log_probabilities(model, 0, [2])]
    assert_shares(shares, expected, len(after_two))


def test_top_k_draws_among_the_likeliest() -> None:
    model = TableModel(2)
    probs = model.logits[0, 0, START, START].softmax(0)
    least, *_, second, first = probs.argsort().tolist()

    shares = first_pieces(model, 2000, top_k=2)

    expected = [0.0] * VOCAB
    for piece in (first, second):
        expected[piece] = float(probs[piece] / (probs[first] + probs[second]))
    assert shares[least] == 0
    assert_shares(shares, expected, 2000)


def test_top_p_draws_among_the_fewest_that_reach_the_mass() -> None:
    model = TableModel(2)
    model.logits[0, 0, START, START] = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()

    assert_shares(first_pieces(model, 2000, top_p=0.7), [0, 2 / 3, 0, 1 / 3], 2000)
    assert_shares(first_pieces(model, 2000, top_p=0.8), [0, 5 / 9, 1.5 / 9, 2.5 / 9], 2000)


@pytest.mark.parametrize("limit", range(4))
def test_limit_forces_the_end(limit: int) -> None:
    model = TableModel(1)
    model.logits[..., EOS] -= 100

    drawn = draw(model, [0] * 4, [1, 2, 3, 4], limits=[limit] * 4)

    assert {len(hypothesis.ids) for hypothesis in drawn} == {limit}


def test_banned_pieces_are_never_drawn() -> None:
    drawn = draw(TableModel(1), [0] * 200, list(range(200)), banned=(START, 2))

    assert {piece for hypothesis in drawn for piece in hypothesis.ids} == {3}


@pytest.mark.parametrize("how", [{}, {"temperature": 2.0}, {"top_k": 2}, {"top_p": 0.8}])
def test_scores_are_the_models_own_whatever_was_drawn_among(how: dict[str, float]) -> None:
    model = TableModel(4)

    for hypothesis in draw(model, [0] * 5, [1, 2, 3, 4, 5], **how):  # type: ignore[arg-type]
        total = forced_log_probability(model, 0, hypothesis.ids)
        norm = (len(hypothesis.ids) + 1) ** 0.6
        assert math.isclose(hypothesis.log_probability, total, rel_tol=1e-9)
        assert math.isclose(hypothesis.score, total / norm, rel_tol=1e-9)


def drawn_by(
    logits: list[float], chance: float, *, temperature: float = 1.0, top_k: int = 0,
    top_p: float = 1.0,
) -> int:  # fmt: skip
    """The piece that a number in [0, 1) draws."""
    table = torch.tensor([logits])
    settings = SearchConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    return int(sampling._drawn(table, [chance], settings))


def shares_by(logits: list[float], **how: float) -> list[float]:
    """How often each piece is drawn by the numbers 1/2000, 3/2000 …, as shares."""
    chances = [(2 * number + 1) / 2000 for number in range(1000)]
    counts = Counter(drawn_by(logits, chance, **how) for chance in chances)  # type: ignore[arg-type]
    return [counts[piece] / 1000 for piece in range(len(logits))]


def test_pieces_lie_in_the_order_of_their_ids() -> None:
    logits = [math.log(share) for share in (0.25, 0.125, 0.5, 0.125)]

    drawn = [drawn_by(logits, chance) for chance in (0.0, 0.24, 0.26, 0.37, 0.38, 0.87, 0.88)]

    assert drawn == [0, 0, 1, 1, 2, 2, 3]


def test_a_border_belongs_to_the_piece_behind_it() -> None:
    assert drawn_by([0.0, 0.0], 0.5) == 1


def test_pieces_without_mass_are_never_drawn() -> None:
    logits = [-math.inf, 0.0, -math.inf, 0.0, -math.inf]

    assert [drawn_by(logits, chance) for chance in (0.0, 0.4999, 0.5, 1 - 2**-53)] == [1, 1, 3, 3]


def test_number_rounded_up_to_the_whole_mass_draws_the_last_piece_with_any() -> None:
    assert drawn_by([0.0, 0.0, -math.inf], 1.0) == 1


@pytest.mark.parametrize(("top_k", "expected"), [
    (0, [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
    (1, [1, 0, 0, 0]),
    (3, [1 / 3, 1 / 3, 1 / 3, 0]),
    (4, [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
    (9, [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
])  # fmt: skip
def test_lower_ids_are_kept_of_equally_likely_pieces(top_k: int, expected: list[float]) -> None:
    assert shares_by([1.0] * 4, top_k=top_k) == pytest.approx(expected, abs=1e-3)
    if top_k < 4:
        cut = shares_by([1.0] * 4, top_p=(top_k or 4) / 4)
        assert cut == pytest.approx(expected, abs=1e-3)


def test_mass_of_top_p_is_that_of_the_top_k() -> None:
    logits = [math.log(share) for share in (0.1, 0.5, 0.15, 0.25)]

    # 0.5 and 0.25 of 0.9, without the least: they reach 0.83, and the next is needed for 0.85.
    assert shares_by(logits, top_k=3, top_p=0.8)[2] == 0
    assert shares_by(logits, top_k=3, top_p=0.85)[2] == pytest.approx(1 / 6, abs=1e-3)


def test_draw_of_a_step_is_that_of_its_seed_and_number() -> None:
    model = TableModel(3)
    limits, seed = [3], 11

    (result,) = draw(model, [0], [seed], limits=limits)

    ids: list[int] = []
    while len(ids) < 3:
        older, newest = [START, START, *ids][-2:]
        logits = model.logits[0, len(ids), older, newest].tolist()
        piece = drawn_by(logits, uniform(seed, len(ids)))
        if piece == EOS:
            break
        ids.append(piece)
    assert result.ids == tuple(ids)


@pytest.mark.parametrize("how", [{}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.9}])
def test_counts_of_whole_translations_fit_their_probabilities(how: dict[str, float]) -> None:
    """Chi-square of 4,000 translations of at most two pieces against the exact probabilities."""
    model = TableModel(5)

    drawn = draw(model, [0] * 4000, list(range(4000)), limits=[2] * 4000, **how)  # type: ignore[arg-type]

    def after(ids: tuple[int, ...]) -> list[float]:
        older, newest = [START, START, *ids][-2:]
        logits = model.logits[0, len(ids), older, newest] / how.get("temperature", 1.0)
        probs = logits.softmax(0)
        order = probs.argsort(descending=True)[: int(how.get("top_k", VOCAB))]
        before = probs[order].cumsum(0) - probs[order]
        order = order[before < how.get("top_p", 1.0)]
        kept = torch.zeros(VOCAB, dtype=torch.float64)
        kept[order] = probs[order]
        return [float(share) for share in kept / kept.sum()]

    first = after(())
    expected: dict[tuple[int, ...], float] = {(): first[EOS]}
    for one in (1, 2, 3):
        second = after((one,))
        expected[(one,)] = first[one] * second[EOS]
        for two in (1, 2, 3):
            expected[(one, two)] = first[one] * second[two]
    counts = Counter(hypothesis.ids for hypothesis in drawn)
    assert {ids for ids, share in expected.items() if not share}.isdisjoint(counts)
    value = sum(
        (counts[ids] - 4000 * share) ** 2 / (4000 * share)
        for ids, share in expected.items()
        if share
    )
    assert value < 39.1  # 99.99 % of values with 12 degrees of freedom; fewer with fewer pieces
