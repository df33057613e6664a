"""1,000 lines of a model that has learned something: the same ids for every search option."""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.native.engine import EngineModel, Lines, Reference, Search, engine_search, library
from tfm_cli.decoding.interface import Hypothesis, output_limit
from tfm_cli.model_directory.weights import TrainedModel, load_model

COUNT = 1000


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    library()
    return load_model(tiny_model, torch.device("cpu"))


@pytest.fixture(scope="module")
def lines(trained: TrainedModel, tiny_corpus: TinyCorpus) -> Lines:
    """Lines of 1 to 14 words; the model was trained with 2 to 7."""
    words = sorted({word for line in tiny_corpus.lines("train.en") for word in line.split()})
    chance = random.Random(3)
    texts = [" ".join(chance.choices(words, k=chance.randint(1, 14))) for _ in range(COUNT)]
    sources = trained.tokenizers.source.encode(texts)
    seeds = [chance.getrandbits(63) for _ in sources]
    return Lines(sources, [output_limit(len(ids), 3.0) for ids in sources], seeds=seeds)


class Pair:
    """The trained model in the engine and as the reference."""

    def __init__(self, trained: TrainedModel, byte_values: dict[int, int] | None = None) -> None:
        config, target = trained.config.model, trained.tokenizers.target
        self.shape = {name: value for name, value in vars(config).items() if name != "dropout"}
        self.special: dict[str, Any] = {
            "banned": tuple(target.banned_ids), "start_id": target.start_id,
            "eos_id": target.eos_id, "source_eos_id": trained.tokenizers.source.eos_id,
            "byte_values": byte_values or {},
        }  # fmt: skip
        self.transformer = trained.transformer
        self.reference = Reference([trained.transformer], target.vocab_size, **self.special)
        self.engine = cache(self._engine)

    def _engine(self, precision: str) -> EngineModel:
        return EngineModel(self.transformer, self.shape, precision, **self.special)


@pytest.fixture(scope="module")
def pair(trained: TrainedModel) -> Pair:
    return Pair(trained)


def ids(found: list[list[Hypothesis]]) -> list[tuple[int, ...]]:
    """The best of each line."""
    return [some[0].ids for some in found]


