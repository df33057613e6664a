"""The translator of a model in training, with its current weights."""

from pathlib import Path

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.translation.native_translator import needs_native
from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding.interface import NonFiniteScoresError
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.native.library import LIBRARY, NONE
from tfm_cli.training.validation import TranslatorFactory, translator_factory, uses_native_engine
from tfm_cli.translation.search import SearchOptions

CPU = torch.device("cpu")


@pytest.fixture
def trained(tiny_model: Path) -> TrainedModel:
    return load_model(tiny_model, CPU)


def translators_of(trained: TrainedModel) -> TranslatorFactory:
    options = SearchOptions(settings=SearchConfig(beam_size=1), scores=False, stops_loops=True)
    return translator_factory(
        trained.transformer, trained.tokenizers, trained.config, options,
        device=CPU, dtype=torch.float32,
    )  # fmt: skip


def texts(present: TranslatorFactory, lines: list[str]) -> list[str]:
    with present() as translator:
        return [each.text for each in translator.translate_window(lines)]


@needs_native
def test_engine_finds_what_pytorch_finds(
    trained: TrainedModel, tiny_corpus: TinyCorpus, monkeypatch: pytest.MonkeyPatch,
    log_messages: list[str],
) -> None:  # fmt: skip
    lines = tiny_corpus.lines("valid.en")
    assert uses_native_engine(CPU)
    present = translators_of(trained)

    result, again = texts(present, lines), texts(present, lines)

    assert [line.partition(":")[0] for line in log_messages] == ["validation"]  # once
    monkeypatch.setenv(LIBRARY, NONE)
    assert not uses_native_engine(CPU)
    assert texts(translators_of(trained), lines) == result == again


@needs_native
def test_weights_are_those_of_the_moment(trained: TrainedModel) -> None:
    present = translators_of(trained)
    before = texts(present, ["one two"])

    with torch.no_grad():
        for parameter in trained.transformer.parameters():
            parameter.mul_(-1)
    after = texts(present, ["one two"])

    assert before == ["eins zwei"]
    assert after != before


@needs_native
def test_non_finite_weights_raise_an_error_of_their_own(trained: TrainedModel) -> None:
    present = translators_of(trained)
    with torch.no_grad():
        next(trained.transformer.parameters()).fill_(float("nan"))

    with pytest.raises(NonFiniteScoresError, match="are no finite numbers"):
        texts(present, ["one"])
