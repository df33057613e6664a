"""The search for GPUs, run on a CPU: same translations, and fallback to the other search."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.decoding.replay import ReplayedStep
from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding.static import search as fixed_search_module
from tfm_cli.decoding.static.search import StaticSearch
from tfm_cli.decoding.static.steps import StaticBeams, StaticGreedy
from tfm_cli.device import Device
from tfm_cli.model_directory import weights
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.translation import torch_engine, translator
from tfm_cli.translation.assembly import Translation
from tfm_cli.translation.shortlist import Shortlist
from tfm_cli.translation.translator import Translator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    return load_model(tiny_model, CPU)


@pytest.fixture
def lines(tiny_corpus: TinyCorpus) -> list[str]:
    return [*tiny_corpus.lines("test.en")[:20], "", "one " * 30, "one"]


@pytest.fixture
def fixed_limits(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[int]]:
    """Return the limits of each batch that was searched with static shapes."""
    seen: list[Sequence[int]] = []
    search = StaticSearch.__call__

    def noting(self: Any, *sources: Any, limits: Sequence[int]) -> Any:
        seen.append(limits)
        return search(self, *sources, limits=limits)

    monkeypatch.setattr(StaticSearch, "__call__", noting)
    return seen


def translator_of(
    trained: TrainedModel, *, static_steps: bool, scores: bool = True, **search: Any
) -> Translator:
    return torch_translator(
        trained.transformer, trained.tokenizers, search=SearchConfig(**search), device=CPU,
        scores=scores, static_steps=static_steps,
    )  # fmt: skip


def assert_same(actual: list[Translation], expected: list[Translation]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert [c.text for c in ours.candidates] == [c.text for c in theirs.candidates]
        for one, other in zip(ours.candidates, theirs.candidates, strict=True):
            # fp32 with another order of summation.
            assert one.score == pytest.approx(other.score, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    "search",
    [
        {"beam_size": 4, "n_best": 3},
        {"beam_size": 3, "max_tokens": 60, "early_stopping": True, "renormalize": True},
        {"beam_size": 1, "length_penalty": 0.6, "length_norm": "wu", "max_length_factor": 0.5},
    ],
    ids=str,
)
def test_translations_are_those_of_the_plain_search(
    trained: TrainedModel, lines: list[str], search: dict[str, Any],
    fixed_limits: list[Sequence[int]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(fixed_search_module, "StepGraph", ReplayedStep)
    expected = list(translator_of(trained, static_steps=False, **search).translate(lines))
    assert not fixed_limits

    actual = list(translator_of(trained, static_steps=True, **search).translate(lines))

    assert_same(actual, expected)
    assert sum(map(len, fixed_limits)) == len(lines) - 1  # no other search ran


def test_greedy_translations_without_scores_are_the_same(
    trained: TrainedModel, lines: list[str], fixed_limits: list[Sequence[int]]
) -> None:
    how: dict[str, Any] = {"beam_size": 1, "scores": False}
    expected = list(translator_of(trained, static_steps=False, **how).translate(lines))

    actual = list(translator_of(trained, static_steps=True, **how).translate(lines))

    assert_same(actual, expected)
    assert math.isnan(actual[0].candidates[0].score)
    assert sum(map(len, fixed_limits)) == len(lines) - 1


@pytest.mark.parametrize(
    "search",
    [{"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.3}, {"sampling": True, "beam_size": 1},
     {"word_scores": True}],
    ids=str,
)  # fmt: skip
def test_batches_without_static_shapes_use_the_other_search(
    trained: TrainedModel, lines: list[str], search: dict[str, Any],
    fixed_limits: list[Sequence[int]],
) -> None:  # fmt: skip
    flags = {name: search.pop(name) for name in ("sampling", "word_scores") if name in search}

    def translated(*, static_steps: bool) -> list[str]:
        translator = torch_translator(
            trained.transformer, trained.tokenizers, search=SearchConfig(**search), device=CPU,
            static_steps=static_steps, **flags,
        )  # fmt: skip
        return [translation.text for translation in translator.translate(lines[:5])]

    assert translated(static_steps=True) == translated(static_steps=False)
    assert not fixed_limits


def test_several_models_are_searched_as_before(
    trained: TrainedModel, lines: list[str], fixed_limits: list[Sequence[int]]
) -> None:
    translator = torch_translator(
        trained.transformer, trained.tokenizers, search=SearchConfig(), device=CPU,
        others=[trained.transformer], static_steps=True,
    )  # fmt: skip

    assert len(list(translator.translate(lines[:3]))) == 3
    assert not fixed_limits


def test_batches_with_prefixes_are_searched_as_before(
    trained: TrainedModel, lines: list[str], fixed_limits: list[Sequence[int]]
) -> None:
    translator = translator_of(trained, static_steps=True)
    (plain,) = translator.translate_window(lines[:1])
    assert len(fixed_limits) == 1

    (result,) = translator.translate_window(lines[:1], [plain.text.split()[0]])

    assert result.text == plain.text
    assert len(fixed_limits) == 1


def test_batches_with_a_shortlist_are_searched_as_before(
    trained: TrainedModel, lines: list[str], fixed_limits: list[Sequence[int]]
) -> None:
    size = trained.tokenizers.source.vocab_size
    shortlist = Shortlist.of([[-1]] * size, [[0]] * size, [1] * size, range(4, 14))

    def translated(*, static_steps: bool) -> list[Translation]:
        translator = torch_translator(
            trained.transformer, trained.tokenizers, search=SearchConfig(), device=CPU,
            shortlist=shortlist, static_steps=static_steps,
        )  # fmt: skip
        return list(translator.translate(lines[:1]))

    assert_same(translated(static_steps=True), translated(static_steps=False))
    assert not fixed_limits


def test_memory_that_a_batch_lacks_is_enough_for_half_of_it(
    trained: TrainedModel, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(translator_of(trained, static_steps=True).translate(lines))

    class Large(StaticBeams):
        def __init__(self, segments: int, *others: Any, **options: Any) -> None:
            if segments > 6:
                raise torch.OutOfMemoryError
            super().__init__(segments, *others, **options)

    monkeypatch.setattr(torch_engine, "StaticBeams", Large)

    assert_same(list(translator_of(trained, static_steps=True).translate(lines)), expected)


@pytest.mark.parametrize(
    ("device", "precision", "is_fixed"), [("cuda", "fp16", True), ("mps", "fp16", False)]
)
def test_gpus_with_graphs_have_steps_of_fixed_shapes(
    device: str, precision: str, is_fixed: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load as for a GPU, with the weights on the CPU."""
    asked: list[tuple[torch.device, torch.dtype]] = []

    def noting(*model: Any, device: torch.device, dtype: torch.dtype, **others: Any) -> None:
        asked.append((device, dtype))

    monkeypatch.setattr(translator, "resolve_device", Device)
    monkeypatch.setattr(weights, "load_model", lambda directory, _: load_model(directory, CPU))
    monkeypatch.setattr(torch_engine, "static_search", noting)

    Translator.load(tiny_model, device=device, precision=precision)

    assert asked == ([(torch.device(device), torch.float16)] if is_fixed else [])


@pytest.mark.parametrize(
    ("beam_size", "scores", "rows"),
    [(1, False, StaticGreedy), (1, True, StaticBeams), (4, False, StaticBeams)],
)
def test_greedy_search_without_scores_has_its_own_steps(
    trained: TrainedModel, beam_size: int, scores: bool, rows: type
) -> None:
    vocabulary = torch_engine.target_vocabulary(trained.tokenizers.target, CPU)

    search = torch_engine.static_search(
        trained.transformer, vocabulary, SearchConfig(beam_size=beam_size),
        scores=scores, device=CPU, dtype=torch.float32,
    )  # fmt: skip

    assert search is not None
    assert type(search._make_search_state(1, 32)) is rows
