"""Search under the constraint that byte pieces spell UTF-8, against all sequences that do."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.replay import ReplayedStep
from tests.decoding.searching import beam_search, greedy_search, rules, sample
from tests.decoding.static_table import CPU, StaticTable, found_in, static_beams, static_greedy
from tests.decoding.table_model import (
    EOS,
    START,
    TableModel,
    brute_force,
    forced_log_probability,
    log_probabilities,
    sources,
)
from tfm_cli.decoding.ensemble import Ensemble
from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.decoding.restricted import ShortlistedModel, Shortlists
from tfm_cli.decoding.static import search as static_search
from tfm_cli.decoding.utf8 import GreedyUtf8States, Utf8

LETTER = 2  # a whole piece; those behind it stand for bytes
EDGES = (
    0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC,
    0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF,
)  # fmt: skip
KANA = (0xE3, 0x81, 0x82, 0xC3, 0x41)
EMOJI = (0xF0, 0x9F, 0x98, 0xBF)
WIDEST = 1500  # more than there are valid translations of 4 pieces


def constraint(values: Sequence[int], banned: Sequence[int] = ()) -> Utf8:
    byte_values = {LETTER + 1 + place: value for place, value in enumerate(values)}
    vocab = LETTER + 1 + len(values)
    found = Utf8.of(byte_values, vocab, banned_ids=banned, device=CPU)
    assert found is not None
    return found


def spelled(ids: Sequence[int], values: Sequence[int]) -> bytes:
    return bytes(0x61 if piece <= LETTER else values[piece - LETTER - 1] for piece in ids)


def is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def is_text(ids: Sequence[int], values: Sequence[int]) -> bool:
    return is_utf8(spelled(ids, values))


def texts_by_force(
    model: TableModel, table: int, values: Sequence[int], limit: int
) -> list[Hypothesis]:
    """All translations of at most `limit` pieces that are valid UTF-8, best first."""
    every = brute_force(model, table, limit=limit, length_penalty=1.0, banned=(START,))
    return [hypothesis for hypothesis in every if is_text(hypothesis.ids, values)]


def search(
    model: Any, tables: Sequence[int], limits: Sequence[int], values: Sequence[int], **how: Any
) -> list[list[Hypothesis]]:
    return beam_search(
        model, sources(*tables), None, limits=limits, start_id=START, eos_id=EOS,
        banned_ids=(START,), utf8=constraint(values), **how,
    )  # fmt: skip


def table_of(values: Sequence[int], seed: int, **how: Any) -> TableModel:
    return TableModel(seed, vocab=LETTER + 1 + len(values), **how)


def assert_same(actual: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [hypothesis.ids for hypothesis in actual] == [hypothesis.ids for hypothesis in expected]
    for one, other in zip(actual, expected, strict=True):
        assert math.isclose(one.log_probability, other.log_probability, rel_tol=1e-9)
        assert math.isclose(one.score, other.score, rel_tol=1e-9)


def bytes_of_vocabulary(least: int = 1, most: int = 5) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from(EDGES), min_size=least, max_size=most, unique=True)


# --- the rules -----------------------------------------------------------------------------------


def test_bytes_follow_each_other_as_in_any_decoder() -> None:
    """All sequences of up to four bytes at the edges of the ranges, by Python's own decoder."""
    every = Utf8.of({value: value for value in range(256)}, 257, device=CPU)
    assert every is not None
    inside: list[tuple[int, ...]] = [()]
    for length in range(4):
        longer = []
        for begun, value in itertools.product(inside, EDGES):
            utf8_states = GreedyUtf8States(every)
            for byte in begun:
                utf8_states.append(0, byte)
            bytes_so_far = (*begun, value)
            ends = [
                end
                for more in range(4 - length)
                for end in itertools.product((0x80, 0x90, 0xBF), repeat=more)
                if is_utf8(bytes([*bytes_so_far, *end]))
            ]
            assert utf8_states.fits(0, value, remaining=9) == bool(ends), bytes_so_far
            utf8_states.append(0, value)
            if ends:
                assert utf8_states.fits(0, 256, remaining=9) == (() in ends)
                if () not in ends:
                    longer.append(bytes_so_far)
        inside = longer
        assert len(inside) == (12, 48, 108, 0)[length]


