from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.corpus import store as module
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.errors import DataError
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

WORDS = "a b c d e f"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Return a tokenizer with one token for each word."""
    settings = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False)
    return Tokenizer(train_tokenizer([WORDS], settings, seed=1, soft_limit=True))


def build(
    pairs: list[tuple[str, str]], tokenizer: Tokenizer, *, max_length: int = 5
) -> CorpusStore:
    return CorpusStore.build(
        pairs, TokenizerPair.joint(tokenizer), max_length=max_length, name="the text"
    )


def test_each_pair_is_stored_as_its_ids(tokenizer: Tokenizer) -> None:
    pairs = [("a b c", "d"), ("e", "f a"), ("b b b b", "c")]

    store = build(pairs, tokenizer)

    assert len(store) == 3
    for index, (source, target) in enumerate(pairs):
        assert store.source[index].tolist() == tokenizer.encode([source])[0]
        assert store.target[index].tolist() == tokenizer.encode([target])[0]


def test_lengths_count_the_end_of_segment(tokenizer: Tokenizer) -> None:
    store = build([("a b c", "d"), ("e", "f a")], tokenizer)

    np.testing.assert_array_equal(store.source.lengths, [4, 2])
    np.testing.assert_array_equal(store.target.lengths, [2, 3])


def test_pair_with_a_blank_side_is_dropped_and_counted(tokenizer: Tokenizer) -> None:
    store = build([("a", ""), ("  \t\u3000", "b"), ("", ""), ("c", "d")], tokenizer)

    assert len(store) == 1
    assert store.source[0].tolist() == tokenizer.encode(["c"])[0]
    assert store.dropped == {"blank side": 3}


def test_pair_that_normalizes_to_nothing_is_dropped_and_counted() -> None:
    settings = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False,
                               normalization_rule_name="nmt_nfkc")  # fmt: skip
    tokenizer = Tokenizer(train_tokenizer([WORDS], settings, seed=1, soft_limit=True))

    store = build([("\u200b", "a"), ("b", "c")], tokenizer)

    assert len(store) == 1
    assert store.dropped == {"blank side": 1}


def test_pair_over_the_maximum_length_is_dropped_and_counted(tokenizer: Tokenizer) -> None:
    pairs = [("a a a a a", "a"), ("a a a a a a", "a"), ("a", "a a a a a a a")]

    store = build(pairs, tokenizer, max_length=5)

    assert len(store) == 1
    assert store.source.lengths.tolist() == [6]
    assert store.dropped == {"too long": 2}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "the text: 0 usable pairs"),
        ([("", "a")], "the text: 0 usable pairs, dropped: 1 blank side"),
        (
            [("", "a"), ("a a a a a a", "a")],
            "the text: 0 usable pairs, dropped: 1 blank side, 1 too long",
        ),
    ],
)
def test_text_without_a_usable_pair_is_refused_with_the_counts(
    pairs: list[tuple[str, str]], message: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(DataError) as caught:
        build(pairs, tokenizer)

    assert str(caught.value) == message


def test_hash_depends_on_the_content(tokenizer: Tokenizer) -> None:
    pairs = [("a b", "c"), ("d", "e f")]
    same = build(pairs, tokenizer).sha256()

    assert build([("a  b ", "c"), ("", "x"), ("d", "e f")], tokenizer).sha256() == same
    assert build(pairs[::-1], tokenizer).sha256() != same
    assert build([("a", "b c"), ("d", "e f")], tokenizer).sha256() != same
    assert build([("a b", "c"), ("d", "e a")], tokenizer).sha256() != same
    assert build([*pairs, ("a", "a")], tokenizer).sha256() != same


def test_text_is_read_in_parts(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENCODED_PAIRS", 3)
    pairs = [(word, f"{word} {word}") for word in WORDS.split()]
    asked: list[int] = []

    def lines() -> Iterator[tuple[str, str]]:
        for number, pair in enumerate(pairs):
            asked.append(number)
            yield pair

    class Watched(Tokenizer):
        def encode(self, lines: Sequence[str], *, threads: int = 0) -> list[list[int]]:
            asked.append(-1)
            return super().encode(lines, threads=threads)

    watched = TokenizerPair.joint(Watched(tokenizer.model_bytes))
    store = CorpusStore.build(lines(), watched, max_length=9, name="x")

    assert asked == [0, 1, 2, -1, -1, 3, 4, 5, -1, -1]
    assert [len(store.source[i]) for i in range(6)] == [1] * 6
    assert store.sha256() == build(pairs, tokenizer).sha256()
