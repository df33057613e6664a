"""Neighbors, batch, order and workers do not matter, to the bit, in any precision."""

import random
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.engine import (
    EngineModel,
    Lines,
    Search,
    Workspace,
    engine_attention,
    engine_score,
    engine_search,
    library,
)
from tests.native.small_models import batches, searches, small, smalls, tries
from tfm_cli.decoding.interface import Hypothesis

every_precision = pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
LENGTHS = [5, 1, 9, 12, 3, 30, 2, 7, 7, 7, 0, 4, 16, 17, 1, 26]
SEARCHES = [
    Search(),
    Search(scores=False),
    Search(beam_size=2, renormalize=True),
    Search(beam_size=4, token_log_probs=True),
    Search(beam_size=5, no_repeat_ngram_size=2, repetition_penalty=1.2),
    Search(beam_size=21, early_stopping=True),
    Search(sampling=True, top_p=0.95, token_log_probs=True),
]
SLOW = [SEARCHES[0], SEARCHES[2], *SEARCHES[4:]]
every_search = pytest.mark.parametrize(
    "how",
    [SEARCHES[1], SEARCHES[3], *(pytest.param(how, marks=pytest.mark.torture) for how in SLOW)],
    ids=str,
)


@pytest.fixture(autouse=True)
def _engine() -> None:
    library()


def described(found: list[list[Hypothesis]]) -> list[str]:
    """Every bit of what was found, NaN too."""
    return [repr(each) for each in found]


def assert_independent(engine: EngineModel, lines: Lines, how: Search, seed: int) -> None:
    """Together, alone, in another order and in parts, in used memory and new, all is one."""
    workspace = Workspace()
    together = described(engine_search(engine, lines, how, workspace))

    order = list(range(len(lines)))
    random.Random(seed).shuffle(order)
    shuffled = described(engine_search(engine, lines.of(order), how, workspace))
    assert shuffled == [together[i] for i in order]
    cut = seed % len(lines)
    for part in (order[:cut], order[cut:]):
        if part:
            assert described(engine_search(engine, lines.of(part), how, workspace)) == [
                together[i] for i in part
            ]
    for i in order[:4]:
        assert described(engine_search(engine, lines.of([i]), how)) == together[i : i + 1]
    doubled = described(engine_search(engine, lines.of(order * 2), how, workspace))
    assert doubled == [together[i] for i in order] * 2


@every_precision
@every_search
def test_neighbors_and_order_do_not_matter(how: Search, precision: str) -> None:
    model = small(150, width=40, heads=5)
    lines = model.lines(*LENGTHS, limit=13)

    assert_independent(model.engine(precision), lines, how, seed=5)


@every_precision
@pytest.mark.parametrize("how", [Search(scores=False), Search(beam_size=4)], ids=str)
def test_neighbors_do_not_matter_where_the_vocabulary_is_large(how: Search, precision: str) -> None:
    model = small(3001, width=72, heads=3, tied_embeddings=0, output_bias=True)
    lines = model.lines(*LENGTHS, limit=9)

    assert_independent(model.engine(precision), lines, how, seed=9)


@pytest.mark.parametrize("count", [
    25,
    pytest.param(1000, marks=[pytest.mark.torture, pytest.mark.timeout(3600)]),
])  # fmt: skip
def test_neighbors_do_not_matter_whatever_the_shape_and_the_options(count: int) -> None:
    @tries(count)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        model = data.draw(smalls())
        lines, how = data.draw(batches(model, most=9)), data.draw(searches())
        precision = data.draw(st.sampled_from(["fp32", "bf16", "int8"]))

        assert_independent(model.engine(precision), lines, how, data.draw(st.integers(0, 99)))

    check()


@every_precision
def test_pairs_that_are_read_do_not_depend_on_each_other(precision: str) -> None:
    model = small(150, width=40, heads=5)
    engine, lines = model.engine(precision), model.lines(*LENGTHS)
    targets = [list(range(3, 3 + 2 * length)) for length in reversed(LENGTHS)]

    together = engine_score(engine, lines, targets)
    weights = engine_attention(engine, lines, targets, 1)

    for i in range(len(lines)):
        assert engine_score(engine, lines.of([i]), targets[i : i + 1]) == [together[i]]
        (alone,) = engine_attention(engine, lines.of([i]), targets[i : i + 1], 1)
        assert alone.tolist() == weights[i].tolist()


@every_precision
def test_batches_of_any_size_give_the_same(precision: str) -> None:
    """Kernels for each number of rows, and blocks of them."""
    model = small(200, width=64, heads=2, encoder_layers=1, decoder_layers=1)
    engine, workspace = model.engine(precision), Workspace()
    lines = model.lines(*[1 + i % 9 for i in range(150)], limit=4)
    for how in (Search(scores=False), Search(beam_size=3, token_log_probs=True)):
        expected = described(engine_search(engine, lines, how, workspace))

        for size in [*range(1, 34), 63, 64, 65, 104, 105, 149]:
            actual = described(engine_search(engine, lines.of(range(size)), how, workspace))
            assert actual == expected[:size], size


@every_precision
def test_threads_share_a_model(precision: str) -> None:
    model = small(150, width=40, heads=5)
    engine, lines = model.engine(precision), model.lines(*LENGTHS, limit=13)
    how = Search(beam_size=4, token_log_probs=True)
    expected = described(engine_search(engine, lines, how))
    actual: dict[int, list[str]] = {}

    def work(thread: int) -> None:
        workspace = Workspace()
        for turn in range(6):
            order = list(range(len(lines)))
            random.Random(thread * 10 + turn).shuffle(order)
            some = described(engine_search(engine, lines.of(order), how, workspace))
            actual[thread * 10 + turn] = [some[order.index(i)] for i in range(len(lines))]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(actual) == 24
    assert all(each == expected for each in actual.values())


@every_precision
@pytest.mark.parametrize("how", [Search(beam_size=3), Search(sampling=True)], ids=str)
def test_several_models_translate_each_line_by_itself(how: Search, precision: str) -> None:
    shapes: list[dict[str, Any]] = [{}, {"norm": "pre", "width": 36}]
    engines = [small(90, seed, **shape).engine(precision) for seed, shape in enumerate(shapes)]
    lines = small(90).lines(*LENGTHS)
    together = described(engine_search(engines, lines, how))

    for i in range(len(lines)):
        assert described(engine_search(engines, lines.of([i]), how)) == together[i : i + 1]
