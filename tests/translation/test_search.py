import math
from collections.abc import Sequence

import pytest

from tests.decoding.searching import beam_search
from tests.decoding.table_model import (
    EOS,
    START,
    TableModel,
    brute_force,
    forced_log_probability,
    sources,
)
from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.translation.search import different_texts

TEXTS = {2: "a", 3: "aa", 4: "b"}  # of the pieces: each text with an `aa` has two spellings
VOCAB = 5


def text_of(hypothesis: Hypothesis) -> str:
    return "".join(TEXTS[piece] for piece in hypothesis.ids)


def texts_of(hypotheses: Sequence[Hypothesis]) -> list[str]:
    return [text_of(hypothesis) for hypothesis in hypotheses]


class Searches:
    """Beam search over tables, which notes what is asked for."""

    def __init__(self, model: TableModel, tables: Sequence[int], limit: int) -> None:
        self.model, self.tables, self.limit = model, tables, limit
        self.asked: list[tuple[list[int], int]] = []

    def __call__(self, segments: Sequence[int], beam_size: int) -> list[list[Hypothesis]]:
        self.asked.append(([*segments], beam_size))
        return beam_search(
            self.model, sources(*[self.tables[i] for i in segments]), None,
            limits=[self.limit] * len(segments), start_id=START, eos_id=EOS, banned_ids=(START,),
            beam_size=beam_size,
        )  # fmt: skip


def by_force(model: TableModel, table: int, limit: int) -> list[Hypothesis]:
    """The best spelling of every text, best first."""
    best: dict[str, Hypothesis] = {}
    for each in brute_force(model, table, limit=limit, length_penalty=1.0, banned=(START,)):
        best.setdefault(text_of(each), each)
    return list(best.values())


@pytest.mark.parametrize("count", [1, 3, 20, 100])
@pytest.mark.parametrize("seed", range(10))
def test_widest_beam_lists_the_best_spelling_of_the_best_texts(seed: int, count: int) -> None:
    model = TableModel(seed, vocab=VOCAB)

    (actual,) = different_texts(
        Searches(model, [0], 4), texts_of, segments=1, count=count, beam_size=200
    )

    expected = by_force(model, 0, 4)[:count]
    assert [each.ids for each in actual] == [each.ids for each in expected]


@pytest.mark.parametrize("count", [2, 4, 12])
@pytest.mark.parametrize("seed", range(10))
def test_list_is_filled_up_with_other_texts(seed: int, count: int) -> None:
    model = TableModel(seed, vocab=VOCAB, num_tables=3)
    model.logits[..., 4] -= 6  # so that most texts are runs of `a`
    search = Searches(model, [2, 0, 1], 6)

    result = different_texts(search, texts_of, segments=3, count=count, beam_size=count)

    for table, hypotheses in zip([2, 0, 1], result, strict=True):
        assert len({text_of(each) for each in hypotheses}) == len(hypotheses) == count
        scores = [each.score for each in hypotheses]
        assert scores == sorted(scores, reverse=True)
        for each in hypotheses:
            total = forced_log_probability(model, table, each.ids)
            assert math.isclose(each.log_probability, total, rel_tol=1e-9)
    assert len(search.asked) > (count == 12)
    assert [width for _, width in search.asked] == [count << i for i in range(len(search.asked))]


@pytest.mark.parametrize("seed", range(10))
def test_text_counts_by_its_best_spelling_of_all_searches(seed: int) -> None:
    model = TableModel(seed, vocab=VOCAB)
    search = Searches(model, [0], 5)

    (result,) = different_texts(search, texts_of, segments=1, count=6, beam_size=6)

    hypotheses = [each for _, width in list(search.asked) for each in search([0], width)[0]]
    for each in result:
        assert each.score == max(h.score for h in hypotheses if text_of(h) == text_of(each))


def test_only_segments_that_lack_texts_are_searched_again() -> None:
    plenty = [[Hypothesis((2,), -1.0, -1.0), Hypothesis((4,), -2.0, -2.0)]]
    twice = [[Hypothesis((3,), -1.0, -1.0), Hypothesis((2, 2), -2.0, -2.0)]]
    asked: list[tuple[list[int], int]] = []

    def search(segments: Sequence[int], beam_size: int) -> list[list[Hypothesis]]:
        asked.append(([*segments], beam_size))
        if beam_size == 2:
            return plenty + twice
        return [[*twice[0], *[Hypothesis((4,), -9.0, -9.0)] * (beam_size - 2)]]

    result = different_texts(search, texts_of, segments=2, count=2, beam_size=2)

    assert result[0] == plenty[0]
    assert texts_of(result[1]) == ["aa", "b"]
    assert asked == [([0, 1], 2), ([1], 4)]


def test_search_that_finds_all_there_is_ends() -> None:
    model = TableModel(1, vocab=VOCAB)
    search = Searches(model, [0], 1)

    (result,) = different_texts(search, texts_of, segments=1, count=50, beam_size=50)

    assert {text_of(each) for each in result} == {"", "a", "aa", "b"}
    assert len(search.asked) == 1


def test_search_whose_texts_are_all_the_same_ends() -> None:
    asked: list[int] = []

    def search(segments: Sequence[int], beam_size: int) -> list[list[Hypothesis]]:
        asked.append(beam_size)
        return [[Hypothesis((2,) * n, -n, -n) for n in range(beam_size)] for _ in segments]

    (result,) = different_texts(
        search, lambda some: ["same"] * len(some), segments=1, count=3, beam_size=3
    )

    assert [each.ids for each in result] == [()]
    assert asked == [3, 6, 12, 24, 48, 96, 192]


def test_search_that_memory_does_not_hold_ends() -> None:
    asked: list[int] = []

    def search(segments: Sequence[int], beam_size: int) -> list[list[Hypothesis]]:
        asked.append(beam_size)
        return [[Hypothesis((2,), -1.0, -1.0)] * beam_size if beam_size < 8 else []]

    (result,) = different_texts(search, texts_of, segments=1, count=2, beam_size=2)

    assert texts_of(result) == ["a"]
    assert asked == [2, 4, 8]


def test_blanks_make_no_other_text() -> None:
    hypotheses = [Hypothesis((n,), -n, -n) for n in range(4)]

    (result,) = different_texts(
        lambda *_: [hypotheses], lambda _: ["one two", "one  two", " one two", "onetwo"],
        segments=1, count=4, beam_size=1000,
    )  # fmt: skip

    assert [each.ids for each in result] == [(0,), (3,)]
