"""Several processes give the results of one, bit by bit and in order."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.decoding.searching import beam_search
from tests.tiers import representative
from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig
from tfm_cli.errors import DataError, ResourceError
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.translation import torch_engine as module
from tfm_cli.translation.assembly import Translation
from tfm_cli.translation.segments import Lines
from tfm_cli.translation.translator import Translator

CPU = torch.device("cpu")
MANY = SearchConfig(max_tokens=100, buffer_size=10)  # several batches in each of several windows


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    return load_model(tiny_model, CPU)


@pytest.fixture
def lines(tiny_corpus: TinyCorpus) -> list[str]:
    return [*tiny_corpus.lines("test.en")[:22], "", " ", "one " * 30, "one"]


TranslatorOf = Callable[..., Translator]


@pytest.fixture
def translator_of(trained: TrainedModel) -> TranslatorOf:
    def make(workers: int, *, sampling: bool = False, **search: float) -> Translator:
        config = dataclasses.replace(MANY, **search)  # type: ignore[arg-type]
        return torch_translator(
            trained.transformer, trained.tokenizers, search=config, device=CPU,
            word_scores=True, sampling=sampling, workers=workers,
        )  # fmt: skip

    return make


@pytest.fixture
def num_started(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a counter of the processes started so far."""
    fork, pids = os.fork, []

    def counting() -> int:
        pids.append(fork())
        return pids[-1]

    monkeypatch.setattr(os, "fork", counting)
    return lambda: len(pids)


@pytest.mark.slow
@representative(
    ("how", "workers"),
    [
        ({}, 3), ({"beam_size": 1}, 2), ({"n_best": 3}, 2), ({"max_length": 4}, 2),
        ({"buffer_size": 1000}, 3), ({"no_repeat_ngram_size": 2}, 2),
        ({"beam_size": 1, "sampling": True, "temperature": 4.0}, 2),
    ],
    ids=str,
)  # fmt: skip
def test_any_number_of_processes_finds_the_same(
    translator_of: TranslatorOf, lines: list[str], num_started: Callable[[], int],
    how: dict[str, float], workers: int,
) -> None:  # fmt: skip
    alone = list(translator_of(1, **how).translate(lines))
    assert num_started() == 0

    together = list(translator_of(workers, **how).translate(lines))

    assert num_started() == workers
    assert together == alone  # including scores
    assert [translation.source for translation in together] == lines


def test_prefixes_go_with_their_lines(translator_of: TranslatorOf, lines: list[str]) -> None:
    prefixes = ["acht neun" if number % 3 else "" for number in range(len(lines))]
    window = Lines(lines, prefixes)

    (alone,) = translator_of(1).translate_windows([window])
    (together,) = translator_of(2).translate_windows([window])

    assert together == alone == translator_of(1).translate_window(lines, prefixes)
    assert together[1].text.startswith("acht neun")


def test_models_translate_together_in_several_processes(
    trained: TrainedModel, lines: list[str]
) -> None:
    result = [
        list(
            torch_translator(
                trained.transformer, trained.tokenizers, search=MANY, device=CPU,
                others=[trained.transformer], workers=workers,
            ).translate(lines)
        )
        for workers in (1, 2)
    ]  # fmt: skip

    assert result[0] == result[1]


def test_short_input_starts_no_process(
    translator_of: TranslatorOf, num_started: Callable[[], int]
) -> None:
    windows = [Lines(["one two"]), Lines([""]), Lines(["three", "four"])]

    result = list(translator_of(4).translate_windows(windows))

    assert [[t.text for t in window] for window in result] == [
        ["eins zwei"],
        [""],
        ["drei", "vier"],
    ]
    assert num_started() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_than_a_window_is_read_ahead(translator_of: TranslatorOf, workers: int) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "one two three"

    translations = translator_of(workers, buffer_size=40).translate(endless())
    for window in range(1, 5):
        for _ in range(40):
            assert next(translations).text == "eins zwei drei"
        assert read <= 40 * (window + workers - 1)
    # It is a generator, although declared as an iterator.
    translations.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_that_was_read_is_given_out_before_more_is_waited_for(
    translator_of: TranslatorOf, lines: list[str], workers: int
) -> None:
    given: list[list[Translation]] = []
    given_at_pauses = []

    def windows() -> Iterator[Lines]:
        for start in (0, 10, 20):
            yield Lines(lines[start : start + 10])
            if start:
                yield Lines([])
                given_at_pauses.append(len(given))

    for translations in translator_of(workers).translate_windows(windows()):
        given.append(translations)

    assert given_at_pauses == [2, 3]
    assert [t.source for window in given for t in window] == lines[:30]


@pytest.mark.parametrize("workers", [1, 2])
def test_lines_before_an_unreadable_input_are_translated(
    translator_of: TranslatorOf, lines: list[str], workers: int
) -> None:
    def windows() -> Iterator[Lines]:
        yield Lines(lines[:10])
        yield Lines(lines[10:20])
        raise DataError("line 21 is torn")

    translations = translator_of(workers).translate_windows(windows())

    assert len(next(translations)) == len(next(translations)) == 10
    with pytest.raises(DataError, match="line 21 is torn"):
        next(translations)


@pytest.mark.parametrize("workers", [1, 2])
def test_warnings_are_given_once_in_line_order(
    translator_of: TranslatorOf, log_messages: list[str], workers: int
) -> None:
    lines = ["one " * (5 if number in (3, 14, 15) else 2) for number in range(20)]

    list(translator_of(workers, max_length=4).translate(lines))

    assert log_messages == [
        f"line {number} has 5 tokens, more than 4: split" for number in (4, 15, 16)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_lack_of_memory_in_a_worker_is_reported_with_its_line(
    translator_of: TranslatorOf, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    search = beam_search

    def without_memory(
        model: object, source: Sequence[Sequence[int]], *rest: object, **more: object
    ) -> object:
        if len(source[0]) > 6:
            raise torch.OutOfMemoryError
        return search(model, source, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "beam_search", without_memory)
    lines = ["one two three"] * 20 + ["one two three four five six"] + ["one"] * 20

    translations = translator_of(workers, buffer_size=10).translate(lines)

    assert [next(translations).text for _ in range(20)] == ["eins zwei drei"] * 20
    message = "line 21: cpu has no memory for a segment of 6 tokens with a beam of 4"
    with pytest.raises(ResourceError, match=message) as caught:
        next(translations)
    assert "--beam-size" in str(caught.value.hint)


@pytest.mark.parametrize("workers", [1, 2])
def test_process_has_one_thread(
    translator_of: TranslatorOf, monkeypatch: pytest.MonkeyPatch, lines: list[str], workers: int
) -> None:
    translator = translator_of(workers)
    monkeypatch.setattr(translator, "_search_batch", lambda batch: [torch.get_num_threads()])
    monkeypatch.setattr(translator, "_assemble", lambda lines, batches, result: [result[-1][-1]])

    # The fake model does not translate.
    assert next(translator.translate_windows([Lines(lines)])) == [1]  # type: ignore[comparison-overlap]
