import math
from collections import Counter, defaultdict
from itertools import pairwise
from random import Random

import pytest

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.errors import ModelError
from tfm_cli.tokenizer.sampling import BpeSampler, LineSampler, UnigramSampler, word_sampler
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

TEXT = ["the cat sat on the mat", "ein Hund läuft über die Straße", "running runners ran"] * 25
DRAWS = 20_000
every_kind = pytest.mark.parametrize("kind", ["unigram", "bpe"])

Cut = tuple[str, ...]


def tokenizer(kind: str) -> Tokenizer:
    config = TokenizerConfig(vocab_size=90, model_type=kind, byte_fallback=False)
    return Tokenizer(train_tokenizer(TEXT, config, seed=1, soft_limit=True))


def scores_of(model: Tokenizer) -> dict[str, float]:
    special = {model.pieces[i] for i in model.unsampled_ids}
    return {piece: score for piece, score in model.scored_pieces if piece not in special}


def unigram_shares(word: str, scores: dict[str, float], alpha: float) -> dict[Cut, float]:
    """The probability of each way to cut a word, found by trying all of them."""

    def logs(rest: str) -> dict[Cut, float]:
        if not rest:
            return {(): 0.0}
        return {
            (rest[:end], *cut): scores[rest[:end]] + log
            for end in range(1, len(rest) + 1)
            if rest[:end] in scores
            for cut, log in logs(rest[end:]).items()
        }

    powers = {cut: math.exp(log) ** alpha for cut, log in logs(word).items()}
    return {cut: power / sum(powers.values()) for cut, power in powers.items()}


def bpe_shares(symbols: Cut, scores: dict[str, float], alpha: float) -> dict[Cut, float]:
    """The probability of each result, from those of each step: the best merge that is not skipped.

    The k-th best is made if it is kept and the k better ones are skipped.
    """
    merges = sorted(
        (-scores[a + b], at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in scores
    )
    shares = defaultdict(float, {symbols: alpha ** len(merges)})
    for better, (_, at) in enumerate(merges):
        merged = (*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :])
        for cut, share in bpe_shares(merged, scores, alpha).items():
            shares[cut] += alpha**better * (1 - alpha) * share
    return dict(shares)


@every_kind
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.9])
def test_words_are_cut_with_the_probabilities_of_the_paper(kind: str, alpha: float) -> None:
    model = tokenizer(kind)
    scores = scores_of(model)
    sampler = word_sampler(model, alpha)
    for word in ("▁runners", "▁Straße", "▁the", "cat"):
        if kind == "unigram":
            expected = unigram_shares(word, scores, alpha)
        else:
            expected = bpe_shares(tuple(word), scores, alpha)
        assert math.isclose(sum(expected.values()), 1.0)

        found = sampler.sample(word, Random(5), DRAWS)

        counts = Counter(tuple(model.pieces[i] for i in ids) for ids in found)
        assert counts.keys() <= expected.keys()
        for cut, share in expected.items():
            deviation = math.sqrt(share * (1 - share) / DRAWS)
            assert abs(counts[cut] / DRAWS - share) < 5 * deviation + 2 / DRAWS, (word, cut)


@every_kind
def test_without_randomness_words_are_cut_as_sentencepiece_cuts_them(kind: str) -> None:
    model = tokenizer(kind)
    sampler = word_sampler(model, 200.0 if kind == "unigram" else 0.0)

    for word in {word for line in TEXT for word in line.split()}:
        assert sampler.sample(f"▁{word}", Random(1), 3) == model.encode([word]) * 3


def test_segmentations_are_the_same_in_every_process() -> None:
    scores = {"a": -2.0, "b": -2.5, "c": -3.0, "ab": -1.0, "bc": -1.5, "abc": -1.25}
    ids = {piece: i for i, piece in enumerate(scores)}

    def drawn(sampler: UnigramSampler | BpeSampler) -> list[list[int]]:
        return sampler.sample("abcab", Random(2**63 + 7), 5)

    # As they were drawn elsewhere.
    assert drawn(UnigramSampler(scores, ids, 0.3)) == [[0, 4, 3], [5, 3], [5, 3], [5, 3], [5, 0, 1]]
    assert drawn(BpeSampler(scores, ids, 0.3)) == [[5, 3], [5, 3], [5, 3], [5, 3], [5, 3]]


def test_long_word_of_rare_pieces_does_not_underflow() -> None:
    scores = {"a": -300.0, "aa": -600.0}
    sampler = UnigramSampler(scores, {"a": 0, "aa": 1}, 1.0)

    (ids,) = sampler.sample("a" * 501, Random(1), 1)

    assert sum(1 if i == 0 else 2 for i in ids) == 501
    # Both ways to write "aa" are equally probable, so the golden ratio decides.
    assert 0.35 < ids.count(1) / len(ids) < 0.55


def test_merges_that_characters_need_are_made() -> None:
    scores = {"b": -3.0, "ab": -1.0, "abb": -2.0}
    sampler = BpeSampler(scores, {"b": 0, "ab": 1, "abb": 2}, 0.9)

    found = sampler.sample("abb", Random(1), 50)

    assert {tuple(ids) for ids in found} == {(1, 0), (2,)}


@every_kind
@pytest.mark.parametrize("nbest_size", [-1, 8])
def test_sampled_line_depends_only_on_its_seed(kind: str, nbest_size: int) -> None:
    sampler = LineSampler(tokenizer(kind), nbest_size=nbest_size, alpha=0.2)
    line = "the cat  sat 🙂 on über"

    first = [sampler.pieces(line, seed=seed) for seed in range(20)]
    again = [sampler.pieces(line, seed=seed) for seed in reversed(range(20))]

    assert first == again[::-1]
    assert len({tuple(pieces) for pieces in first}) > 3
    assert {"".join(pieces) for pieces in first} == {"▁the▁cat▁sat▁🙂▁on▁über"}
    assert sampler.pieces("", seed=1) == []


def test_line_is_drawn_among_the_best_by_their_probabilities() -> None:
    model, line, alpha = tokenizer("unigram"), "runners sat", 0.3
    best = model.nbest_pieces(line, 5)
    scores = dict(model.scored_pieces)
    powers = [math.exp(sum(scores[piece] for piece in pieces)) ** alpha for pieces in best]
    sampler = LineSampler(model, nbest_size=5, alpha=alpha)

    counts = Counter(tuple(sampler.pieces(line, seed=seed)) for seed in range(DRAWS // 10))

    assert len(best) == 5
    assert best[0] == model.encode_pieces([line])[0]
    for pieces, power in zip(best, powers, strict=True):
        share, draws = power / sum(powers), DRAWS // 10
        deviation = math.sqrt(share * (1 - share) / draws)
        assert abs(counts[tuple(pieces)] / draws - share) < 5 * deviation


def test_tokenizer_that_cuts_text_in_one_way_only_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot sample: it is of type `char`"):
        LineSampler(tokenizer("char"))
