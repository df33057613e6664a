"""What Python's face of the engine asks of it, and makes of its answers; by the stub."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.native.stubs import BAD, DEFECT, ENDLESS, NO_MEMORY, NON_FINITE, stub
from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError
from tfm_cli.native.library import Library
from tfm_cli.native.model import NativeModel
from tfm_cli.native.search import NativeSearch, Segments

GOLDEN = Path(__file__).parents[1] / "golden" / "model_v2"


@pytest.fixture(scope="module")
def model() -> NativeModel:
    return NativeModel.load(GOLDEN, library=stub())


@pytest.fixture
def library(model: NativeModel) -> Library:
    model.library.functions.stub_reset()
    return model.library


def search(model: NativeModel, *, beam_size: int = 1, **options: Any) -> NativeSearch:
    return NativeSearch([model], SearchConfig(beam_size=beam_size), **options)


def segments(*sources: Sequence[int], limit: int = 99) -> Segments:
    return Segments(sources=sources, limits=[limit] * len(sources))


def ids(found: list[list[Hypothesis]]) -> list[list[tuple[int, ...]]]:
    return [[hypothesis.ids for hypothesis in some] for some in found]


def test_each_segment_has_its_hypotheses(model: NativeModel) -> None:
    result = search(model, beam_size=2, token_log_probs=True)(segments([1, 2, 3], [], [4]))

    assert result == [
        [
            Hypothesis((3, 2, 1), -1.0, -0.25, (0.0, -0.5, -1.0, -1.5)),
            Hypothesis((3, 2, 1), -2.0, -0.5, (0.0, -0.5, -1.0, -1.5)),
        ],
        [Hypothesis((), -1.0, -1.0, (0.0,)), Hypothesis((), -2.0, -2.0, (0.0,))],
        [Hypothesis((4,), -1.0, -0.5, (0.0, -0.5)), Hypothesis((4,), -2.0, -1.0, (0.0, -0.5))],
    ]


def test_no_segments_have_no_hypotheses(model: NativeModel) -> None:
    assert search(model)(segments()) == []


def test_scores_of_pieces_are_noted_only_where_they_are_asked_for(model: NativeModel) -> None:
    ((hypothesis,),) = search(model)(segments([1, 2]))

    assert hypothesis.token_log_probs == ()


def test_limits_prefixes_seeds_and_shortlists_arrive(model: NativeModel) -> None:
    batch = Segments(
        sources=[[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        limits=[2, 9, 9],
        prefixes=[[], [11, 12], [13]],
        seeds=[1 << 60, 2 << 60, 15 << 60],
        allowed=[[21, 22], [], [23]],
    )

    result = search(model, beam_size=4, sampling=True)(batch)

    assert ids(result) == [[(3, 2, 22, 1)], [(11, 12, 4, 2)], [(13, 8, 7, 23, 15)]]


def test_models_that_translate_together_all_take_part(model: NativeModel) -> None:
    both = NativeSearch([model, model], SearchConfig(beam_size=1))

    assert both(segments([1]))[0][0].log_probability == -2.0


def test_segments_and_what_goes_with_them_are_of_one_number(model: NativeModel) -> None:
    with pytest.raises(ValueError, match="2 segments have 1"):
        search(model)(Segments(sources=[[1], [2]], limits=[9, 9], seeds=[1]))
    with pytest.raises(ValueError, match="zip"):
        search(model)(Segments(sources=[[1], [2]], limits=[9]))


@pytest.mark.parametrize(("most", "largest", "count"), [(10**9, 9, 1), (9000, 3, 3), (1, 1, 9)])
def test_batch_that_needs_much_memory_is_searched_in_parts(
    most: int, largest: int, count: int, model: NativeModel, library: Library
) -> None:
    """A segment needs 100 * (10 + 10 * 2) bytes."""
    sources = [[i, *range(8)] for i in range(9)]

    result = search(model, beam_size=2, cache_bytes=most)(segments(*sources, limit=10))

    assert ids(result) == [[tuple(reversed(each))] * 2 for each in sources]
    assert library.functions.stub_largest() == largest
    assert library.functions.stub_searches() == count


def test_want_of_memory_is_an_error_after_which_the_search_is_usable(
    model: NativeModel, library: Library
) -> None:
    searching = search(model)

    with pytest.raises(MemoryError, match="told by the stub"):
        searching(segments([1], [NO_MEMORY]))

    assert library.functions.stub_trimmed() == 1
    assert ids(searching(segments([NO_MEMORY]))) == [[(NO_MEMORY,)]]


@pytest.mark.parametrize(
    ("piece", "kind", "message"),
    [
        (NON_FINITE, NonFiniteScoresError, "the scores of the next token are not finite"),
        (DEFECT, RuntimeError, r"libtfm_stub\.so: status 5: told by the stub"),
        (BAD, RuntimeError, r"libtfm_stub\.so: status 1: told by the stub"),
    ],
)
def test_what_goes_wrong_is_raised(
    piece: int, kind: type[Exception], message: str, model: NativeModel
) -> None:
    with pytest.raises(kind, match=message):
        search(model)(segments([1], [piece]))
    with pytest.raises(kind, match=message):
        search(model).score([[1], [piece]], [[], []])


def test_what_the_check_raises_ends_the_search(model: NativeModel) -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        search(model, check=check)(segments([ENDLESS]))

    assert len(calls) == 3


class Ended(BaseException):
    """What a handler of a signal raises."""


@pytest.mark.parametrize("check", [None, lambda: None], ids=["alone", "beside a check"])
def test_signal_ends_the_search(check: Callable[[], None] | None, model: NativeModel) -> None:
    """Again and again: a handler may run at any step of what the engine calls.

    Nothing is freed by the collector meanwhile: Python loses what is raised there.
    """

    def raising(number: int, frame: FrameType | None) -> None:
        raise Ended

    before = signal.signal(signal.SIGALRM, raising)
    gc.disable()
    try:
        for milliseconds in range(1, 30):
            gc.collect()
            # The timer may fire as soon as it is set.
            with pytest.raises(Ended):  # noqa: PT012
                signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000)
                search(model, check=check)(segments([ENDLESS]))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()


def test_crash_is_told_with_the_model_and_the_batch(model: NativeModel) -> None:
    search(model, beam_size=3)(segments([1], [2, 3]))

    noted = model.library.functions.stub_noted().decode()
    assert noted.startswith("error: libtfm_stub.so crashed")
    assert f"\n  model: {GOLDEN}\n  batch: 2 segments of at most 2 tokens, beam 3\n" in noted
    assert model.library.functions.stub_note() == b""


def test_model_of_any_name_is_searched(model: NativeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a folder whose name is no UTF-8, or has control characters."""
    monkeypatch.setattr(model, "name", "mo\udce4del\x1b[31m")

    assert ids(search(model)(segments([1]))) == [[(1,)]]
    assert "\x1b" not in model.library.functions.stub_noted().decode()


