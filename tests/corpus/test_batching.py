from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.corpus.batching import BatchOrder, CorpusSpan, padding_share
from tfm_cli.corpus.random_key import random_key
from tfm_cli.corpus.token_budget import token_batches

MULTI30K = Path(__file__).resolve().parents[3] / "shared" / "corpora" / "multi30k"

lengths = st.integers(1, 60)
corpora = st.lists(st.tuples(lengths, lengths), max_size=120)
budgets = st.integers(1, 400)
seeds = st.integers(0, 2**31 - 1)
key_parts = st.lists(
    st.integers(0, 2**63)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
)


def epoch_batches(
    source: np.ndarray, target: np.ndarray, *, max_tokens: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Return the batches of an epoch of a corpus of one pool."""
    order = BatchOrder(source, target, max_tokens=max_tokens, seed=seed)
    assert order.num_pools == 1
    return order.batches(epoch, 0)


def sides(corpus: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(corpus, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def assert_within_budget(source: np.ndarray, target: np.ndarray, *, max_tokens: int) -> None:
    """Assert that the padded lengths are within the budget, unless the batch is a single pair."""
    if len(target) > 1:
        assert len(target) * target.max() <= max_tokens
        assert len(source) * source.max() <= 2 * max_tokens


@settings(deadline=None)
@given(corpus=corpora, max_tokens=budgets, seed=seeds, epoch=st.integers(0, 1000))
def test_no_batch_exceeds_the_budget(
    corpus: list[tuple[int, int]], max_tokens: int, seed: int, epoch: int
) -> None:
    source, target = sides(corpus)

    for batch in epoch_batches(source, target, max_tokens=max_tokens, seed=seed, epoch=epoch):
        assert_within_budget(source[batch], target[batch], max_tokens=max_tokens)


@settings(deadline=None)
@given(corpus=corpora, max_tokens=budgets, seed=seeds, epoch=st.integers(0, 1000))
def test_every_pair_is_in_exactly_one_batch_of_an_epoch(
    corpus: list[tuple[int, int]], max_tokens: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(*sides(corpus), max_tokens=max_tokens, seed=seed, epoch=epoch)

    actual = [int(pair) for batch in batches for pair in batch]
    assert sorted(actual) == list(range(len(corpus)))
    assert all(len(batch) for batch in batches)


@settings(deadline=None)
@given(corpus=corpora, max_tokens=budgets, seed=seeds, epoch=st.integers(0, 1000))
def test_r11_order_is_a_function_of_seed_and_epoch_alone(
    corpus: list[tuple[int, int]], max_tokens: int, seed: int, epoch: int
) -> None:
    source, target = sides(corpus)
    first = epoch_batches(source, target, max_tokens=max_tokens, seed=seed, epoch=epoch)
    np.random.default_rng().random(3)
    epoch_batches(source, target, max_tokens=max_tokens, seed=seed, epoch=epoch + 1)

    again = epoch_batches(source, target, max_tokens=max_tokens, seed=seed, epoch=epoch)

    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in first]
    assert [(int(s), int(t)) for s, t in zip(source, target, strict=True)] == corpus  # untouched


@settings(deadline=None)
@given(seed=seeds, epoch=st.integers(0, 1000))
def test_epochs_and_seeds_differ_in_the_batches_and_in_their_order(seed: int, epoch: int) -> None:
    random = np.random.default_rng(1)
    source, target = random.integers(1, 30, 500), random.integers(1, 30, 500)

    plans = [
        epoch_batches(source, target, max_tokens=100, seed=seed + more, epoch=epoch + later)
        for more, later in ((0, 0), (0, 1), (1, 0))
    ]

    in_order = [[tuple(batch.tolist()) for batch in plan] for plan in plans]
    assert in_order[0] != in_order[1]
    assert in_order[0] != in_order[2]
    as_sets = [{frozenset(batch) for batch in plan} for plan in in_order]
    assert as_sets[0] != as_sets[1]
    assert as_sets[0] != as_sets[2]


@settings(deadline=None)
@given(num_pairs=st.integers(0, 3000), pool_pairs=st.integers(300, 900), seed=seeds)
def test_pools_share_out_the_pairs_of_an_epoch(num_pairs: int, pool_pairs: int, seed: int) -> None:
    source = np.full(num_pairs, 3, dtype=np.uint16)
    order = BatchOrder(source, source, max_tokens=60, seed=seed, pool_pairs=pool_pairs)

    pools = [order.batches(0, pool) for pool in range(order.num_pools)]

    actual = [int(pair) for batches in pools for batch in batches for pair in batch]
    assert sorted(actual) == list(range(num_pairs))
    assert order.num_pools == max(1, -(-num_pairs // pool_pairs))
    if order.num_pools > 1:  # each pool takes its runs of neighbors from all over the corpus
        sizes = [sum(len(batch) for batch in batches) for batches in pools]
        assert max(sizes) <= pool_pairs + 256
        again = BatchOrder(source, source, max_tokens=60, seed=seed, pool_pairs=pool_pairs)
        last = again.batches(0, order.num_pools - 1)  # without those before
        assert [batch.tolist() for batch in last] == [batch.tolist() for batch in pools[-1]]


def test_length_types_do_not_change_the_batches() -> None:
    random = np.random.default_rng(1)
    source, target = random.integers(1, 400, 500), random.integers(1, 400, 500)

    plans = [
        BatchOrder(source.astype(kind), target.astype(kind), max_tokens=1000, seed=1).batches(0, 0)
        for kind in (np.uint16, np.int32, np.int64)
    ]

    assert all(
        [batch.tolist() for batch in plan] == [batch.tolist() for batch in plans[0]]
        for plan in plans
    )


def seen(weights: list[float], *, epochs: int, seed: int = 1) -> np.ndarray:
    """Return how often each of 300 pairs of a corpus occurs, (epochs, corpora, 300)."""
    spans = [
        CorpusSpan(300 * corpus, 300 * (corpus + 1), weight)
        for corpus, weight in enumerate(weights)
    ]
    lengths = np.full(300 * len(weights), 4)
    order = BatchOrder(lengths, lengths, max_tokens=40, seed=seed, spans=spans, pool_pairs=512)
    counts = np.zeros((epochs, 300 * len(weights)), dtype=int)
    for epoch in range(epochs):
        for pool in range(order.num_pools):
            for batch in order.batches(epoch, pool):
                np.add.at(counts[epoch], batch, 1)
    return counts.reshape(epochs, len(weights), 300)


def test_passes_over_a_corpus_equal_its_weight() -> None:
    weights = [1.0, 2.0, 0.5, 2.25]
    counts = seen(weights, epochs=8)

    # Over eight epochs every single pair is seen exactly eight times its weight.
    for corpus, weight in enumerate(weights):
        assert (counts[:, corpus].sum(axis=0) == 8 * weight).all()
    assert (counts[:, 0] == 1).all()
    assert (counts[:, 1] == 2).all()
    # Half of the pairs in each epoch, give or take four standard deviations of 300 coins.
    assert (abs(counts[:, 2].sum(axis=1) - 150) < 35).all()
    other = seen(weights, epochs=1, seed=2)
    assert (other[:, 2] != counts[:1, 2]).any()


def test_weights_of_one_change_nothing() -> None:
    lengths = np.arange(1, 201) % 30 + 1
    plain = BatchOrder(lengths, lengths, max_tokens=99, seed=3).batches(2, 0)

    spans = [CorpusSpan(0, 50), CorpusSpan(50, 200)]
    actual = BatchOrder(lengths, lengths, max_tokens=99, seed=3, spans=spans).batches(2, 0)

    assert [batch.tolist() for batch in actual] == [batch.tolist() for batch in plain]


def test_batches_do_not_come_sorted_by_length() -> None:
    target = np.repeat(np.arange(1, 101), 10)
    batches = epoch_batches(target, target, max_tokens=100, seed=1, epoch=0)

    longest = np.array([int(target[batch].max()) for batch in batches])

    # The correlation of 600 independent lengths with their places is within 4 / sqrt(600).
    assert abs(float(np.corrcoef(longest, np.arange(len(longest)))[0, 1])) < 0.16


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_pair_beyond_the_budget_is_a_batch_of_its_own(position: int) -> None:
    target = np.array([5, 5])
    source = np.insert(np.array([5, 5]), position, 7)
    target = np.insert(target, position, 99)

    slices = token_batches(source.tolist(), target.tolist(), max_tokens=16)

    alone = [s for s in slices if s.stop - s.start == 1 and target[s.start] == 99]
    assert len(alone) == 1


@settings(deadline=None)
@given(corpus=corpora, max_tokens=budgets)
def test_token_batches_are_consecutive_and_maximal(
    corpus: list[tuple[int, int]], max_tokens: int
) -> None:
    source, target = sides(corpus)

    slices = token_batches(source.tolist(), target.tolist(), max_tokens=max_tokens)

    borders = [0, *(s.stop for s in slices)]
    assert [s.start for s in slices] == borders[:-1]
    assert borders[-1] == len(corpus)
    for s in slices:
        assert_within_budget(source[s], target[s], max_tokens=max_tokens)
        if s.stop < len(corpus):
            longer = slice(s.start, s.stop + 1)
            with pytest.raises(AssertionError):
                assert_within_budget(source[longer], target[longer], max_tokens=max_tokens)


def test_padding_share_counts_both_sides() -> None:
    source, target = np.array([4, 2, 3]), np.array([1, 5, 2])

    share = padding_share([np.array([0, 1]), np.array([2])], source, target)

    # 2 * 4 + 3 and 2 * 5 + 2 positions for 9 and 8 tokens.
    assert share == pytest.approx(1 - 17 / 23)
    assert padding_share([], source, target) == 0.0


@settings(deadline=None)
@given(first=key_parts, second=key_parts)
def test_keys_are_valid_seeds_that_depend_on_all_parts(
    first: list[int | str], second: list[int | str]
) -> None:
    one, other = random_key(*first), random_key(*second)

    assert 0 <= one < 2**63
    same = [str(part) for part in first] == [str(part) for part in second]
    assert (one == other) == same or not first or not second


def test_keys_are_the_same_on_every_machine_and_in_every_version() -> None:
    # A change would make a run that is gone on with another one.
    assert random_key("epoch", 1, 0) == 7839749916773962783
    assert random_key("dropout", 1, 500, 3) == 6319539312572848217
