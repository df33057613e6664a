"""The translator with a model that has learned something, in double precision."""

import random
from pathlib import Path

import pytest
import torch

from tests.conftest import TinyCorpus
from tfm_cli.config import SearchConfig
from tfm_cli.model_dir import TrainedModel, load_model
from tfm_cli.translation.translator import Translation, Translator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    model = load_model(tiny_model, CPU)
    model.transformer.double()
    return model


@pytest.fixture
def lines(tiny_corpus: TinyCorpus) -> list[str]:
    return [*tiny_corpus.lines("test.en")[:10], "", " ", "one", "one"]


def translate(trained: TrainedModel, lines: list[str], **search: float) -> list[Translation]:
    config = SearchConfig(**search)  # type: ignore[arg-type]
    translator = Translator(trained.transformer, trained.tokenizers, search=config, device=CPU)
    return list(translator.translate(lines))


def draw(trained: TrainedModel, lines: list[str], **search: float) -> list[Translation]:
    config = SearchConfig(beam_size=1, temperature=4.0, **search)  # type: ignore[arg-type]
    translator = Translator(
        trained.transformer, trained.tokenizers, search=config, sampling=True, device=CPU
    )
    return list(translator.translate(lines))


def texts(translations: list[Translation]) -> list[list[str]]:
    return [[candidate.text for candidate in t.candidates] for t in translations]


def test_trained_model_translates(trained: TrainedModel, tiny_corpus: TinyCorpus) -> None:
    translations = translate(trained, tiny_corpus.lines("test.en"))

    wanted = tiny_corpus.lines("test.de")
    right = sum(t.text == line for t, line in zip(translations, wanted, strict=True))
    assert right > 0.9 * len(wanted)


@pytest.mark.parametrize(
    "how",
    [{"buffer_size": 1}, {"buffer_size": 3}, {"max_tokens": 1}, {"max_tokens": 70}],
    ids=str,
)
def test_window_and_batch_do_not_matter(
    trained: TrainedModel, lines: list[str], how: dict[str, float]
) -> None:
    whole = translate(trained, lines, n_best=2)

    assert texts(translate(trained, lines, n_best=2, **how)) == texts(whole)


def test_order_does_not_matter(trained: TrainedModel, lines: list[str]) -> None:
    order = random.Random(1).sample(range(len(lines)), len(lines))

    shuffled = translate(trained, [lines[i] for i in order])

    wanted = translate(trained, lines)
    assert texts(shuffled) == texts([wanted[i] for i in order])


def test_one_line_has_one_translation_wherever_it_stands(trained: TrainedModel) -> None:
    translations = translate(trained, ["six two", "one " * 7, "six two", "", "six two"])

    assert texts(translations)[0] == texts(translations)[2] == texts(translations)[4]


@pytest.mark.parametrize("how", [{"buffer_size": 1}, {"max_tokens": 1}], ids=str)
def test_draw_depends_on_the_seed_and_the_line_number_alone(
    trained: TrainedModel, how: dict[str, float]
) -> None:
    lines = ["one two three"] * 12

    drawn = texts(draw(trained, lines))

    assert texts(draw(trained, lines, **how)) == drawn
    assert texts(draw(trained, lines, seed=2)) != drawn
    assert len({text for (text,) in drawn}) > 6


def test_draw_of_a_line_does_not_depend_on_the_other_lines(trained: TrainedModel) -> None:
    drawn = draw(trained, ["", "one two", "three"])

    among_others = draw(trained, ["six " * 7, "one two", "nine"])
    assert drawn[1].text == among_others[1].text