def test_threads_search_side_by_side(model: NativeModel) -> None:
    """Each has a workspace of its own, which a later search takes over."""
    before = model.library.functions.stub_workspaces()

    _search_in_three_threads(model)

    gc.collect()
    assert model.library.functions.stub_workspaces() == before


def _search_in_three_threads(model: NativeModel) -> None:
    stop, ended, before = threading.Event(), list[int](), model.library.functions.stub_workspaces()

    def check() -> None:
        if stop.is_set():
            raise KeyError

    searching = search(model, check=check)

    def work() -> None:
        with pytest.raises(KeyError):
            searching(segments([ENDLESS]))
        ended.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while model.library.functions.stub_workspaces() < before + 3:
        time.sleep(0.001)
    found = searching(segments([1, 2]))
    stop.set()
    for thread in threads:
        thread.join()
    stop.clear()
    searching(segments([1]))

    assert ids(found) == [[(2, 1)]]
    assert len(ended) == 3
    assert model.library.functions.stub_workspaces() == before + 4


def test_nothing_is_left_of_a_search_but_its_workspace(model: NativeModel) -> None:
    searching = search(model, check=lambda: None)
    searching(segments([1]))
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(50):
            searching(segments([1]))
        assert len(gc.get_objects()) < before + 50
    finally:
        gc.enable()


def test_pairs_are_read(model: NativeModel) -> None:
    searching = search(model)

    assert searching.score([[1], [2, 3]], [[4, 5], []]) == [[-4.0, -5.0, -0.25], [-0.25]]
    assert searching.attention([[1], [2, 3]], [[4], []], layer=1) == [
        [[100.0, 101.0], [110.0, 111.0]],
        [[100.0, 101.0, 102.0]],
    ]


def test_pairs_that_need_much_memory_are_read_in_parts(model: NativeModel) -> None:
    sources, targets = [[1], [2], [3]], [[4], [5, 6], []]
    expected = search(model).score(sources, targets)

    assert search(model, cache_bytes=1).score(sources, targets) == expected


def test_only_whole_pairs_of_one_model_are_read(model: NativeModel) -> None:
    with pytest.raises(ValueError, match="there are 1 sources and 2 targets"):
        search(model).score([[1]], [[2], [3]])
    with pytest.raises(ValueError, match="one model at a time"):
        NativeSearch([model, model], SearchConfig()).score([[1]], [[2]])


def test_forked_process_searches_by_the_same_model(model: NativeModel) -> None:
    searching = search(model)
    searching(segments([1]))

    pid = os.fork()
    if not pid:
        os._exit(int(ids(searching(segments([1, 2]))) != [[(2, 1)]]))

    assert os.waitpid(pid, 0)[1] == 0