@pytest.mark.parametrize("character", ["a", "é", "あ", "😀"])
def test_character_is_begun_only_where_there_is_room_for_its_end(character: str) -> None:
    utf8_states = GreedyUtf8States(constraint(sorted({*character.encode(), 0x80})))
    kinds = {value: LETTER + 1 + i for i, value in enumerate(sorted({*character.encode(), 0x80}))}
    pieces = [kinds[value] for value in character.encode()]

    for written, piece in enumerate(pieces):
        needed = len(pieces) - written
        assert not utf8_states.fits(0, piece, remaining=needed - 1)
        assert utf8_states.fits(0, piece, remaining=needed)
        assert (
            utf8_states.fits(0, EOS, remaining=0)
            == utf8_states.fits(0, LETTER, remaining=9)
            == (not written)
        )
        utf8_states.append(0, piece)
    assert utf8_states.fits(0, EOS, remaining=0)


def test_vocabulary_without_byte_pieces_has_no_constraint() -> None:
    assert Utf8.of({}, 10, device=CPU) is None


# --- beam search ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(values=bytes_of_vocabulary(), seed=st.integers(0, 10_000), limit=st.integers(0, 4))
def test_widest_beam_finds_every_valid_sequence_in_the_order_of_scores(
    values: list[int], seed: int, limit: int
) -> None:
    model = table_of(values, seed)

    (result,) = search(model, [0], [limit], values, beam_size=WIDEST)

    assert_same(result, texts_by_force(model, 0, values, limit))


@pytest.mark.parametrize("values", [KANA, EMOJI])
@pytest.mark.parametrize("renormalize", [False, True])
def test_scores_are_those_of_the_model(values: Sequence[int], renormalize: bool) -> None:
    """The mass of what UTF-8 forbids is nobody's: the constraint excludes, and changes no score."""
    model = table_of(values, 3)
    model.logits[..., START] = -math.inf

    (result,) = search(model, [0], [6], values, beam_size=5, renormalize=renormalize)

    for hypothesis in result:
        total = forced_log_probability(model, 0, hypothesis.ids)
        assert math.isclose(hypothesis.log_probability, total, rel_tol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    values=bytes_of_vocabulary(2),
    seed=st.integers(0, 10_000),
    limit=st.integers(0, 5),
    beam_size=st.integers(1, 5),
)
def test_narrow_beam_follows_the_best_that_can_become_valid(
    values: list[int], seed: int, limit: int, beam_size: int
) -> None:
    """Beam search as a plain loop over lists; a beginning goes on if some ending makes it valid."""
    model = table_of(values, seed)
    vocab = range(LETTER, model.logits.shape[-1])
    growing: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, limit + 2):
        continued = []
        for total, ids in growing:
            for piece, log_probability in enumerate(log_probabilities(model, 0, ids)):
                if piece == EOS:
                    fits = is_text(ids, values)
                else:
                    fits = piece != START and any(
                        is_text((*ids, piece, *end), values)
                        for more in range(min(3, limit - length) + 1)
                        for end in itertools.product(vocab, repeat=more)
                        if length <= limit
                    )
                if fits:
                    continued.append((total + log_probability, (*ids, piece)))
        continued = sorted(continued, reverse=True)[: 2 * beam_size]
        for total, ids in continued[:beam_size]:
            if ids[-1] == EOS:
                finished.append((total / length, ids[:-1]))
        growing = [(total, ids) for total, ids in continued if ids[-1] != EOS][:beam_size]
        finished = sorted(finished, reverse=True)[:beam_size]
        hope = growing[0][0] / length if growing else -math.inf
        if len(finished) == beam_size and (beam_size == 1 or finished[-1][0] >= hope):
            break

    (result,) = search(model, [0], [limit], values, beam_size=beam_size)

    assert [hypothesis.ids for hypothesis in result] == [ids for _, ids in finished]


