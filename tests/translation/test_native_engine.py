"""A translator with the native engine: the results of PyTorch, in bounded memory."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.translation.native_translator import needs_native
from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig
from tfm_cli.errors import ModelError, OutOfTime, ResourceError
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.native.library import LIBRARY, NONE
from tfm_cli.native.model import NativeModel
from tfm_cli.native.search import NativeSearch, Segments
from tfm_cli.translation import native_engine as module
from tfm_cli.translation.assembly import Translation
from tfm_cli.translation.native_engine import NativeEngine
from tfm_cli.translation.search import SearchOptions
from tfm_cli.translation.shortlist import Shortlist
from tfm_cli.translation.translator import Translator, TranslatorOptions

CPU = torch.device("cpu")
pytestmark = needs_native


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    return load_model(tiny_model, CPU)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> NativeModel:
    return NativeModel.load(tiny_model)


@pytest.fixture
def lines(tiny_corpus: TinyCorpus) -> list[str]:
    return [*tiny_corpus.lines("test.en")[:15], "", " ", "one " * 30, "one"]


def native(models: Sequence[NativeModel], options: SearchOptions, **how: Any) -> Translator:
    return Translator(NativeEngine(models, options), models[0].tokenizers, options, **how)


def assert_alike(actual: Sequence[Translation], expected: Sequence[Translation]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert [each.text for each in one.candidates] == [each.text for each in other.candidates]
        for own, its in zip(one.candidates, other.candidates, strict=True):
            assert own.score == pytest.approx(its.score, abs=1e-4)
            assert own.word_scores == pytest.approx(its.word_scores, abs=1e-4)
            assert len(own.alignment) == len(its.alignment)
            for row, its_row in zip(own.alignment, its.alignment, strict=True):
                assert row == pytest.approx(its_row, abs=1e-4)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "how",
    [
        {}, {"beam_size": 1}, {"n_best": 3}, {"no_repeat_ngram_size": 1}, {"max_length": 4},
        {"repetition_penalty": 1.3}, {"renormalize": True, "early_stopping": True},
        {"length_norm": "wu", "length_penalty": 0.5}, {"max_length_factor": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_translations_scores_and_alignments_are_those_of_pytorch(
    trained: TrainedModel, model: NativeModel, lines: list[str], how: dict[str, Any], count: int
) -> None:
    search = SearchConfig(max_tokens=200, **how)
    options = SearchOptions(settings=search, word_scores=True)
    prefixes = ["acht neun" if number % 4 == 1 else "" for number in range(len(lines))]

    actual = native([model] * count, options, alignment=True).translate_window(lines, prefixes)

    expected = torch_translator(
        trained.transformer, trained.tokenizers, search=search, word_scores=True, alignment=True,
        others=[trained.transformer] * (count - 1),
    ).translate_window(lines, prefixes)  # fmt: skip
    assert_alike(actual, expected)


def test_samples_are_those_of_pytorch(
    trained: TrainedModel, model: NativeModel, lines: list[str]
) -> None:
    search = SearchConfig(beam_size=1, n_best=2, temperature=2.0, top_k=5)
    options = SearchOptions(settings=search, sampling=True, word_scores=True)

    actual = native([model], options).translate_window(lines)

    expected = torch_translator(
        trained.transformer, trained.tokenizers, search=search, sampling=True, word_scores=True
    ).translate_window(lines)
    assert_alike(actual, expected)


def test_shortlist_gives_the_results_of_pytorch(
    trained: TrainedModel, model: NativeModel, lines: list[str]
) -> None:
    size = trained.tokenizers.source.vocab_size
    seen = [int(piece % 7 != 0) for piece in range(size)]
    rows = [[(piece * 5) % size, (piece * 3) % size] for piece in range(size)]
    table = Shortlist.of(rows, [[1, 1]] * size, seen, range(4, 9))
    search = SearchConfig()
    options = SearchOptions(settings=search, word_scores=True, shortlist=table)

    actual = native([model], options).translate_window(lines)

    expected = torch_translator(
        trained.transformer, trained.tokenizers, search=search, word_scores=True, shortlist=table
    ).translate_window(lines)
    assert_alike(actual, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("how", [{}, {"beam_size": 1}], ids=str)
def test_translation_depends_on_no_neighbor_to_the_bit(
    tiny_model: Path, lines: list[str], precision: str, how: dict[str, Any]
) -> None:
    options = SearchOptions(settings=SearchConfig(**how), word_scores=True)
    translator = native([NativeModel.load(tiny_model, precision=precision)], options)

    together = translator.translate_window(lines)

    assert [translator.translate_window([line])[0] for line in lines] == together
    assert translator.translate_window(lines[::-1]) == together[::-1]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_processes_share_a_model_and_find_the_same_to_the_bit(
    tiny_model: Path, lines: list[str], workers: int, precision: str
) -> None:
    search = SearchConfig(max_tokens=60, buffer_size=8)

    def translated(count: int) -> list[Translation]:
        translator = Translator.load(
            tiny_model,
            TranslatorOptions(search=search, word_scores=True, alignment=True),
            device="cpu",
            precision=precision,
            workers=count,
        )
        return list(translator.translate(lines))

    assert translated(workers) == translated(1)


@pytest.mark.parametrize(("workers", "mebibytes"), [(1, 1024), (2, 512), (4, 256), (16, 256)])
def test_workers_share_the_memory_for_caches(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, workers: int, mebibytes: int
) -> None:
    most: list[Any] = []

    def noted(models: Sequence[NativeModel], options: SearchOptions) -> NativeEngine:
        most.append(options.cache_bytes >> 20)
        return NativeEngine(models, options)

    monkeypatch.setattr("tfm_cli.translation.native_engine.NativeEngine", noted)

    Translator.load(tiny_model, device="cpu", workers=workers)

    assert most == [mebibytes]


def without_memory(
    monkeypatch: pytest.MonkeyPatch, too_many: Callable[[Segments], bool]
) -> list[int]:
    """Raise MemoryError for some batches; return the sizes of all others."""
    search, sizes = NativeSearch.__call__, list[int]()

    def limited(self: NativeSearch, segments: Segments, **how: Any) -> Any:
        if too_many(segments):
            raise MemoryError
        sizes.append(len(segments))
        return search(self, segments, **how)

    monkeypatch.setattr(NativeSearch, "__call__", limited)
    return sizes


def test_memory_that_a_batch_lacks_is_enough_for_half_of_it(
    model: NativeModel, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = native([model], SearchOptions(settings=SearchConfig()))
    expected = translator.translate_window(lines)
    sizes = without_memory(monkeypatch, lambda segments: len(segments) > 3)

    assert translator.translate_window(lines) == expected
    assert max(sizes) <= 3


def test_segment_that_does_not_fit_into_memory_is_reported_with_its_line(
    model: NativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_memory(monkeypatch, lambda segments: any(len(ids) > 5 for ids in segments.sources))
    translator = native([model], SearchOptions(settings=SearchConfig()))

    message = "line 2: cpu has no memory for a segment of 6 tokens with a beam of 4"
    with pytest.raises(ResourceError, match=message):
        translator.translate_window(["one", "one two three four five six"])


def test_exception_of_a_check_ends_the_search(model: NativeModel, lines: list[str]) -> None:
    def check() -> None:
        raise OutOfTime("1s passed")

    translator = native([model], SearchOptions(settings=SearchConfig(), check=check))

    with pytest.raises(OutOfTime, match="1s passed"):
        translator.translate_window(lines)


def test_weights_without_finite_scores_are_refused(trained: TrainedModel) -> None:
    weights = {name: tensor.clone() for name, tensor in trained.transformer.state_dict().items()}
    for tensor in weights.values():
        tensor.fill_(3e38)
    broken = NativeModel.from_weights(weights, trained.config, trained.tokenizers)
    translator = native([broken], SearchOptions(settings=SearchConfig()), name="broken")

    with pytest.raises(ModelError, match="broken: the weights are unusable"):
        translator.translate_window(["one"])


def test_learned_positions_bound_the_length_of_a_segment(model: NativeModel) -> None:
    def engine(positions: str) -> NativeEngine:
        shape = dataclasses.replace(model.config.model, positions=positions, max_positions=9)
        other = dataclasses.replace(model.config, model=shape)
        clone = object.__new__(NativeModel)
        clone.__dict__.update({**model.__dict__, "config": other})
        return NativeEngine([clone], SearchOptions(settings=SearchConfig()))

    assert engine("learned").max_segment_tokens == 8
    assert engine("rotary").max_segment_tokens > 10**9


# Which engine serves.


def test_translating_imports_neither_pytorch_nor_numpy(tiny_model: Path) -> None:
    script = (
        "import sys\n"
        "from tfm_cli.cli import app\n"
        "try:\n"
        "    app(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, "translate", "-q", "-m", str(tiny_model)]
    command += ["--device", "cpu", "--format", "json", "--alignment", "hard"]

    done = subprocess.run(command, input="one two\n", capture_output=True, text=True, check=True)

    assert '"translation": "eins zwei"' in done.stdout
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pytorch_serves_where_the_engine_is_not(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setenv(LIBRARY, NONE)

    translator = Translator.load(tiny_model, device="cpu", precision=precision)

    assert [each.text for each in translator.translate(["one two"])] == ["eins zwei"]


def test_int8_needs_the_engine(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY, NONE)

    with pytest.raises(ResourceError) as caught:
        Translator.load(tiny_model, device="cpu", precision="int8")

    assert str(caught.value) == (
        f"`--precision int8` needs the native CPU engine: {LIBRARY} is `{NONE}`"
    )


def test_batch_is_searched_in_the_parts_that_are_fastest(
    model: NativeModel, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = native([model], SearchOptions(settings=SearchConfig()))
    sizes = without_memory(monkeypatch, lambda segments: False)
    expected = translator.translate_window(lines)
    together = list(sizes)
    # Keys and values of a token in one layer: cross-attention and four hypotheses.
    of_token = 2 * model.config.model.width * 4 * 5
    monkeypatch.setattr(module, "_CACHED_BYTES", 30 * of_token)
    monkeypatch.setattr(model, "num_bytes", 0)
    sizes.clear()

    actual = translator.translate_window(lines)

    assert actual == expected
    assert together == [len(lines) - 2]
    assert sum(sizes) == len(lines) - 2
    assert 1 < max(sizes) < len(lines) - 2
