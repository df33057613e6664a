"""Scores of given pairs: the probabilities of the reference, in any batch, in both engines."""

import copy
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.model.small_transformers import transformer as transformer_of
from tests.translation.native_translator import needs_native
from tfm_cli.config.settings import ModelConfig, RunConfig, SearchConfig
from tfm_cli.decoding.interface import length_norm
from tfm_cli.errors import DataError, ModelError, ResourceError
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.native.model import NativeModel
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.native_engine import NativeEngine
from tfm_cli.translation.scoring import Score, Scorer, ScorerOptions, as_json, as_text
from tfm_cli.translation.search import SearchEngine, SearchOptions
from tfm_cli.translation.torch_engine import TorchEngine

CPU = torch.device("cpu")
DEFAULT = ScorerOptions()
Pairs = Sequence[tuple[str, str]]
both_engines = pytest.mark.parametrize(
    "engine", ["torch", pytest.param("native", marks=needs_native)]
)


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    return load_model(tiny_model, CPU)


@pytest.fixture
def pairs(tiny_corpus: TinyCorpus) -> Pairs:
    """Return translations, right and wrong, with blank sides, unknown words and long pairs."""
    chance = random.Random(3)
    right = list(zip(tiny_corpus.lines("test.en"), tiny_corpus.lines("test.de"), strict=True))
    sources, targets = zip(*right, strict=True)
    wrong = list(zip(sources, chance.sample(targets, len(targets)), strict=True))
    odd = [
        ("", ""), ("one", ""), ("", "eins"), (" \u200b", "zwei drei"), ("one", "\u3000"),
        ("nothing known", "gar nichts"), ("one two " * 40, "eins"), ("one", "eins zwei " * 60),
        ("\u2028\x1b[0m\U0001f600", "e\u0301\x00\x85"),
    ]  # fmt: skip
    return [*right, *odd, *wrong]


def engine_of(
    kind: str, transformers: Sequence[Transformer], tokenizers: TokenizerPair, shape: ModelConfig
) -> SearchEngine:
    options = SearchOptions(settings=SearchConfig())
    if kind == "torch":
        return TorchEngine(transformers, tokenizers, options, device=CPU)
    return NativeEngine(
        [
            NativeModel.from_weights(each.state_dict(), RunConfig(model=shape), tokenizers)
            for each in transformers
        ],
        options,
    )


def scorer_of(
    kind: str,
    model: TrainedModel,
    *,
    others: Sequence[Transformer] = (),
    options: ScorerOptions = DEFAULT,
) -> Scorer:
    engine = engine_of(kind, [model.transformer, *others], model.tokenizers, model.config.model)
    return Scorer(engine, model.tokenizers, model.config.search, options)


def scores(scorer: Scorer, pairs: Pairs) -> list[Score]:
    found = [each for buffer in scorer.score(pairs) for each in buffer]
    assert [pair for pair, _ in found] == list(pairs)
    return [score for _, score in found]


def expected_log_probs(
    transformers: Sequence[Transformer], tokenizers: TokenizerPair, pair: tuple[str, str]
) -> list[float]:
    """Return the log-probability of each token, of a pair by itself, with these models."""
    source, target = tokenizers
    ids = source.encode([pair[0]])[0] if pair[0].strip(" \u200b") else []
    words = target.encode([pair[1]])[0]
    memory = torch.tensor([[*ids, source.eos_id]])
    before = torch.tensor([[target.start_id, *words]])
    chosen = torch.tensor([*words, target.eos_id])
    mean = torch.stack([model(memory, None, before)[0].softmax(dim=1) for model in transformers])
    log_probs = mean.mean(dim=0).log()[torch.arange(len(chosen)), chosen]
    return [float(each) for each in log_probs]


def double(model: Transformer) -> Transformer:
    """Return a copy in double precision."""
    return copy.deepcopy(model).double()


@both_engines
@torch.inference_mode()
def test_scores_are_sums_of_the_log_probabilities_of_the_reference(
    trained: TrainedModel, pairs: Pairs, engine: str
) -> None:
    reference = double(trained.transformer)

    found = scores(scorer_of(engine, trained, options=ScorerOptions(word_scores=True)), pairs)

    target = trained.tokenizers.target
    for pair, score in zip(pairs, found, strict=True):
        if pair == ("", ""):
            assert score == Score(0.0, 0.0)
            continue
        expected = expected_log_probs([reference], trained.tokenizers, pair)
        ids = [*target.encode([pair[1]])[0], target.eos_id]
        assert score.word_scores == pytest.approx(expected, abs=1e-4)
        assert score.log_probability == pytest.approx(sum(expected), abs=1e-4 * len(expected))
        assert score.score == pytest.approx(sum(expected) / len(expected), abs=1e-4)
        assert score.pieces == tuple(target.pieces[each] for each in ids)