def assert_alike(actual: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    """The best are equal on all lines; so are all scores, whatever stands at a rank."""
    assert len(actual) == COUNT
    assert ids(actual) == ids(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=2e-4)


SEARCHES = [
    Search(),
    Search(length_penalty=0, token_log_probs=True),
    Search(no_repeat_ngram_size=1),
    Search(no_repeat_ngram_size=3, renormalize=True),
    Search(repetition_penalty=1.5),
    Search(repetition_penalty=0.7, stops_loops=True),
    Search(stops_loops=True),
    Search(beam_size=2),
    Search(beam_size=4),
    Search(beam_size=4, early_stopping=True),
    Search(beam_size=4, length_penalty=0),
    Search(beam_size=4, length_penalty=2, length_norm="wu"),
    Search(beam_size=4, renormalize=True, token_log_probs=True),
    Search(beam_size=4, no_repeat_ngram_size=2),
    Search(beam_size=4, repetition_penalty=1.3, stops_loops=True),
    Search(beam_size=12),
    Search(sampling=True),
    Search(sampling=True, temperature=1.5, token_log_probs=True),
    Search(sampling=True, temperature=0.5, renormalize=True),
    Search(sampling=True, temperature=3, top_k=4),
    Search(sampling=True, temperature=3, top_p=0.8),
    Search(sampling=True, temperature=2, top_k=9, top_p=0.9, no_repeat_ngram_size=2),
    Search(sampling=True, temperature=2, repetition_penalty=1.4),
]
every_search = pytest.mark.parametrize(
    "how",
    [*SEARCHES[:1], *(pytest.param(how, marks=pytest.mark.slow) for how in SEARCHES[1:])],
    ids=str,
)


@every_search
def test_ids_are_those_of_the_reference(how: Search, pair: Pair, lines: Lines) -> None:
    assert_alike(engine_search(pair.engine("fp32"), lines, how), pair.reference.search(lines, how))


@pytest.mark.parametrize("stops_loops", [False, True])
def test_greedy_ids_are_those_of_the_reference(stops_loops: bool, pair: Pair, lines: Lines) -> None:
    how = Search(scores=False, stops_loops=stops_loops)

    result = engine_search(pair.engine("fp32"), lines, how)

    assert ids(result) == ids(pair.reference.search(lines, how))
    assert ids(result) == ids(engine_search(pair.engine("fp32"), lines, replace(how, scores=True)))


SOME = [
    Search(),
    Search(beam_size=4, token_log_probs=True),
    Search(beam_size=3, no_repeat_ngram_size=2, renormalize=True, repetition_penalty=1.2),
    Search(sampling=True, temperature=2),
]
some_searches = pytest.mark.parametrize(
    "how",
    [*SOME[1:2], *(pytest.param(how, marks=pytest.mark.slow) for how in (SOME[0], *SOME[2:]))],
    ids=str,
)


@some_searches
def test_prefixes_lead_to_what_they_lead_to_in_the_reference(
    how: Search, pair: Pair, lines: Lines
) -> None:
    chance, size = random.Random(5), pair.reference.vocab_size
    prefixes = [[chance.randrange(4, size) for _ in range(chance.choice([0, 1, 2, 5]))] for _ in lines.sources]  # fmt: skip  # noqa: E501
    led = replace(lines, prefixes=prefixes)

    assert_alike(engine_search(pair.engine("fp32"), led, how), pair.reference.search(led, how))


@some_searches
def test_shortlists_bound_what_they_bound_in_the_reference(
    how: Search, pair: Pair, lines: Lines
) -> None:
    chance, size = random.Random(6), pair.reference.vocab_size
    eos = pair.special["eos_id"]
    lists = [sorted({eos, *chance.sample(range(size), chance.choice([3, 8, 15]))}) for _ in lines.sources]  # fmt: skip  # noqa: E501
    lists[::7] = [[] for _ in lists[::7]]
    bounded = replace(lines, allowed=lists)

    assert_alike(
        engine_search(pair.engine("fp32"), bounded, how), pair.reference.search(bounded, how)
    )


@some_searches
def test_pieces_for_bytes_spell_characters(
    how: Search, trained: TrainedModel, lines: Lines
) -> None:
    """Words stand for bytes here, so that the constraint is in the way of nearly every line."""
    pieces = trained.tokenizers.target.pieces
    bytes_of = {"▁null": 0xC3, "▁eins": 0xA4, "▁zwei": 0xE2, "▁drei": 0x82, "▁vier": 0xF0, "▁fünf": 0x9F}  # fmt: skip  # noqa: E501
    pair = Pair(trained, {pieces.index(word): value for word, value in bytes_of.items()})

    expected = pair.reference.search(lines, how)

    assert_alike(engine_search(pair.engine("fp32"), lines, how), expected)
    assert ids(expected) != ids(Pair(trained).reference.search(lines, how))


@pytest.mark.parametrize("limit", [0, 1, 4])
@some_searches
def test_limits_cut_as_in_the_reference(how: Search, limit: int, pair: Pair, lines: Lines) -> None:
    short = replace(lines, limits=[limit] * COUNT)

    assert_alike(engine_search(pair.engine("fp32"), short, how), pair.reference.search(short, how))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("how", [Search(scores=False), Search(beam_size=4)], ids=str)
def test_coarser_precisions_find_nearly_the_same(
    how: Search, precision: str, pair: Pair, lines: Lines
) -> None:
    expected = ids(pair.reference.search(lines, how))
    actual = ids(engine_search(pair.engine(precision), lines, how))

    equal = sum(ours == theirs for ours, theirs in zip(actual, expected, strict=True))
    assert equal >= 0.93 * COUNT
