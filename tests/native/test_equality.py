"""The engine finds what `model/` and `decoding/` find, whatever the shape and the options."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.native.engine import (
    EOS,
    EngineModel,
    Lines,
    Reference,
    Search,
    clear_lines,
    engine_attention,
    engine_score,
    engine_search,
    library,
    margins,
)
from tests.native.small_models import Small, batches, searches, small, smalls, tries
from tfm_cli.corpus.batch import pad_source
from tfm_cli.decoding.interface import Hypothesis

MARGIN = 1e-3  # of a logit, by which a choice beats the next; sums in another order move it by 1e-5
MOST_LEFT_OUT = 0.05  # of all lines, since a choice is closer

examples = pytest.mark.parametrize("count", [
    pytest.param(60, marks=pytest.mark.slow),
    pytest.param(2000, marks=[pytest.mark.torture, pytest.mark.timeout(3600)]),
])  # fmt: skip


@pytest.fixture(autouse=True)
def _engine() -> None:
    library()


def assert_same(actual: list[Hypothesis], expected: list[Hypothesis], how: Search) -> None:
    assert [each.ids for each in actual] == [each.ids for each in expected]
    if not (how.scores or how.token_log_probs):
        return
    for ours, theirs in zip(actual, expected, strict=True):
        tolerance = 1e-4 * (len(theirs.ids) + 1)
        assert ours.log_probability == pytest.approx(theirs.log_probability, abs=tolerance)
        assert ours.score == pytest.approx(theirs.score, abs=tolerance)
        if how.token_log_probs:
            assert ours.token_log_probs == pytest.approx(theirs.token_log_probs, abs=1e-4)


@examples
def test_log_probabilities_of_given_targets_are_those_of_the_model(count: int) -> None:
    @tries(count)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        model = data.draw(smalls())
        lines = data.draw(batches(model))
        piece = st.integers(3, model.vocab_sizes[1] - 1)
        targets = [data.draw(st.lists(piece, max_size=12)) for _ in lines.sources]

        result = engine_score(model.engine(), lines, targets)

        for ours, theirs in zip(result, model.reference().score(lines, targets), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)

    check()


@examples
def test_search_finds_what_the_reference_finds_where_no_choice_is_close(count: int) -> None:
    seen, clear = [0], [0]

    @tries(count)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        model = data.draw(smalls())
        lines, how = data.draw(batches(model)), data.draw(searches())
        reference = model.reference()
        expected = reference.search(lines, how)

        actual = engine_search(model.engine(), lines, how)

        best = clear_lines(reference, lines, how, expected, margin=MARGIN)
        for i in best:
            assert_same(actual[i][:1], expected[i][:1], how)
        for i in clear_lines(reference, lines, how, expected, margin=MARGIN, whole=True):
            assert_same(actual[i], expected[i], how)
        seen[0] += len(lines)
        clear[0] += len(best)

    check()
    assert clear[0] >= (1 - MOST_LEFT_OUT) * seen[0], f"{clear[0]} of {seen[0]}"


@examples
def test_greedy_search_finds_the_likeliest_pieces(count: int) -> None:
    """The closest decision of each line is known here, not guessed."""
    seen, clear = [0], [0]

    @tries(count)
    @given(smalls(), st.integers(0, 1000))
    def check(model: Small, seed: int) -> None:
        lines = model.lines(3, 12, 0, 7, 1, seed=seed)
        how = Search(scores=False)
        reference = model.reference()
        expected = reference.search(lines, how)

        actual = engine_search(model.engine(), lines, how)

        closest = margins(reference.models[0], lines)
        which = [i for i, margin in enumerate(closest) if margin > MARGIN]
        assert [actual[i][0].ids for i in which] == [expected[i][0].ids for i in which]
        seen[0] += len(lines)
        clear[0] += len(which)

    check()
    assert clear[0] >= (1 - MOST_LEFT_OUT) * seen[0], f"{clear[0]} of {seen[0]}"


@tries(30)
@given(st.data())
def test_attention_weights_are_those_of_the_model(data: st.DataObject) -> None:
    model = data.draw(smalls())
    lines = data.draw(batches(model))
    piece = st.integers(3, model.vocab_sizes[1] - 1)
    targets = [data.draw(st.lists(piece, max_size=9)) for _ in lines.sources]
    layer = data.draw(st.integers(0, model.shape["decoder_layers"] - 1))
    transformer = model.transformer()

    actual = engine_attention(model.engine(), lines, targets, layer)

    for ids, target, ours in zip(lines.sources, targets, actual, strict=True):
        source, read = torch.tensor([[*ids, EOS]]), torch.tensor([[1, *target]])
        with torch.inference_mode():
            expected = transformer.cross_attention_weights(source, None, read, layer=layer)[0]
        assert_close(ours, expected, rtol=1e-3, atol=1e-5)  # sums in another order


def assert_equal_where_clear(
    models: list[EngineModel], reference: Reference, lines: Lines, how: Search, *, share: float
) -> None:
    """As many lines as this are clear, and what is found is equal there."""
    expected = reference.search(lines, how)
    actual = engine_search(models, lines, how)
    clear = clear_lines(reference, lines, how, expected, margin=MARGIN)
    assert len(clear) >= share * len(lines)
    for i in clear:
        assert_same(actual[i][:1], expected[i][:1], how)


LENGTHS = [5, 1, 9, 12, 3, 30, 2, 7]
EVERY_SEARCH = [
    Search(),
    Search(scores=False),
    Search(beam_size=4),
    Search(beam_size=4, early_stopping=True, length_norm="wu", length_penalty=0.6),
    Search(beam_size=5, renormalize=True, token_log_probs=True),
    Search(beam_size=3, no_repeat_ngram_size=2, repetition_penalty=1.3),
    Search(beam_size=1, no_repeat_ngram_size=1, renormalize=True),
    Search(sampling=True),
    Search(sampling=True, top_k=5, top_p=0.9, temperature=1.4, renormalize=True),
]
every_search = pytest.mark.parametrize("how", EVERY_SEARCH, ids=str)


@every_search
@pytest.mark.parametrize("count", [2, 3])
def test_several_models_believe_the_mean_of_what_they_believe(how: Search, count: int) -> None:
    shapes: list[dict[str, Any]] = [{}, {"norm": "pre", "positions": "rotary", "width": 36}, {}]
    some = [small(70, seed, **shapes[seed]) for seed in range(count)]
    lines = some[0].lines(*LENGTHS)
    reference = Reference([each.transformer() for each in some], 70)

    assert_equal_where_clear([each.engine() for each in some], reference, lines, how, share=0.8)


@every_search
def test_several_models_share_a_shortlist(how: Search) -> None:
    some = [small(70, seed) for seed in range(2)]
    chance = torch.Generator().manual_seed(3)
    lines = some[0].lines(*LENGTHS)
    lists = [
        sorted({EOS, *(3 + torch.randperm(67, generator=chance)[:20]).tolist()})
        for _ in lines.sources
    ]
    lists[2] = []
    lines = replace(lines, allowed=lists)
    reference = Reference([each.transformer() for each in some], 70)

    assert_equal_where_clear([each.engine() for each in some], reference, lines, how, share=0.8)


@every_search
def test_many_banned_pieces_before_the_first_that_is_not(how: Search) -> None:
    """Whole vectors of logits that do not count, or do, at the beginning, in the middle, behind."""
    model = small(200)
    banned = (*range(2), *range(3, 60), *range(80, 130), *range(180, 200))
    lines = replace(model.lines(*LENGTHS), sources=[[4] * length for length in LENGTHS])

    assert_equal_where_clear(
        [model.engine(banned=banned)], model.reference(banned=banned), lines, how, share=0.8
    )


def byte_values(vocab_size: int) -> dict[int, int]:
    """Bytes that make characters of 1 to 4 bytes, of all kinds; the last pieces."""
    values = [0x41, 0x80, 0x90, 0xA0, 0xBF, 0xC3, 0xE0, 0xE4, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xC0]
    return dict(zip(range(vocab_size - len(values), vocab_size), values, strict=True))


@every_search
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.torture) for seed in range(1, 4))]
)
@pytest.mark.parametrize("has_lists", [False, True])
def test_byte_pieces_spell_characters(how: Search, seed: int, has_lists: bool) -> None:
    model = small(40, seed)
    values = byte_values(40)
    lines = model.lines(*LENGTHS, limit=14)
    lines = replace(lines, limits=[14, 0, 1, 2, 3, 4, 5, 14], prefixes=[[], [], [30], [33, 30], [], [35], [4, 5, 36], [29]])  # fmt: skip  # noqa: E501
    if has_lists:
        every = [*range(3, 40, 2), 27, 28, 30, 32, 33, 35, 36, EOS]
        whole = [sorted({*every, *prefix}) for prefix in lines.prefixes]
        whole[1] = []
        whole[3] = sorted({5, EOS, *lines.prefixes[3], 27, 28})
        lines = replace(lines, allowed=whole)
    reference = model.reference(byte_values=values)

    assert_equal_where_clear([model.engine(byte_values=values)], reference, lines, how, share=0.75)


@pytest.mark.parametrize("beam_size", [64, 256])
def test_widest_beams_find_what_the_reference_finds(beam_size: int) -> None:
    model = small(300, width=16, heads=2)
    lines = model.lines(4, 9, 1, limit=6)

    how = Search(beam_size=beam_size, length_penalty=0.6)
    assert_equal_where_clear([model.engine()], model.reference(), lines, how, share=0.3)


@pytest.mark.torture
def test_long_segments_and_translations() -> None:
    model = small(90, width=48, heads=4)
    lines = replace(model.lines(300, 3, 129), limits=[70, 700, 300])
    how = Search(beam_size=2, length_penalty=0)
    engine, reference = model.engine(), model.reference()

    targets = [list(range(3, 70)) * 5, list(range(5, 90)), [4] * 600]
    for ours, theirs in zip(
        engine_score(engine, lines, targets), reference.score(lines, targets), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert_equal_where_clear([engine], reference, lines, how, share=0)


@pytest.mark.parametrize("vocab_size", [60, 2000])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_lowest_of_equally_likely_pieces_is_written(vocab_size: int, precision: str) -> None:
    """Rows of the output layer that are equal give logits that are equal to the bit."""
    model = small(vocab_size, tied_embeddings=1)
    transformer = model.transformer()
    assert transformer.output is not None
    weight = transformer.output.weight.data
    weight[vocab_size // 2 :] = weight[: vocab_size - vocab_size // 2]
    weight[2] = weight[0] = weight[1] = weight[vocab_size // 2 : vocab_size // 2 + 3] = 0
    engine = EngineModel(transformer, model.shape, precision)
    lines = model.lines(*LENGTHS, limit=20)

    for how in (Search(), Search(scores=False), Search(beam_size=1, token_log_probs=True)):
        result = engine_search(engine, lines, how)
        written = {piece for (hypothesis,) in result for piece in hypothesis.ids}
        assert max(written) < vocab_size // 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("vocab_size", [40, 1500, 5000])
def test_greedy_search_is_a_beam_of_1_with_or_without_scores(
    vocab_size: int, precision: str
) -> None:
    model = small(vocab_size, width=40, heads=5)
    values = byte_values(vocab_size)
    engine = model.engine(precision, byte_values=values)
    lines = model.lines(*LENGTHS * 4, limit=25)

    without = engine_search(engine, lines, Search(scores=False))
    scored = engine_search(engine, lines, Search())
    each = engine_search(engine, lines, Search(token_log_probs=True))
    normal = engine_search(engine, lines, Search(renormalize=True))

    ids = [hypothesis.ids for (hypothesis,) in without]
    assert ids == [hypothesis.ids for (hypothesis,) in scored]
    assert ids == [hypothesis.ids for (hypothesis,) in each]
    assert ids == [hypothesis.ids for (hypothesis,) in normal]
    assert all(hypothesis.score != hypothesis.score for (hypothesis,) in without)
    assert [h.score for (h,) in scored] == [h.score for (h,) in each]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_scores_are_those_of_the_translation_read_again(precision: str) -> None:
    model = small(90, width=40, heads=5)
    engine = model.engine(precision)
    lines = model.lines(*LENGTHS, limit=15)

    result = engine_search(engine, lines, Search(beam_size=4, token_log_probs=True))

    for rank in (0, -1):
        targets = [list(some[rank].ids) for some in result]
        for some, forced in zip(result, engine_score(engine, lines, targets), strict=True):
            assert some[rank].token_log_probs == pytest.approx(tuple(forced), abs=1e-5)
            total = sum(some[rank].token_log_probs)
            assert some[rank].log_probability == pytest.approx(total, abs=1e-4)


def test_targets_of_the_reference_stand_in_one_batch_as_alone() -> None:
    """The tests' own reference: padding changes nothing that it says."""
    model = small()
    lines = model.lines(*LENGTHS)
    how = Search(beam_size=3)
    reference = model.reference()

    together = reference.search(lines, how)

    for i in range(len(lines)):
        ((alone, *_),) = reference.search(lines.of([i]), how)
        assert alone.ids == together[i][0].ids
    assert pad_source(lines.sources, EOS)[0].shape == (len(lines), max(LENGTHS) + 1)