@both_engines
@torch.inference_mode()
def test_probabilities_of_an_ensemble_are_means(
    trained: TrainedModel, pairs: Pairs, engine: str
) -> None:
    torch.manual_seed(1)
    other = double(trained.transformer).float()
    for parameter in other.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    some = [pair for pair in pairs if pair[1]][::9]

    found = scores(scorer_of(engine, trained, others=[other]), some)

    reference = [double(trained.transformer), double(other)]
    for pair, score in zip(some, found, strict=True):
        expected = expected_log_probs(reference, trained.tokenizers, pair)
        assert score.word_scores == pytest.approx(expected, abs=1e-4)


@both_engines
@pytest.mark.parametrize(
    ("max_tokens", "buffer_size"), [(1, 1), (1, 1000), (60, 7), (100_000, 1000)]
)
def test_scores_do_not_depend_on_batches(
    trained: TrainedModel, pairs: Pairs, engine: str, max_tokens: int, buffer_size: int
) -> None:
    expected = scores(scorer_of(engine, trained), pairs)
    options = ScorerOptions(max_tokens=max_tokens, buffer_size=buffer_size)

    found = scores(scorer_of(engine, trained, options=options), pairs)

    if engine == "native":
        assert found == expected
    for one, other in zip(found, expected, strict=True):
        assert one.word_scores == pytest.approx(other.word_scores, abs=1e-5)


@pytest.mark.parametrize(
    ("penalty", "kind"), [(0.0, None), (0.6, "wu"), (2.0, "power"), (None, None)]
)
def test_scores_are_normalized_as_those_of_search(
    trained: TrainedModel, pairs: Pairs, penalty: float | None, kind: str | None
) -> None:
    options = ScorerOptions(length_penalty=penalty, length_norm=kind)

    found = scores(scorer_of("torch", trained, options=options), pairs[:20])

    for score in found:
        norm = length_norm(score.num_tokens, 1.0 if penalty is None else penalty, kind or "power")
        assert score.score == score.log_probability / norm


def test_pairs_are_read_as_they_are_needed(trained: TrainedModel, pairs: Pairs) -> None:
    read = 0

    def counting() -> Iterator[tuple[str, str]]:
        nonlocal read
        for _ in range(100_000):
            yield pairs[read % 30]
            read += 1

    scorer = scorer_of("torch", trained, options=ScorerOptions(buffer_size=10))
    found = scorer.score(counting())

    assert len(next(found)) == 10
    assert read <= 20
    found.close()


def test_buffer_of_long_lines_has_few_of_them(
    trained: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfm_cli.translation.scoring._MAX_CHARACTERS", 100)
    pairs = [("one " * 10, "eins " * 10)] * 7

    sizes = [len(buffer) for buffer in scorer_of("torch", trained).score(pairs)]

    assert sizes == [2, 2, 2, 1]


def test_pairs_before_a_bad_line_are_scored(trained: TrainedModel, pairs: Pairs) -> None:
    def broken() -> Iterator[tuple[str, str]]:
        yield from pairs[:3]
        raise DataError("pairs.tsv:4: has 1 column")

    found = list[list[tuple[tuple[str, str], Score]]]()
    with pytest.raises(DataError, match=r"pairs\.tsv:4"):
        found.extend(scorer_of("torch", trained).score(broken()))

    assert [len(buffer) for buffer in found] == [3]


def learned(tokenizers: TokenizerPair) -> tuple[Transformer, ModelConfig]:
    """Return a model that has positions for 7 tokens and </s>."""
    torch.manual_seed(2)
    shape = ModelConfig(
        encoder_layers=1, decoder_layers=1, width=8, heads=1, feed_forward_width=8,
        positions="learned", max_positions=8, tied_embeddings=2,
    )  # fmt: skip
    sizes = tokenizers.vocab_sizes
    return transformer_of(
        sizes[1], source_vocab_size=sizes[0], encoder_layers=1, decoder_layers=1, width=8, heads=1,
        feed_forward_width=8, positions="learned", max_positions=8, tied_embeddings=2,
    ).eval(), shape  # fmt: skip


@both_engines
@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("one " * 8, "eins"), r"a\.en:3: the source has 8 tokens, expected at most 7"),
        (("one", "eins " * 9), r"a\.de:3: the target has 9 tokens, expected at most 7"),
    ],
)  # fmt: skip
def test_pair_that_has_no_positions_is_refused_by_its_line(
    trained: TrainedModel, engine: str, pair: tuple[str, str], message: str
) -> None:
    transformer, shape = learned(trained.tokenizers)
    scorer = Scorer(
        engine_of(engine, [transformer], trained.tokenizers, shape), trained.tokenizers,
        SearchConfig(), ScorerOptions(buffer_size=2, names=("a.en", "a.de")),
    )  # fmt: skip
    longest = ("one " * 7, "eins " * 7)

    found = list[list[tuple[tuple[str, str], Score]]]()
    with pytest.raises(DataError, match=message):
        found.extend(scorer.score([longest, longest, pair]))

    assert [score.num_tokens for buffer in found for _, score in buffer] == [8, 8]


