"""N-best lists have different texts, and as many samples as requested."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.decoding.searching import sample
from tests.translation.spelling_models import spelling_tokenizer, spelling_transformer
from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding.interface import DecodingOptions, Hypothesis
from tfm_cli.model.transformer import Transformer
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.translation import search as searching
from tfm_cli.translation import torch_engine as module
from tfm_cli.translation.assembly import Translation

CPU = torch.device("cpu")
LINES = ["one two", "", "three", "four five six seven"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return spelling_tokenizer()


@pytest.fixture(scope="module")
def twins(tokenizer: Tokenizer) -> Transformer:
    """Return a model to which the byte of a letter is a little less likely than the letter."""
    return spelling_transformer(tokenizer, 2, twins=True)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def translated(
    transformer: Transformer, tokenizer: Tokenizer, lines: Sequence[str], **how: Any
) -> list[Translation]:
    flags = {
        name: how.pop(name)
        for name in ("sampling", "word_scores", "alignment", "static_steps")
        if name in how
    }
    translator = torch_translator(
        transformer, TokenizerPair.joint(tokenizer), device=CPU,
        search=SearchConfig(**{"max_length_factor": 0.01, **how}), **flags,
    )  # fmt: skip
    return translator.translate_window(lines)


def texts_of(translation: Translation) -> list[str]:
    return [candidate.text for candidate in translation.candidates]


@pytest.mark.parametrize("how", [{}, {"static_steps": True}, {"length_penalty": 0.0}], ids=str)
def test_texts_of_a_list_are_distinct(
    twins: Transformer, tokenizer: Tokenizer, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, blank, *others = translated(twins, tokenizer, LINES, n_best=6, beam_size=6, **how)

    for translation in (one, *others):
        assert len(set(texts_of(translation))) == 6
        scores = [candidate.score for candidate in translation.candidates]
        assert scores == sorted(scores, reverse=True)
    assert texts_of(blank) == [""] * 6
    # The beam alone finds the same text more than once.
    monkeypatch.setattr(
        searching, "different_texts", lambda search, *_, segments, beam_size, **__: search(
            range(segments), beam_size
        ),
    )  # fmt: skip
    plain = translated(twins, tokenizer, LINES, n_best=6, beam_size=6, **how)
    assert min(len(set(texts_of(plain[i]))) for i in (0, 2, 3)) < 6
    assert [texts_of(plain[i])[0] for i in (0, 2, 3)] == [
        texts_of(translation)[0] for translation in (one, *others)
    ]


def test_scores_of_pieces_and_alignments_are_those_of_each_candidate(
    twins: Transformer, tokenizer: Tokenizer
) -> None:
    (result,) = translated(
        twins, tokenizer, LINES[:1], n_best=5, beam_size=5, word_scores=True, alignment=True
    )

    for candidate in result.candidates:
        assert sum(candidate.word_scores) == pytest.approx(candidate.log_probability, abs=1e-4)
        assert len(candidate.pieces) == len(candidate.word_scores)
        assert len(candidate.alignment) == len(candidate.text.split())
    assert len(set(texts_of(result))) == 5


def test_candidates_of_a_split_line_have_different_texts(
    twins: Transformer, tokenizer: Tokenizer
) -> None:
    line = "one two three four five six seven eight nine"

    (result,) = translated(
        twins, tokenizer, [line], n_best=8, beam_size=8, max_length=10, alignment=True
    )

    assert len(set(texts_of(result))) == 8
    scores = [candidate.score for candidate in result.candidates]
    assert scores == sorted(scores, reverse=True)


class FewTexts:
    """A fake `beam_search`: each segment has a few texts for any beam."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self.ids = [tuple(ids) for ids in tokenizer.encode(texts)]
        self.beams: list[tuple[int, int]] = []

    def __call__(
        self, model: object, source: torch.Tensor, keep: object, *, limits: Sequence[int],
        options: DecodingOptions, **others: object,
    ) -> list[list[Hypothesis]]:  # fmt: skip
        beam_size = options.settings.beam_size
        self.beams.append((len(limits), beam_size))
        some = [
            Hypothesis(self.ids[rank % len(self.ids)], -rank, -rank / 2)
            for rank in range(beam_size)
        ]
        return [some for _ in limits]


