"""The translator with a trained model, in double precision."""

import random
from pathlib import Path

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.translation.assembly import Translation
from tfm_cli.translation.translator import Translator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    model = load_model(tiny_model, CPU)
    model.transformer.double()
    return model


@pytest.fixture
def lines(tiny_corpus: TinyCorpus) -> list[str]:
    return [*tiny_corpus.lines("test.en")[:10], "", " ", "one", "one"]


def translator_of(trained: TrainedModel, **search: float) -> Translator:
    config = SearchConfig(**search)  # type: ignore[arg-type]
    return torch_translator(
        trained.transformer, trained.tokenizers, search=config, device=CPU, word_scores=True
    )


def translate(trained: TrainedModel, lines: list[str], **search: float) -> list[Translation]:
    return list(translator_of(trained, **search).translate(lines))


def draw(trained: TrainedModel, lines: list[str], **search: float) -> list[Translation]:
    config = SearchConfig(beam_size=1, temperature=4.0, **search)  # type: ignore[arg-type]
    translator = torch_translator(
        trained.transformer, trained.tokenizers, search=config, sampling=True, device=CPU
    )
    return list(translator.translate(lines))


def texts(translations: list[Translation]) -> list[list[str]]:
    return [[candidate.text for candidate in t.candidates] for t in translations]


def test_trained_model_translates(trained: TrainedModel, tiny_corpus: TinyCorpus) -> None:
    translations = translate(trained, tiny_corpus.lines("test.en"))

    expected = tiny_corpus.lines("test.de")
    right = sum(t.text == line for t, line in zip(translations, expected, strict=True))
    assert right > 0.9 * len(expected)


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

    expected = translate(trained, lines)
    assert texts(shuffled) == texts([expected[i] for i in order])


def test_translation_does_not_depend_on_the_position_of_the_line(trained: TrainedModel) -> None:
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


@pytest.mark.parametrize("max_tokens", [1, 4096])
@pytest.mark.parametrize("beam_size", [1, 4])
def test_translations_begin_with_their_prefixes(
    trained: TrainedModel, max_tokens: int, beam_size: int
) -> None:
    translator = translator_of(trained, beam_size=beam_size, max_tokens=max_tokens)
    lines = ["one two three", "one two three", "", "four five", "six"]
    prefixes = ["", "eins neun", "eins", "null", "sechs sieben acht neun"]

    result = [t.text for t in translator.translate_window(lines, prefixes)]

    assert result[0] == "eins zwei drei"
    assert result[1].startswith("eins neun ")
    assert result[2] == ""  # a blank line stays blank
    assert result[3].startswith("null fünf")
    assert result[4].startswith("sechs sieben acht neun")


def test_prefix_that_the_model_would_write_anyway_changes_nothing(trained: TrainedModel) -> None:
    (plain,) = translator_of(trained).translate_window(["one two three"])
    (forced,) = translator_of(trained).translate_window(["one two three"], ["eins zwei"])

    assert (forced.text, forced.num_tokens) == (plain.text, plain.num_tokens)
    assert forced.candidates[0].log_probability == pytest.approx(
        plain.candidates[0].log_probability, abs=1e-9
    )


def test_draws_begin_with_their_prefixes(trained: TrainedModel) -> None:
    config = SearchConfig(beam_size=1, temperature=4.0)
    translator = torch_translator(
        trained.transformer, trained.tokenizers, search=config, sampling=True, device=CPU
    )

    drawn = translator.translate_window(["one two three"] * 8, ["neun acht"] * 8)

    assert all(t.text.startswith("neun acht") for t in drawn)
    assert len({t.text for t in drawn}) > 3


@pytest.mark.parametrize("how", [{}, {"beam_size": 1}, {"max_length": 2}], ids=str)
def test_scores_of_the_pieces_sum_to_the_log_probability(
    trained: TrainedModel, lines: list[str], how: dict[str, float]
) -> None:
    for translation in translate(trained, lines, n_best=1, **how):
        (best,) = translation.candidates
        assert len(best.pieces) == len(best.word_scores) == translation.num_tokens
        assert sum(best.word_scores) == pytest.approx(best.log_probability, rel=1e-12)
        words = [piece for piece in best.pieces if piece != "</s>"]
        assert "".join(words).replace("▁", " ").strip() == best.text
        if how == {"max_length": 2} and translation.source == "one two three":
            assert best.pieces.count("</s>") == 2


def test_no_token_is_repeated_if_requested(trained: TrainedModel) -> None:
    (plain,) = translate(trained, ["one one two one"])
    (without,) = translate(trained, ["one one two one"], no_repeat_ngram_size=1)

    assert plain.text == "eins eins zwei eins"
    assert len(set(without.text.split())) == len(without.text.split())


def test_penalty_keeps_from_repeating(trained: TrainedModel) -> None:
    (penalized,) = translate(trained, ["one one one one"], repetition_penalty=1000.0)

    assert penalized.text.count("eins") == 1


def test_model_with_itself_translates_as_alone(trained: TrainedModel, lines: list[str]) -> None:
    together = torch_translator(
        trained.transformer, trained.tokenizers, search=SearchConfig(), device=CPU,
        others=[trained.transformer],
    )  # fmt: skip

    for one, other in zip(together.translate(lines), translate(trained, lines), strict=True):
        assert one.text == other.text
        assert one.candidates[0].score == pytest.approx(other.candidates[0].score, abs=1e-9)
