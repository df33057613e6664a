import io
import random
import tempfile
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.corpus.check.statistics import LineHashes, Overlap, Repeats, overlap, repeats

Pairs = list[tuple[str, str]]
pairs_of_few_words = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("xyz")))


def hashes_of(pairs: Pairs, *, max_in_memory: int, at_a_time: int = 3) -> LineHashes:
    hashes = LineHashes(max_in_memory=max_in_memory)
    for start in range(0, len(pairs), at_a_time):
        some = pairs[start : start + at_a_time]
        hashes.add([source for source, _ in some], [target for _, target in some])
    return hashes


def repeats_by_sets(pairs: Pairs) -> Repeats:
    targets = defaultdict(set)
    for source, target in pairs:
        targets[source].add(target)
    several = sum(len(actual) > 1 for actual in targets.values())
    return Repeats(len(pairs) - len(set(pairs)), len(targets), several)


def overlap_by_sets(pairs: Pairs, others: Pairs) -> Overlap:
    known, sources = set(others), {source for source, _ in others}
    return Overlap(sum(pair in known for pair in pairs), sum(pair[0] in sources for pair in pairs))


@pytest.mark.parametrize("max_in_memory", [2, 1000])
@settings(deadline=None, max_examples=15)
@given(pairs=pairs_of_few_words, others=pairs_of_few_words)
def test_small_corpora_are_counted_like_with_sets(
    max_in_memory: int, pairs: Pairs, others: Pairs
) -> None:
    one, other = (hashes_of(p, max_in_memory=max_in_memory) for p in (pairs, others))

    assert repeats(one) == repeats_by_sets(pairs)
    assert overlap(one, other) == overlap_by_sets(pairs, others)
    one.close()
    other.close()


def test_large_corpus_is_counted_like_with_sets_and_stored_on_disk() -> None:
    rng = random.Random(3)
    pairs = [(str(rng.randrange(4000)), str(rng.randrange(3))) for _ in range(20_000)]
    others = [(str(rng.randrange(9000)), str(rng.randrange(3))) for _ in range(5000)]

    one, other = hashes_of(pairs, max_in_memory=700, at_a_time=64), hashes_of(
        others, max_in_memory=10_000, at_a_time=64
    )  # fmt: skip

    assert repeats(one) == repeats_by_sets(pairs)
    assert overlap(other, one) == overlap_by_sets(others, pairs)
    assert repeats(one) == repeats_by_sets(pairs)  # buckets can be read again
    one.close()


def test_pairs_in_memory_never_exceed_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    class Counting(io.BytesIO):
        # Bytes are all that is written here; Python 3.11 has no name for what else might be.
        def write(self, data: bytes) -> int:  # type: ignore[override]
            written.append(len(data) // 16)
            return super().write(data)

    monkeypatch.setattr(tempfile, "TemporaryFile", Counting)
    hashes = LineHashes(max_in_memory=100)
    for start in range(0, 1000, 10):
        lines = [str(number) for number in range(start, start + 10)]
        hashes.add(lines, lines)

    # No more than the limit and one window are held before they go to the file.
    assert sum(written) == 990
    assert set(written) == {110}
    assert max(len(bucket) for bucket in hashes.buckets()) < 60
    hashes.close()


def test_no_pairs_have_no_repeats() -> None:
    nothing = LineHashes()

    assert repeats(nothing) == Repeats(0, 0, 0)
    assert overlap(nothing, nothing) == Overlap(0, 0)
    nothing.close()
