"""Greedy translation without scores gives the same texts with less work."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.decoding.searching import greedy_search
from tests.translation.native_translator import needs_native
from tfm_cli.config.settings import SearchConfig
from tfm_cli.native.library import LIBRARY, NONE
from tfm_cli.translation import torch_engine as module
from tfm_cli.translation.translator import Translator, TranslatorOptions


@pytest.fixture
def num_greedy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the number of segments of each greedy search in PyTorch."""
    monkeypatch.setenv(LIBRARY, NONE)
    sizes: list[int] = []

    def counting(model: Any, source: torch.Tensor, *others: Any, **options: Any) -> Any:
        sizes.append(len(source))
        return greedy_search(model, source, *others, **options)

    monkeypatch.setattr(module, "greedy_search", counting)
    return sizes


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        (NONE, "fp32"),
        pytest.param("", "fp32", marks=needs_native),
        pytest.param("", "int8", marks=needs_native),
    ],
)
@pytest.mark.parametrize("max_tokens", [60, 4096])
def test_texts_are_the_same_without_scores(
    tiny_model: Path, tiny_corpus: TinyCorpus, monkeypatch: pytest.MonkeyPatch, engine: str,
    precision: str, max_tokens: int,
) -> None:  # fmt: skip
    if engine:
        monkeypatch.setenv(LIBRARY, engine)
    search = SearchConfig(beam_size=1, max_tokens=max_tokens, buffer_size=20)
    lines = [*tiny_corpus.lines("test.en"), "", "one " * 40, "one"]

    def translated(*, scores: bool) -> list[str]:
        translator = Translator.load(
            tiny_model,
            TranslatorOptions(search=search, scores=scores),
            device="cpu",
            precision=precision,
        )
        translations = list(translator.translate(lines))
        text_scores = [translation.candidates[0].score for translation in translations]
        unknown = [bool(line) and not scores for line in lines]
        assert [math.isnan(score) for score in text_scores] == unknown
        return [translation.text for translation in translations]

    assert translated(scores=False) == translated(scores=True)


@pytest.mark.parametrize("scores", [True, False])
def test_pytorch_searches_greedily_without_scores(
    tiny_model: Path, tiny_corpus: TinyCorpus, num_greedy: list[int], scores: bool
) -> None:
    translator = Translator.load(
        tiny_model,
        TranslatorOptions(search=SearchConfig(beam_size=1), scores=scores),
        device="cpu",
    )
    lines = tiny_corpus.lines("test.en")

    translator.translate_window(lines)

    assert sum(num_greedy) == (0 if scores else len(lines))


@pytest.mark.parametrize(
    "search",
    [
        SearchConfig(beam_size=2),
        SearchConfig(beam_size=1, no_repeat_ngram_size=2),
        SearchConfig(beam_size=1, repetition_penalty=1.2),
    ],
    ids=["beam", "n-grams", "penalty"],
)
def test_unsupported_options_of_greedy_search_use_another_search(
    tiny_model: Path, num_greedy: list[int], search: SearchConfig
) -> None:
    translator = Translator.load(
        tiny_model, TranslatorOptions(search=search, scores=False), device="cpu"
    )

    (translation,) = translator.translate(["one two"])

    assert translation.text == "eins zwei"
    assert num_greedy == []


def test_prefixes_are_left_to_others(tiny_model: Path, num_greedy: list[int]) -> None:
    search = SearchConfig(beam_size=1)
    translator = Translator.load(
        tiny_model, TranslatorOptions(search=search, scores=False), device="cpu"
    )

    (forced,) = translator.translate_window(["one two"], ["neun"])
    assert num_greedy == []
    (free,) = translator.translate_window(["one two"])

    assert forced.text.startswith("neun")
    assert free.text == "eins zwei"
    assert num_greedy == [1]
