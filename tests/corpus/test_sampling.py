import functools
import itertools
from pathlib import Path

import numpy as np
import pytest

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.corpus import sampling
from tfm_cli.corpus.batching import BatchOrder
from tfm_cli.corpus.sampling import SubwordSampling, default_alpha
from tfm_cli.corpus.sources import sample_path
from tfm_cli.corpus.store import CorpusStore, FlatSegments
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

every_kind = pytest.mark.parametrize("kind", ["unigram", "bpe"])
ODD_LINES = [
    "", "▁", "a  b", " ", "the 🙂 smiles", "naïve café", "\u3000x", "x▁y", "<unk> </s>", "e\u0301t",
    "the the the the the the the the", "䷀䷁", "ab" * 60, ">>fra<< the", "…", "a\u200db",
]  # fmt: skip


def lines(side: str, count: int = 400) -> list[str]:
    return Path(sample_path(f"train.{side}")).read_text(encoding="utf-8").split("\n")[:count]


@functools.cache
def tokenizer(kind: str, *, byte_fallback: bool = True, tags: tuple[str, ...] = ()) -> Tokenizer:
    config = TokenizerConfig(vocab_size=500, model_type=kind, byte_fallback=byte_fallback)
    text = [*lines("en"), *lines("fr")]
    model = train_tokenizer(text, config, seed=1, soft_limit=True, tags=lambda: tags)
    return Tokenizer(model)


def store(sources: list[str], targets: list[str], pair: TokenizerPair) -> CorpusStore:
    return CorpusStore.build(
        zip(sources, targets, strict=True), pair, max_length=10_000, name="text"
    )


def sample(
    text: CorpusStore,
    pair: TokenizerPair,
    *,
    epoch: int = 0,
    indices: np.ndarray | None = None,
    sides: str = "both",
    alpha: float = 0.0,
    seed: int = 1,
    max_length: int = 10_000,
) -> list[list[list[int]]]:
    """The ids of each segment of both sides, in the order of the indices."""
    sampler = SubwordSampling(
        text, pair, sides=sides, alpha=alpha, seed=seed, max_length=max_length
    )
    indices = np.arange(len(text)) if indices is None else indices
    found = sampler.text(epoch, np.sort(indices))
    for side in (found.source, found.target):
        flat = side.gather(indices)
        assert (side.lengths[indices] == flat.lengths + 1).all()
    return [rows(side.gather(indices)) for side in (found.source, found.target)]


def rows(flat: FlatSegments) -> list[list[int]]:
    return [part.tolist() for part in np.split(flat.ids, np.cumsum(flat.lengths)[:-1])]


@every_kind
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_sampled_text_is_the_same_text_in_other_pieces(kind: str, byte_fallback: bool) -> None:
    pair = TokenizerPair.joint(tokenizer(kind, byte_fallback=byte_fallback))
    odd = [line for line in ODD_LINES if line.strip()]
    sources, targets = lines("en", 200) + odd, lines("fr", 200) + odd
    text = store(sources, targets, pair)
    whole = rows(text.source.gather(np.arange(len(text))))

    source, target = sample(text, pair)

    assert pair.source.decode(source) == pair.source.decode(whole)
    assert pair.target.decode(target) == pair.target.decode(
        rows(text.target.gather(np.arange(len(text))))
    )
    changed = sum(a != b for a, b in zip(source, whole, strict=True))
    assert changed > 0.5 * len(text)
    unknown = pair.source.unk_id
    assert [row.count(unknown) for row in source] == [row.count(unknown) for row in whole]


