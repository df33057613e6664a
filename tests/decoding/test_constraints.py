"""Forced prefixes, runs that are not repeated, and penalties, beside plain loops over floats."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from tests.decoding.searching import beam_search, sample
from tests.decoding.table_model import (
    EOS,
    START,
    VOCAB,
    TableModel,
    log_probabilities,
    sources,
)
from tfm_cli.decoding.constraints import Constraints
from tfm_cli.decoding.interface import Hypothesis

WIDEST = 256  # more than there are translations of 4 pieces
LIMIT = 4


@dataclass(frozen=True)
class Rules:
    """What is asked of a search."""

    prefix: tuple[int, ...] = ()
    ngram: int = 0
    penalty: float = 1.0
    banned: tuple[int, ...] = ()
    renormalize: bool = False


def search(
    model: TableModel,
    tables: Sequence[int],
    rules: Sequence[Rules],
    *,
    limits: Sequence[int] = (),
    beam_size: int = WIDEST,
    start_id: int = START,
    token_log_probs: bool = False,
) -> list[list[Hypothesis]]:
    """Beam search in a batch, a rule for each segment; they differ in the prefix alone."""
    return beam_search(
        model, sources(*tables), None, limits=limits or [LIMIT] * len(tables),
        start_id=start_id, eos_id=EOS, banned_ids=rules[0].banned, beam_size=beam_size,
        renormalize=rules[0].renormalize, no_repeat_ngram_size=rules[0].ngram,
        repetition_penalty=rules[0].penalty, prefixes=[rule.prefix for rule in rules],
        token_log_probs=token_log_probs,
    )  # fmt: skip


def draw(model: TableModel, rules: Rules, seeds: Sequence[int]) -> list[Hypothesis]:
    count = len(seeds)
    return sample(
        model, sources(*[0] * count), None, limits=[LIMIT] * count, seeds=seeds,
        start_id=START, eos_id=EOS, banned_ids=rules.banned, renormalize=rules.renormalize,
        no_repeat_ngram_size=rules.ngram, repetition_penalty=rules.penalty,
        prefixes=[rules.prefix] * count, token_log_probs=True,
    )  # fmt: skip


def may_follow(written: Sequence[int], rules: Rules) -> list[int]:
    """The pieces that may stand behind these, but for the limit."""
    step = len(written)
    if step < len(rules.prefix):
        return [rules.prefix[step]]
    return [piece for piece in range(VOCAB) if is_free(written, piece, rules)]


def is_free(written: Sequence[int], piece: int, rules: Rules) -> bool:
    """Whether a piece is neither banned nor the end of a run that was there before."""
    longer = (*written, piece)
    runs = [longer[i : i + rules.ngram] for i in range(len(longer) - rules.ngram + 1)]
    repeats = rules.ngram > 0 and bool(runs) and runs[-1] in runs[:-1]
    return piece not in rules.banned and not repeats


def token_log_probs(
    model: TableModel, ids: Sequence[int], rules: Rules, table: int = 0
) -> list[float]:
    """Log-probability of each of these pieces and of </s>."""
    found = []
    for step, piece in enumerate((*ids, EOS)):
        written = ids[:step]
        older, newest = [START, START, *written][-2:]
        logits = model.logits[table, step, older, newest].tolist()
        for old in set(written):
            logits[old] = logits[old] * rules.penalty ** (-1 if logits[old] > 0 else 1)
        counted = [
            logit
            for other, logit in enumerate(logits)
            if not rules.renormalize or other == piece or is_free(written, other, rules)
        ]
        found.append(logits[piece] - math.log(sum(math.exp(logit) for logit in counted)))
    return found


def every_translation(
    model: TableModel, rules: Rules, *, table: int = 0, limit: int = LIMIT
) -> list[Hypothesis]:
    """All that the rules let be written, best first."""
    hypotheses = []
    for length in range(limit + 1):
        for ids in itertools.product(
            [piece for piece in range(VOCAB) if piece != EOS], repeat=length
        ):
            pieces = (*ids, EOS)
            if all(p in may_follow(ids[:step], rules) for step, p in enumerate(pieces)):
                each = token_log_probs(model, ids, rules, table)
                total = sum(each)
                hypotheses.append(Hypothesis(ids, total, total / len(pieces), tuple(each)))
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)


def assert_same(actual: Sequence[Hypothesis], expected: Sequence[Hypothesis]) -> None:
    """The same translations, the same probabilities; of scores too where both have them."""
    assert [hypothesis.ids for hypothesis in actual] == [hypothesis.ids for hypothesis in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-9)
        assert one.score == pytest.approx(other.score, rel=1e-9)
        if one.token_log_probs and other.token_log_probs:
            assert one.token_log_probs == pytest.approx(other.token_log_probs, rel=1e-9, abs=1e-12)


RULES = [
    Rules(prefix=(2,)),
    Rules(prefix=(3, 3, 2)),
    Rules(prefix=(1, 2, 3, 1)),  # as long as a translation may be
    Rules(ngram=1),
    Rules(ngram=2),
    Rules(ngram=3),
    Rules(ngram=9),
    Rules(penalty=1.7),
    Rules(penalty=0.5),
    Rules(ngram=2, renormalize=True),
    Rules(ngram=2, penalty=3.0, banned=(START,)),
    Rules(prefix=(2, 2, 2), ngram=2),  # it repeats itself all the same
    Rules(prefix=(START, 3), banned=(START,)),  # and has what is not written otherwise
    Rules(prefix=(START, START), ngram=1, penalty=1.3, banned=(START, 2), renormalize=True),
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_widest_beam_finds_all_that_the_rules_let_be_written(seed: int, rules: Rules) -> None:
    model = TableModel(seed)

    (result,) = search(model, [0], [rules], token_log_probs=True)

    assert_same(result, every_translation(model, rules))


@pytest.mark.parametrize("beam_size", [1, 2, 3, WIDEST])
@pytest.mark.parametrize("seed", range(10))
def test_segments_with_and_without_a_prefix_are_searched_together(
    seed: int, beam_size: int
) -> None:
    model = TableModel(seed, num_tables=4)
    tables, limits = [2, 0, 3, 1, 2], [3, 2, 4, 2, 1]
    prefixes = [(2, 3), (), (1, 1, 2, 3), (3,), ()]
    rules = [Rules(prefix=prefix, ngram=3) for prefix in prefixes]

    together = search(
        model, tables, rules, limits=limits, beam_size=beam_size, token_log_probs=True
    )

    for table, limit, rule, result in zip(tables, limits, rules, together, strict=True):
        (alone,) = search(
            model, [table], [rule], limits=[limit], beam_size=beam_size, token_log_probs=True
        )
        assert_same(result, alone)
        assert {hypothesis.ids[: len(rule.prefix)] for hypothesis in result} == {rule.prefix}
        if beam_size == WIDEST:
            assert_same(result, every_translation(model, rule, table=table, limit=limit))


@pytest.mark.parametrize("seed", range(10))
def test_greedy_search_goes_on_behind_a_prefix(seed: int) -> None:
    model, prefix = TableModel(seed), (3, 1)
    greedy = list(prefix)
    while len(greedy) < 6:
        after = log_probabilities(model, 0, greedy)
        if after.index(max(after)) == EOS:
            break
        greedy.append(after.index(max(after)))

    ((result,),) = search(model, [0], [Rules(prefix=prefix)], limits=[6], beam_size=1)

    assert result.ids == tuple(greedy)


def test_end_is_never_penalized_even_where_it_is_the_start() -> None:
    model = TableModel(3)
    rules = Rules(penalty=100.0, ngram=1)

    ((result, *_),) = search(model, [0], [rules], limits=[0], start_id=EOS, token_log_probs=True)

    logits = model.logits[0, 0, START, EOS]  # the table calls every older piece START
    assert result.log_probability == pytest.approx(float(logits.log_softmax(0)[EOS]), rel=1e-9)


def test_logits_of_the_model_are_left_as_they_are() -> None:
    logits = torch.randn(2, VOCAB)
    before = logits.clone()
    constraints = Constraints(
        torch.tensor([3]), EOS, no_repeat_ngram_size=2, repetition_penalty=2.0
    )

    constraints.apply(logits, torch.tensor([[2, 2, 2], [1, 2, 1]]), torch.tensor([3, -1]))

    torch.testing.assert_close(logits, before, rtol=0, atol=0)


def test_nothing_is_computed_where_nothing_is_asked_for() -> None:
    logits, nothing = torch.randn(2, VOCAB), torch.tensor([], dtype=torch.long)

    weighed, allowed = Constraints(nothing, EOS).apply(logits, torch.tensor([[2, 2], [1, 2]]))

    assert weighed is logits
    assert allowed is logits


# --- scores of the pieces ------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("seed", range(10))
def test_scores_of_the_pieces_are_the_models_and_sum_to_that_of_the_search(
    seed: int, beam_size: int
) -> None:
    model = TableModel(seed, num_tables=2)

    for table, actual in enumerate(
        search(
            model, [0, 1], [Rules()] * 2, limits=[6, 3], beam_size=beam_size, token_log_probs=True
        )
    ):
        for hypothesis in actual:
            pieces = (*hypothesis.ids, EOS)
            expected = [
                log_probabilities(model, table, pieces[:step])[piece]
                for step, piece in enumerate(pieces)
            ]
            assert hypothesis.token_log_probs == pytest.approx(expected, rel=1e-9)
            assert sum(hypothesis.token_log_probs) == pytest.approx(
                hypothesis.log_probability, rel=1e-12
            )


@pytest.mark.parametrize("beam_size", [1, 3])
def test_scores_of_the_pieces_change_nothing_else(beam_size: int) -> None:
    model = TableModel(5)

    (plain,) = search(model, [0], [Rules()], beam_size=beam_size)
    (scored,) = search(model, [0], [Rules()], beam_size=beam_size, token_log_probs=True)

    assert_same(plain, scored)
    assert {hypothesis.token_log_probs for hypothesis in plain} == {()}


# --- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_what_is_drawn_obeys_the_rules_and_has_their_probability(rules: Rules) -> None:
    model = TableModel(4)
    possible = {h.ids: h for h in every_translation(model, rules)}

    for hypothesis in draw(model, rules, range(30)):
        expected = possible[hypothesis.ids]
        assert hypothesis.log_probability == pytest.approx(expected.log_probability, rel=1e-9)
        assert hypothesis.token_log_probs == pytest.approx(
            expected.token_log_probs, rel=1e-9, abs=1e-12
        )


@pytest.mark.parametrize(
    "rules", [Rules(prefix=(2,)), Rules(prefix=(2,), ngram=1), Rules(prefix=(2,), penalty=3.0)],
    ids=str,
)  # fmt: skip
def test_piece_behind_a_prefix_is_drawn_by_its_probability(rules: Rules) -> None:
    model, count = TableModel(2), 3000
    logits = model.logits[0, 1, START, 2].clone()
    if rules.penalty != 1:
        logits[2] = logits[2] / 3 if logits[2] > 0 else logits[2] * 3
    if rules.ngram:
        logits[2] = -math.inf

    drawn = draw(model, rules, range(count))

    counts = Counter((*hypothesis.ids[1:], EOS)[0] for hypothesis in drawn)
    for piece, expected in enumerate(logits.softmax(0).tolist()):
        deviation = math.sqrt(expected * (1 - expected) / count)
        assert abs(counts[piece] / count - expected) <= 4 * deviation