@both_engines
def test_long_pairs_are_scored_in_one_piece_with_one_warning(
    trained: TrainedModel, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [("one", "eins"), ("one " * 300, "eins " * 300), ("two " * 400, "zwei")]

    found = scores(scorer_of(engine, trained, options=ScorerOptions(names=("a", "b"))), pairs)

    assert [score.num_tokens for score in found] == [2, 301, 2]
    assert caplog.messages == [
        "a:2: has 300 tokens and is scored in one piece, while `tfm translate` splits lines of "
        "more than 256; other such lines are not reported"
    ]


@pytest.mark.parametrize("most", [1, 3, 8])
def test_batch_that_does_not_fit_in_memory_is_halved(
    trained: TrainedModel, pairs: Pairs, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scores(scorer_of("torch", trained), pairs)
    score = TorchEngine.score

    def limited(
        engine: TorchEngine, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        if len(sources) > most:
            raise MemoryError
        return score(engine, sources, targets)

    monkeypatch.setattr(TorchEngine, "score", limited)
    found = scores(scorer_of("torch", trained), pairs)

    for one, other in zip(found, expected, strict=True):
        assert one.word_scores == pytest.approx(other.word_scores, abs=1e-5)


def test_single_pair_that_does_not_fit_is_named(
    trained: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> list[list[float]]:
        raise MemoryError

    monkeypatch.setattr(TorchEngine, "score", refuse)
    scorer = scorer_of("torch", trained, options=ScorerOptions(names=("a", "b")))

    with pytest.raises(ResourceError, match="a:1: cpu has no memory for a pair of 2 and 1 tokens"):
        list(scorer.score([("one two", "eins")]))


def test_unusable_weights_are_an_error_of_the_model(trained: TrainedModel) -> None:
    broken = copy.deepcopy(trained.transformer)
    with torch.no_grad():
        broken.target_embedding.weight[:] = math.nan
    scorer = Scorer(
        engine_of("torch", [broken], trained.tokenizers, trained.config.model), trained.tokenizers,
        SearchConfig(), name="some/model",
    )  # fmt: skip

    with pytest.raises(ModelError, match="some/model: the weights are unusable"):
        list(scorer.score([("one", "eins")]))


def test_formats() -> None:
    score = Score(-0.75, -1.5, ("\u2581eins", "</s>"), (-1.0, -0.5))

    assert as_text(score, word_scores=False) == "-0.7500"
    assert as_text(score, word_scores=True) == "-0.7500 ||| WordScores= -1.0000 -0.5000"
    assert as_text(Score(0.0, 0.0), word_scores=True) == "0.0000 ||| WordScores="
    assert json.loads(as_json(("a\tb", "\u2028"), score, word_scores=True)) == {
        "source": "a\tb", "target": "\u2028", "score": -0.75, "log_probability": -1.5,
        "pieces": ["\u2581eins", "</s>"], "word_scores": [-1.0, -0.5],
    }  # fmt: skip
    assert set(json.loads(as_json(("a", "b"), score, word_scores=False))) == {
        "source", "target", "score", "log_probability",
    }  # fmt: skip
