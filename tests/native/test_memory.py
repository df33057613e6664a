"""Memory that cannot be had is an error from which the engine goes on, and none is lost."""

import ctypes
import gc
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.native.engine import (
    BANNED,
    EngineError,
    Lines,
    Search,
    Workspace,
    engine_score,
    engine_search,
    library,
    model_options,
)
from tests.native.small_models import Small, small
from tests.tiers import representative
from tfm_cli.native.library import NO_MEMORY, OK

SEARCHES = [
    Search(scores=False),
    Search(beam_size=3, token_log_probs=True),
    Search(beam_size=2, no_repeat_ngram_size=2, repetition_penalty=1.2, stops_loops=True),
    Search(sampling=True, top_k=9, top_p=0.9),
]
every_search = pytest.mark.parametrize("how", SEARCHES, ids=str)


@contextmanager
def allocation_fails(n: int) -> Iterator[None]:
    """The n-th allocation of the engine from here on fails, once."""
    functions = library().functions
    functions.tfm_fail_allocation(n)
    try:
        yield
    finally:
        functions.tfm_fail_allocation(0)


def failures(attempt: Callable[[], object], after: Callable[[], None]) -> int:
    """Let each allocation of an attempt fail in turn; how many there are.

    Args:
        attempt: ends in an EngineError of NO_MEMORY, or well once there are no more allocations.
        after: looks at what is left of each failure.
    """
    for n in range(1, 100_000):
        try:
            with allocation_fails(n):
                attempt()
        except EngineError as error:
            if error.status != NO_MEMORY:
                raise
            after()
        else:
            return n - 1
    raise AssertionError("it never ends")


@pytest.fixture(scope="module")
def model() -> Small:
    return small(50, encoder_layers=1, decoder_layers=1)


@pytest.fixture(scope="module")
def lines(model: Small) -> Lines:
    return model.lines(5, 1, 9, limit=8)


@every_search
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_search_goes_on_after_each_allocation_that_fails(
    how: Search, precision: str, model: Small, lines: Lines
) -> None:
    engine, workspace = model.engine(precision), Workspace()
    expected = [repr(some) for some in engine_search(engine, lines, how)]

    def attempt() -> None:
        """In memory that holds nothing yet."""
        workspace.functions.tfm_workspace_trim(workspace.handle)
        actual = engine_search(engine, lines, how, workspace)
        assert [repr(some) for some in actual] == expected

    def after() -> None:
        """In memory as the failure left it, a part of the batch, then all of it."""
        half = engine_search(engine, lines.of([0]), how, workspace)
        assert [repr(some) for some in half] == expected[:1]
        actual = engine_search(engine, lines, how, workspace)
        assert [repr(some) for some in actual] == expected

    assert failures(attempt, after) > 20


def test_pairs_are_read_after_each_allocation_that_fails(model: Small, lines: Lines) -> None:
    engine, workspace = model.engine(), Workspace()
    targets = [[5, 6, 7], [], [8] * 9]
    expected = engine_score(engine, lines, targets)

    def attempt() -> None:
        workspace.functions.tfm_workspace_trim(workspace.handle)
        assert engine_score(engine, lines, targets, workspace) == expected

    def after() -> None:
        assert engine_score(engine, lines, targets, workspace) == expected

    assert failures(attempt, after) > 5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_model_is_packed_after_each_allocation_that_fails(precision: str, lines: Lines) -> None:
    """A call that failed for want of memory may be made again."""
    made = small(50, encoder_layers=1, decoder_layers=1, tied_embeddings=2, output_bias=True)
    functions, transformer = library().functions, made.transformer()
    expected = repr(engine_search(made.engine(precision), lines, Search()))
    options = model_options(made.shape, made.vocab_sizes, precision)
    ids = (ctypes.c_int32 * len(BANNED))(*BANNED)

    def tries(call: Callable[[], int]) -> Iterator[int]:
        """The statuses of a call, whose allocations fail in turn, until it is OK."""
        for n in range(1, 10_000):
            functions.tfm_fail_allocation(n)
            status = call()
            functions.tfm_fail_allocation(0)
            yield status
            if status == OK:
                return

    def repeated(call: Callable[[], int]) -> int:
        *failed, _last = tries(call)
        assert set(failed) <= {NO_MEMORY}
        return len(failed)

    handle, count = ctypes.c_void_p(), 0
    count += repeated(lambda: functions.tfm_model_new(options, handle))
    for name, value in transformer.state_dict().items():
        rows, columns = value.shape if value.ndim == 2 else (*value.shape, 0)
        address = value.contiguous().data_ptr()

        def give(
            name: str = name, at: int = address, size: tuple[int, int] = (rows, columns)
        ) -> int:
            return int(functions.tfm_model_tensor(handle, name.encode(), at, *size))

        count += repeated(give)
    count += repeated(lambda: functions.tfm_model_vocabulary(handle, ids, len(ids), None))
    count += repeated(lambda: functions.tfm_model_finish(handle))
    engine = made.engine(precision)
    engine.replace(handle)

    assert repr(engine_search(engine, lines, Search())) == expected
    assert count > 10


def test_more_memory_than_there_is_is_refused_and_the_rest_goes_on() -> None:
    model = small(50, encoder_layers=1, decoder_layers=1)
    engine, workspace = model.engine(), Workspace()
    lines = model.lines(5, 1, limit=8)
    expected = engine_search(engine, lines, Search(), workspace)
    huge = Lines(lines.sources * 5000, [1 << 22] * 10_000)

    with pytest.raises(EngineError, match="memory"):
        engine_search(engine, huge, Search(beam_size=256), workspace)

    assert engine_search(engine, lines, Search(), workspace) == expected


def _resident_mib() -> float:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.slow
@representative("precision", ["fp32", "int8"])
def test_a_thousand_batches_take_no_more_memory_than_a_few(precision: str) -> None:
    model = small(400, width=64, heads=4)
    engine, workspace = model.engine(precision), Workspace()
    lines = model.lines(*range(1, 25), limit=12)
    kept = workspace.functions.tfm_workspace_bytes

    def batches(count: int) -> None:
        for number in range(count):
            how = SEARCHES[number % len(SEARCHES)]
            engine_search(engine, lines.of(range(number % 24 + 1)), how, workspace)
            if number % 10 == 0:
                engine_search(engine, lines.of([number % 24]), how)  # a workspace that goes
                engine_score(engine, lines.of([3]), [[5, 6]], workspace)

    batches(100)
    gc.collect()
    before, workspace_before = _resident_mib(), kept(workspace.handle)
    batches(1000)
    gc.collect()

    assert _resident_mib() - before < 4
    assert kept(workspace.handle) <= workspace_before


@pytest.mark.slow
def test_calls_return_a_status_in_threads_that_have_no_memory(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("runs where there is a C++ compiler, `c++`")
    program, source = tmp_path / "program", Path(__file__).with_name("out_of_memory.cpp")
    subprocess.run([compiler, "-std=c++17", source, "-o", program, "-ldl", "-pthread"], check=True)

    done = subprocess.run([program, library().path], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_models_that_go_give_their_memory_back() -> None:
    model = small(5000, width=128, heads=4)
    lines = model.lines(3, limit=3)
    for _ in range(2):
        engine_search(model.engine(), lines, Search())
    gc.collect()
    before = _resident_mib()

    for _ in range(20):
        engine_search(model.engine(), lines, Search())
    gc.collect()

    assert _resident_mib() - before < 12