def test_too_few_texts_are_reported_once(
    twins: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch,
    log_messages: list[str],
) -> None:  # fmt: skip
    few = FewTexts(tokenizer, ["one", "two"])
    monkeypatch.setattr(module, "beam_search", few)

    result = translated(twins, tokenizer, ["", "one", "two", "three"], n_best=3, beam_size=4)

    assert [texts_of(each) for each in result] == [["", "", ""]] + [["one", "two"]] * 3
    message = "line 2: even a wider search finds only 2 different translations of the 3 requested"
    assert log_messages == [message]
    assert [width for _, width in few.beams] == sorted(width for _, width in few.beams)
    assert few.beams[-1] == (1, 256)
    assert all(rows * width <= max(3 * 4, width) for rows, width in few.beams)


def test_parts_with_few_texts_give_all_their_choices(
    twins: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "beam_search", FewTexts(tokenizer, ["one", "two"]))
    line = "one two three four five"

    (result,) = translated(twins, tokenizer, [line], n_best=4, beam_size=4, max_length=6)

    scores = [candidate.score for candidate in result.candidates]
    assert len(set(texts_of(result))) == 4
    assert scores == sorted(scores, reverse=True)
    assert len(texts_of(result)[0].split()) > 1


# Samples.


def test_first_of_several_samples_is_that_of_a_single_one(
    twins: Transformer, tokenizer: Tokenizer
) -> None:
    how: dict[str, Any] = {"sampling": True, "beam_size": 1, "seed": 3}

    result = translated(twins, tokenizer, LINES, n_best=5, **how)

    alone = translated(twins, tokenizer, LINES, **how)
    fewer = translated(twins, tokenizer, LINES, n_best=3, **how)
    assert [len(each.candidates) for each in result] == [5] * 4
    assert [each.candidates[:1] for each in result] == [each.candidates for each in alone]
    assert [each.candidates[:3] for each in result] == [each.candidates for each in fewer]
    assert len(set(texts_of(result[0]))) > 1
    assert texts_of(result[1]) == [""] * 5


def test_samples_may_be_equal(twins: Transformer, tokenizer: Tokenizer) -> None:
    """Samples are independent of each other, so they may repeat."""
    result = translated(
        twins, tokenizer, LINES, sampling=True, beam_size=1, n_best=4, temperature=1e-3
    )

    assert [len(set(texts_of(each))) for each in result] == [1] * 4
    assert [len(texts_of(each)) for each in result] == [4] * 4


def test_samples_do_not_depend_on_the_neighbors(twins: Transformer, tokenizer: Tokenizer) -> None:
    how: dict[str, Any] = {"sampling": True, "beam_size": 1, "n_best": 3}

    together = translated(twins, tokenizer, LINES, **how)
    small = translated(twins, tokenizer, LINES, max_tokens=1, **how)

    assert [texts_of(each) for each in together] == [texts_of(each) for each in small]


def test_samples_that_memory_does_not_hold_together_are_drawn_in_parts(
    twins: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"sampling": True, "beam_size": 1, "n_best": 4}
    expected = translated(twins, tokenizer, LINES, **how)
    rows: list[int] = []

    def small(model: Any, source: torch.Tensor, *others: Any, **options: Any) -> Any:
        if len(source) > 2:
            raise torch.OutOfMemoryError
        rows.append(len(source))
        return sample(model, source, *others, **options)

    monkeypatch.setattr(module, "sample", small)

    actual = translated(twins, tokenizer, LINES, **how)

    assert [texts_of(each) for each in actual] == [texts_of(each) for each in expected]
    assert sum(rows) == 12


def test_samples_of_a_split_line_are_joined_in_the_order_of_the_draws(
    twins: Transformer, tokenizer: Tokenizer
) -> None:
    how: dict[str, Any] = {"sampling": True, "beam_size": 1, "max_length": 10}
    line = "one two three four five six seven"

    (result,) = translated(twins, tokenizer, [line], n_best=3, **how)

    (alone,) = translated(twins, tokenizer, [line], **how)
    assert result.candidates[0] == alone.candidates[0]
    assert len(result.candidates) == 3