@pytest.mark.parametrize("beam_size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_segments_searched_together_are_found_as_alone(seed: int, beam_size: int) -> None:
    model = table_of(KANA, seed, num_tables=4)
    tables, limits = [2, 0, 3, 1, 2], [6, 0, 7, 2, 1]

    together = search(model, tables, limits, KANA, beam_size=beam_size)

    for table, limit, result in zip(tables, limits, together, strict=True):
        (alone,) = search(model, [table], [limit], KANA, beam_size=beam_size)
        assert_same(result, alone)
        assert all(is_text(hypothesis.ids, KANA) for hypothesis in result)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_what_comes_near_no_byte_is_found_as_without_the_constraint(beam_size: int) -> None:
    model = table_of(KANA, 1)
    model.logits[..., LETTER + 1 :] -= 50

    (actual,) = search(model, [0], [6], KANA, beam_size=beam_size)

    ((expected),) = beam_search(
        model, sources(0), None, limits=[6], start_id=START, eos_id=EOS, banned_ids=(START,),
        beam_size=beam_size,
    )  # fmt: skip
    assert actual == expected


@pytest.mark.parametrize("seed", range(10))
def test_several_models_together_write_valid_text(seed: int) -> None:
    models = [table_of(KANA, seed), table_of(KANA, seed + 100)]
    for model in models:
        model.logits[..., LETTER] -= 3  # bytes come near at every step

    (actual,) = search(Ensemble(models), [0], [4], KANA, beam_size=WIDEST)

    expected = texts_by_force(models[0], 0, KANA, 4)
    assert {hypothesis.ids for hypothesis in actual} == {hypothesis.ids for hypothesis in expected}


@pytest.mark.parametrize("seed", range(10))
def test_banned_byte_is_never_written_nor_a_character_that_needs_it(seed: int) -> None:
    model = table_of(EMOJI, seed)
    banned = (START, LETTER + 1 + EMOJI.index(0x98), LETTER + 1 + EMOJI.index(0xBF))
    utf8 = constraint(EMOJI, banned)

    (result,) = beam_search(
        model, sources(0), None, limits=[4], start_id=START, eos_id=EOS, banned_ids=banned,
        utf8=utf8, beam_size=WIDEST,
    )  # fmt: skip

    every = brute_force(model, 0, limit=4, length_penalty=1.0, banned=banned)
    assert_same(result, [each for each in every if is_text(each.ids, EMOJI)])
    assert any(len(each.ids) == 4 and LETTER not in each.ids for each in result)  # F0 9F 9F 9F


@pytest.mark.parametrize("with_end", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_segment_whose_shortlist_lacks_the_last_byte_never_begins_the_character(
    seed: int, with_end: bool
) -> None:
    """Two segments, of which one lists all pieces and the other no continuation byte."""
    model = table_of(KANA, seed, num_tables=2)
    every = list(range(model.logits.shape[-1]))
    lead, end = LETTER + 1 + KANA.index(0xC3), LETTER + 1 + KANA.index(0x82)
    few = [EOS, START, LETTER, lead, *([end] if with_end else [])]
    ids = torch.tensor([every, few + [EOS] * (len(every) - len(few))])
    hidden = torch.arange(len(every)) >= torch.tensor([[len(every)], [len(few)]])
    utf8 = constraint(KANA, (START,)).within(ids)
    assert utf8 is not None

    actual = beam_search(
        ShortlistedModel(model, Shortlists(ids, ids, hidden)), sources(0, 1), None, limits=[4, 4],
        start_id=START, eos_id=EOS, banned_ids=(START,), utf8=utf8, beam_size=WIDEST,
    )  # fmt: skip

    expected = texts_by_force(model, 0, KANA, 4)
    assert {each.ids for each in actual[0]} == {each.ids for each in expected}
    written = {tuple(ids[1, list(each.ids)].tolist()) for each in actual[1]}
    listed = {each.ids for each in texts_by_force(model, 1, KANA, 4) if {*each.ids} <= {*few}}
    assert written == listed
    assert any(lead in each for each in written) == with_end


def test_lists_without_byte_pieces_have_no_constraint() -> None:
    assert constraint(KANA).within(torch.tensor([[EOS, START], [EOS, LETTER]])) is None


# --- what else bears on the next piece -----------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_no_run_is_repeated_but_to_end_a_character(seed: int, size: int) -> None:
    values = (0xE3, 0x81)  # the only character that they spell has one byte twice
    model = table_of(values, seed)
    model.logits[..., LETTER] -= 4
    lead, end = LETTER + 1, LETTER + 2

    result = search(model, [0], [7], values, beam_size=4, no_repeat_ngram_size=size)[0]
    drawn = draw(model, 20, [7], values, no_repeat_ngram_size=size)

    for hypothesis in result + drawn:
        ids = hypothesis.ids
        assert is_text(ids, values)
        runs = Counter(ids[i : i + size] for i in range(len(ids) - size + 1))
        again = [run for run, count in runs.items() if count > 1]
        assert all(run[-1] == end for run in again)
    assert any(lead in hypothesis.ids for hypothesis in result)


def test_probability_shared_among_what_is_left_is_none_above_one() -> None:
    values = (0xE3, 0x81)
    model = table_of(values, 2)
    model.logits[..., LETTER] -= 4

    (result,) = search(
        model, [0], [7], values, beam_size=4, no_repeat_ngram_size=1, renormalize=True,
        token_log_probs=True,
    )  # fmt: skip
    drawn = draw(
        model, 20, [7], values, no_repeat_ngram_size=1, renormalize=True, token_log_probs=True
    )

    assert any(3 in hypothesis.ids for hypothesis in result)
    assert all(score <= 0 for each in result + drawn for score in each.token_log_probs)


@pytest.mark.parametrize("seed", range(5))
def test_pieces_written_before_are_penalised_and_text_stays_valid(seed: int) -> None:
    model = table_of(KANA, seed)
    model.logits[..., LETTER] -= 4

    (result,) = search(model, [0], [7], KANA, beam_size=4, repetition_penalty=5.0)

    assert all(is_text(hypothesis.ids, KANA) for hypothesis in result)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_prefix_that_ends_inside_a_character_is_continued_to_its_end(
    seed: int, limit: int, beam_size: int
) -> None:
    model = table_of(KANA, seed)
    kana = LETTER + 1

    (result,) = search(model, [0], [limit], KANA, beam_size=beam_size, prefixes=[[kana]])
    drawn = draw(model, 10, [limit], KANA, prefixes=[[kana]])

    for hypothesis in result + drawn:
        assert hypothesis.ids[0] == kana
        assert is_text(hypothesis.ids, KANA)
        assert len(hypothesis.ids) <= max(limit, 3)


@pytest.mark.parametrize("prefix", [[4], [LETTER, 4, 4], [3, 3], [3, LETTER]])
def test_prefix_that_is_no_text_is_taken_as_it_is(prefix: list[int]) -> None:
    (result,) = search(table_of(KANA, 1), [0], [7], KANA, beam_size=2, prefixes=[prefix])

    for hypothesis in result:
        assert hypothesis.ids[: len(prefix)] == tuple(prefix)
        behind = hypothesis.ids[len(prefix) :]
        assert is_text(([3] if prefix[-1] == 3 else []) + [*behind], KANA)


def test_scores_of_pieces_sum_up() -> None:
    (result,) = search(table_of(KANA, 4), [0], [6], KANA, beam_size=4, token_log_probs=True)

    for hypothesis in result:
        assert math.isclose(
            sum(hypothesis.token_log_probs), hypothesis.log_probability, rel_tol=1e-9
        )


# --- greedy search -------------------------------------------------------------------------------


def greedily(
    model: TableModel, tables: Sequence[int], limits: Sequence[int], values: Sequence[int]
) -> list[tuple[int, ...]]:
    found = greedy_search(
        model, sources(*tables), None, limits=limits, start_id=START, eos_id=EOS,
        banned_ids=(START,), utf8=constraint(values),
    )  # fmt: skip
    return [hypothesis.ids for hypothesis in found]


@settings(max_examples=60, deadline=None)
@given(
    values=bytes_of_vocabulary(2),
    seed=st.integers(0, 10_000),
    limits=st.lists(st.integers(0, 7), min_size=1, max_size=9),
)
def test_greedy_search_finds_what_a_beam_of_one_finds(
    values: list[int], seed: int, limits: list[int]
) -> None:
    tables = [segment % 3 for segment in range(len(limits))]
    model = table_of(values, seed, num_tables=3)

    expected = search(model, tables, limits, values, beam_size=1)

    assert greedily(model, tables, limits, values) == [actual.ids for (actual,) in expected]


def test_choice_that_may_not_follow_gives_way_to_the_next() -> None:
    model = TableModel(0, vocab=LETTER + 1 + len(KANA))
    model.logits[:] = 0
    model.logits[..., LETTER] = 1
    model.logits[:, 3, ..., 4] = 2  # a continuation byte out of nowhere

    assert greedily(model, [0], [6], KANA) == [(LETTER,) * 6]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_search_has_the_rules_of_each_shortlist(seed: int) -> None:
    model = table_of(KANA, seed, num_tables=2)
    model.logits[..., LETTER] -= 2
    every = list(range(model.logits.shape[-1]))
    ids = torch.tensor([every, every[:4] + [EOS] * (len(every) - 4)])
    hidden = torch.tensor([[False] * len(every), [False] * 4 + [True] * (len(every) - 4)])
    utf8 = constraint(KANA, (START,)).within(ids)
    how: Any = {
        "limits": [7, 7], "start_id": START, "eos_id": EOS, "banned_ids": (START,), "utf8": utf8,
    }  # fmt: skip

    shortlisted = ShortlistedModel(model, Shortlists(ids, ids, hidden))
    greedy = greedy_search(shortlisted, sources(0, 1), None, **how)

    beams = beam_search(shortlisted, sources(0, 1), None, beam_size=1, **how)
    assert [each.ids for each in greedy] == [result.ids for (result,) in beams]
    assert set(greedy[1].ids) <= {LETTER}


# --- steps of fixed shapes -----------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    values=bytes_of_vocabulary(2),
    seed=st.integers(0, 10_000),
    limits=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    beam_size=st.sampled_from([1, 2, 4]),
    renormalize=st.booleans(),
)
def test_fixed_steps_find_what_the_others_find(
    values: list[int], seed: int, limits: list[int], beam_size: int, renormalize: bool
) -> None:
    tables = [segment % 3 for segment in range(len(limits))]
    model = table_of(values, seed, num_tables=3)
    model.logits = model.logits.float()
    utf8 = constraint(values)
    how = rules(START, EOS, (START,), beam_size=beam_size, renormalize=renormalize, utf8=utf8)

    beams = found_in(static_beams(StaticTable(model), how), tables, limits)
    by_greed = static_greedy(StaticTable(model), (START,), utf8)

    expected = search(model, tables, limits, values, beam_size=beam_size, renormalize=renormalize)
    assert [[h.ids for h in each] for each in beams] == [[h.ids for h in each] for each in expected]
    for ours, theirs in zip(beams, expected, strict=True):
        # Single precision: 6e-8 of each of a few sums of about 10.
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=2e-6)
    actual = by_greed(sources(*tables), None, limits=limits)
    assert [each[0].ids for each in actual] == greedily(model, tables, limits, values)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_replayed_steps_spell_the_same(beam_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all sizes and rooms, with recorded steps that several batches replay."""
    monkeypatch.setattr(static_search, "StepGraph", ReplayedStep)
    monkeypatch.setattr(static_search, "CAPACITY_BLOCK", 4)
    monkeypatch.setattr(static_search, "_FEW_SEGMENTS", 1)
    model = table_of(KANA, 4, num_tables=5)
    model.logits = model.logits.float()
    model.logits[..., EOS] -= 2.5
    utf8 = constraint(KANA)
    beams = static_beams(
        StaticTable(model), rules(START, EOS, (START,), beam_size=beam_size, utf8=utf8)
    )
    greedy = static_greedy(StaticTable(model), (START,), utf8)
    before = ReplayedStep.replays

    for tables, limits in (
        ([0, 1, 2, 3, 4, 0, 1, 2, 3], [7, 1, 7, 3, 1, 1, 1, 2, 7]),
        ([4, 3, 2, 1, 0, 4, 3, 2], [0, 7, 7, 7, 7, 1, 1, 1]),
        ([0, 1, 2, 3, 4, 0, 1, 2, 3], [7, 7, 7, 1, 1, 1, 1, 1, 1]),
    ):
        expected = search(model, tables, limits, KANA, beam_size=beam_size)
        actual = found_in(beams, tables, limits)
        assert [[h.ids for h in some] for some in actual] == [[h.ids for h in w] for w in expected]
        drawn = greedy(sources(*tables), None, limits=limits)
        assert [each[0].ids for each in drawn] == greedily(model, tables, limits, KANA)

    assert ReplayedStep.replays > before


# --- sampling ------------------------------------------------------------------------------------


def draw(
    model: TableModel, count: int, limits: Sequence[int], values: Sequence[int], **how: Any
) -> list[Hypothesis]:
    how["prefixes"] = list(how.get("prefixes", ())) * count
    return sample(
        model, sources(*[0] * count), None, limits=[*limits] * count, seeds=list(range(count)),
        start_id=START, eos_id=EOS, banned_ids=(START,), utf8=constraint(values), **how,
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    values=bytes_of_vocabulary(2),
    seed=st.integers(0, 10_000),
    limit=st.integers(0, 7),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2]),
    top_p=st.sampled_from([0.3, 1.0]),
)
def test_what_is_drawn_is_valid(
    values: list[int], seed: int, limit: int, temperature: float, top_k: int, top_p: float
) -> None:
    model = table_of(values, seed)

    drawn = draw(model, 20, [limit], values, temperature=temperature, top_k=top_k, top_p=top_p)

    for hypothesis in drawn:
        assert is_text(hypothesis.ids, values)
        assert len(hypothesis.ids) <= limit
        total = forced_log_probability(model, 0, hypothesis.ids)
        assert math.isclose(hypothesis.log_probability, total, rel_tol=1e-6)
    if top_k == 1:
        assert {hypothesis.ids for hypothesis in drawn} == {*greedily(model, [0], [limit], values)}


def test_pieces_are_drawn_by_their_probability_among_those_that_may_follow() -> None:
    model = table_of(KANA, 2)
    lead, low, high = (LETTER + 1 + KANA.index(value) for value in (0xE3, 0x81, 0x82))
    model.logits[..., lead] += 3

    drawn = [each.ids for each in draw(model, 4000, [7], KANA) if each.ids[:1] == (lead,)]

    count = len(drawn)
    after = log_probabilities(model, 0, [lead])
    share = 1 / (1 + math.exp(after[high] - after[low]))
    assert count > 1000
    result = sum(ids[1] == low for ids in drawn) / count
    assert abs(result - share) <= 4 * math.sqrt(share * (1 - share) / count)


def test_what_is_drawn_does_not_depend_on_the_neighbors() -> None:
    model = table_of(KANA, 5, num_tables=3)
    model.logits[..., LETTER] -= 2
    tables, seeds, limits = [2, 1, 0, 2], [9, 8, 7, 6], [6, 2, 0, 5]

    def drawn(which: Sequence[int]) -> list[Hypothesis]:
        return sample(
            model, sources(*[tables[i] for i in which]), None, limits=[limits[i] for i in which],
            seeds=[seeds[i] for i in which], start_id=START, eos_id=EOS, banned_ids=(START,),
            utf8=constraint(KANA),
        )  # fmt: skip

    assert drawn(range(4)) == [drawn([i])[0] for i in range(4)]