@every_kind
def test_pair_is_cut_alike_in_any_company(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = TokenizerPair.joint(tokenizer(kind))
    text = store(lines("en", 90), lines("fr", 90), pair)
    whole = sample(text, pair, epoch=3)
    few = np.array([71, 3, 3, 50])

    some = sample(text, pair, epoch=3, indices=few)
    # In chunks, and with a memory so short that words are drawn again and again.
    monkeypatch.setattr(sampling, "_CHUNK_PAIRS", 7)
    monkeypatch.setattr(sampling, "_MAX_WORDS", 20)
    again = sample(text, pair, epoch=3)

    assert some == [[side[index] for index in few] for side in whole]
    assert again == whole


@every_kind
def test_text_depends_on_seed_epoch_side_and_pair(kind: str) -> None:
    pair = TokenizerPair.joint(tokenizer(kind))
    same = [lines("en", 1)[0] * 3] * 30
    text = store(same, same, pair)

    found = [
        *sample(text, pair), *sample(text, pair, epoch=1), *sample(text, pair, seed=2),
    ]  # fmt: skip

    assert all(a != b for a, b in itertools.combinations(found, 2))
    assert len({tuple(row) for row in found[0]}) > 20  # each pair is cut in its own way


@pytest.mark.parametrize(("sides", "expected"), [("source", (True, False)),
                                                 ("target", (False, True))])  # fmt: skip
def test_other_side_stays_as_it_is(sides: str, expected: tuple[bool, bool]) -> None:
    pair = TokenizerPair.joint(tokenizer("unigram"))
    text = store(lines("en", 40), lines("fr", 40), pair)
    whole = [rows(side.gather(np.arange(40))) for side in (text.source, text.target)]

    found = sample(text, pair, sides=sides)

    assert tuple(a != b for a, b in zip(found, whole, strict=True)) == expected


def test_tags_and_special_pieces_are_never_cut() -> None:
    model = tokenizer("unigram", tags=(">>fra<<",))
    pair = TokenizerPair.joint(model)
    text = store([f">>fra<< {line}" for line in lines("en", 100)], lines("fr", 100), pair)
    tag = model.piece_ids([">>fra<<"])[0]

    source, _ = sample(text, pair, alpha=0.1)

    assert all(row[0] == tag and tag not in row[1:] for row in source)


@every_kind
def test_tokenizer_with_a_vocabulary_of_its_own_gives_ids_of_that(kind: str) -> None:
    plain = tokenizer(kind, byte_fallback=False)
    known = [p for p in plain.pieces if p not in ("<unk>", "</s>", "<s>", "<pad>")][::-1]
    vocabulary = Vocabulary(("</s>", "<unk>", *known[::2], *known[1::2], "<pad>"))
    model = Tokenizer(plain.model_bytes, vocabulary)
    pair = TokenizerPair(model, model)
    text = store(lines("en", 100), lines("fr", 100), pair)

    source, _ = sample(text, pair, alpha=0.2)

    whole = rows(text.source.gather(np.arange(100)))
    assert source != whole
    assert model.decode(source) == model.decode(whole)


def test_segment_that_would_be_too_long_keeps_its_segmentation() -> None:
    pair = TokenizerPair.joint(tokenizer("unigram"))
    text = store(lines("en", 100), lines("fr", 100), pair)
    whole = rows(text.source.gather(np.arange(100)))
    limit = max(map(len, whole))
    free = sample(text, pair, alpha=0.1)[0]

    bounded = sample(text, pair, alpha=0.1, max_length=limit)[0]

    assert any(len(row) > limit for row in free)
    for mine, other, own in zip(bounded, free, whole, strict=True):
        assert mine == (own if len(other) > limit else other)


def test_batches_fit_the_sampled_lengths_and_hold_each_pair_once() -> None:
    pair = TokenizerPair.joint(tokenizer("unigram"))
    text = store(lines("en", 400) * 3, lines("fr", 400) * 3, pair)
    sampler = SubwordSampling(text, pair, sides="both", alpha=0.1, seed=1, max_length=200)
    order = BatchOrder(
        text.source.lengths, text.target.lengths, max_tokens=300, seed=1, pool_pairs=512,
        sampling=sampler.text,
    )  # fmt: skip
    seen: list[int] = []

    for pool in range(order.num_pools):
        found = order.text(1, pool)
        assert found is not None
        for batch in order.batches(1, pool):
            lengths = found.target.lengths[batch]
            assert len(batch) == 1 or len(batch) * lengths.max() <= 300
            seen += batch.tolist()

    assert order.num_pools == 3
    assert sorted(seen) == list(range(1200))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_epoch_without_any_pair_is_empty(kind: str) -> None:
    """With weights, the draw of an epoch may leave out every pair of a tiny corpus."""
    pair = TokenizerPair.joint(tokenizer(kind))
    text = store(lines("en", 2), lines("fr", 2), pair)

    found = SubwordSampling(text, pair, sides="both", alpha=0.0, seed=1, max_length=99)

    sampled = found.text(0, np.arange(0))

    assert len(sampled.source.gather(np.arange(0)).ids) == 0
    assert len(sampled.target.gather(np.arange(0)).lengths) == 0


def test_defaults() -> None:
    assert (default_alpha(tokenizer("unigram")), default_alpha(tokenizer("bpe"))) == (0.2, 0.1)
