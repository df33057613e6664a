import errno
import os
import re
import signal
import threading
import time
from typing import NoReturn

import pytest
import torch

from tfm_cli.errors import ResourceError
from tfm_cli.parallel import child_processes as module
from tfm_cli.translation.worker_pool import WorkerPool


def at_once() -> None:
    """Do nothing."""


def square(number: int) -> int:
    time.sleep(0.001 * (number % 3))
    return number * number


def own_pid(_: int) -> int:
    return os.getpid()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the ids of the processes started from now on."""
    fork, started = os.fork, []

    def remember() -> int:
        started.append(fork())
        return started[-1]

    monkeypatch.setattr(os, "fork", remember)
    return started


@pytest.mark.parametrize("most", [1, 2, 3])
def test_answers_are_in_the_order_of_the_jobs(most: int) -> None:
    with WorkerPool(square, max_workers=most, initializer=at_once) as workers:
        groups = [workers.submit(range(start, start + 20)) for start in (0, 20, 40)]
        answers = [workers.results(group) for group in (groups[2], groups[0], groups[1])]

    assert answers == [
        [number * number for number in range(start, start + 20)] for start in (40, 0, 20)
    ]


def test_jobs_are_distributed_over_the_requested_processes() -> None:
    def slowly(number: int) -> int:
        time.sleep(0.01)
        return os.getpid()

    with WorkerPool(slowly, max_workers=3, initializer=at_once) as workers:
        pids = set(workers.results(workers.submit(range(12))))

    assert len(pids) == 3
    assert os.getpid() not in pids


def test_no_more_processes_than_jobs() -> None:
    with WorkerPool(own_pid, max_workers=5, initializer=at_once) as workers:
        pids = set(workers.results(workers.submit([1, 2])))

    assert len(pids) == 2


@pytest.mark.parametrize(("most", "jobs"), [(1, 4), (4, 1), (4, 0)])
def test_one_job_or_one_process_is_done_here(most: int, jobs: int) -> None:
    with WorkerPool(own_pid, max_workers=most, initializer=at_once) as workers:
        assert workers.results(workers.submit(range(jobs))) == [os.getpid()] * jobs


def test_single_job_goes_to_a_process_once_there_are_some() -> None:
    with WorkerPool(own_pid, max_workers=2, initializer=at_once) as workers:
        workers.results(workers.submit([1, 2]))

        assert os.getpid() not in workers.results(workers.submit([3]))


def test_memory_at_the_fork_is_shared() -> None:
    table = [0]
    workers: WorkerPool[int, int] = WorkerPool(
        lambda place: table[place], max_workers=2, initializer=at_once
    )
    table[0] = 7

    with workers:
        assert workers.results(workers.submit([0, 0])) == [7, 7]
        table[0] = 8  # too late
        assert workers.results(workers.submit([0, 0])) == [7, 7]


def test_large_jobs_and_answers_do_not_block_each_other() -> None:
    def echo(text: str) -> str:
        return text * 2

    jobs = [str(number) * 300_000 for number in range(8)]  # pipes hold far less

    with WorkerPool(echo, max_workers=2, initializer=at_once) as workers:
        assert workers.results(workers.submit(jobs)) == [text * 2 for text in jobs]


@pytest.mark.parametrize("most", [1, 2])
def test_failure_is_raised_as_itself_and_the_first_of_several(most: int) -> None:
    def work(number: int) -> int:
        if number % 2:
            raise ResourceError(f"no room for {number}", hint="do without")
        time.sleep(0.005)
        return number

    with WorkerPool(work, max_workers=most, initializer=at_once) as workers:
        before, group = workers.submit([0, 2]), workers.submit([4, 5, 6, 7])

        assert workers.results(before) == [0, 2]
        with pytest.raises(ResourceError, match=r"^no room for 5$") as caught:
            workers.results(group)
        assert workers.results(workers.submit([8])) == [8]
    assert caught.value.hint == "do without"


def test_bug_tells_where_in_the_other_process_it_is() -> None:
    def buggy(number: int) -> int:
        return 1 // number

    with (
        WorkerPool(buggy, max_workers=2, initializer=at_once) as workers,
        pytest.raises(ZeroDivisionError) as caught,
    ):
        workers.results(workers.submit([0, 1]))

    (note,) = caught.value.__notes__
    assert note.startswith("in a process that translates:\nTraceback ")
    assert "in buggy" in note


def test_unpicklable_error_becomes_its_traceback() -> None:
    class LocalError(Exception):
        pass

    def work(number: int) -> NoReturn:
        raise LocalError("from afar")

    with (
        WorkerPool(work, max_workers=2, initializer=at_once) as workers,
        pytest.raises(RuntimeError, match="LocalError: from afar"),
    ):
        workers.results(workers.submit([0, 1]))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_killed_worker_is_an_error_and_no_other_is_left(number: int, pids: list[int]) -> None:
    def work(job: int) -> int:
        if job == 1:
            os.kill(os.getpid(), number)
        time.sleep(60)
        return job

    with (
        pytest.raises(ResourceError) as caught,
        WorkerPool(work, max_workers=3, initializer=at_once) as workers,
    ):
        workers.results(workers.submit(range(3)))

    assert str(caught.value) == f"a process that translates was killed by signal {number}"
    assert caught.value.hint == "if memory ran out, lower `--workers` or `--max-tokens`"
    assert pids
    assert all(is_gone(pid) for pid in pids)


def test_worker_killed_while_idle_is_an_error(pids: list[int]) -> None:
    with WorkerPool(square, max_workers=2, initializer=at_once) as workers:
        workers.results(workers.submit([1, 2]))
        os.kill(pids[0], signal.SIGKILL)

        with pytest.raises(ResourceError, match="was killed by signal 9"):
            workers.results(workers.submit(range(500)))


def test_worker_that_exits_is_an_error() -> None:
    def leave(job: int) -> NoReturn:
        os._exit(3)

    message = "a process that translates ended with exit code 3"
    with (
        WorkerPool(leave, max_workers=2, initializer=at_once) as workers,
        pytest.raises(ResourceError, match=message),
    ):
        workers.results(workers.submit([1, 2]))


def test_workers_end_with_the_pool_even_if_busy(pids: list[int]) -> None:
    def sleep(seconds: int) -> int:
        time.sleep(seconds)
        return seconds

    with WorkerPool(sleep, max_workers=2, initializer=at_once) as workers:
        workers.submit([60, 60, 60])
        assert not any(is_gone(pid) for pid in pids)

    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_mean_the_process_that_started_the_others(number: int) -> None:
    def signalled(job: int) -> int:
        os.kill(os.getpid(), number)
        return job

    with WorkerPool(signalled, max_workers=2, initializer=at_once) as workers:
        assert workers.results(workers.submit([1, 2, 3])) == [1, 2, 3]


@pytest.mark.parametrize("allowed", [0, 1])
def test_work_is_done_though_the_system_refuses_processes(
    monkeypatch: pytest.MonkeyPatch, log_messages: list[str], allowed: int
) -> None:
    started: list[int] = []
    fork = os.fork

    def refuse() -> int:
        if len(started) >= allowed:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(1)
        return fork()

    monkeypatch.setattr(os, "fork", refuse)

    with WorkerPool(square, max_workers=3, initializer=at_once) as workers:
        assert workers.results(workers.submit(range(6))) == [0, 1, 4, 9, 16, 25]

    instead = "1 in all" if allowed else "translating in this one"
    reason = "Resource temporarily unavailable"
    assert log_messages == [f"cannot start another process: {reason}; {instead}"]


def test_threads_of_the_process_that_starts_others_do_no_harm() -> None:
    def product(width: int) -> float:
        assert torch.get_num_threads() == 2
        return float(torch.ones(width, width).mm(torch.ones(width, width)).sum())

    def wait() -> None:
        ended.wait(60)

    def two_threads() -> None:
        torch.set_num_threads(2)

    ended = threading.Event()
    other = threading.Thread(target=wait)
    other.start()
    torch.set_num_threads(2)
    torch.ones(512, 512).mm(torch.ones(512, 512))  # OpenMP has started its threads

    with WorkerPool(product, max_workers=2, initializer=two_threads) as workers:
        answers = workers.results(workers.submit([256, 256, 256]))

    ended.set()
    other.join()
    assert answers == [256.0**3] * 3


def test_ignored_children_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with WorkerPool(square, max_workers=2, initializer=at_once) as workers:
            assert workers.results(workers.submit([1, 2, 3])) == [1, 4, 9]
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "_WARNING_SECONDS", 0.2)
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", 1.0)


def stops_at_two(number: int) -> int:
    if number == 2:
        signal.raise_signal(signal.SIGSTOP)
    return number


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("_hasty")
def test_stopped_process_is_named_and_ended(
    pids: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        WorkerPool(stops_at_two, max_workers=2, initializer=at_once) as workers,
        pytest.raises(ResourceError, match=r"PID \d+, was stopped for 1 s") as caught,
    ):
        workers.results(workers.submit([1, 2, 3, 4]))

    (warned,) = [record.getMessage() for record in caplog.records]
    stopped = re.search(r"PID (\d+)", str(caught.value))
    assert stopped is not None
    assert int(stopped[1]) in pids
    assert warned == (f"a process that translates is stopped: `kill -CONT {stopped[1]}` resumes it")
    assert all(map(is_gone, pids))


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("_hasty")
def test_process_that_is_stopped_while_jobs_wait_for_room_in_its_pipe_is_named(
    pids: list[int],
) -> None:
    def echo(text: str) -> str:
        time.sleep(0.01)
        return text

    with WorkerPool(echo, max_workers=2, initializer=at_once) as workers:
        workers.results(workers.submit(["a", "b"]))
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ResourceError, match="was stopped for 1 s"):
            workers.results(workers.submit(["x" * 1_000_000] * 8))

    assert all(map(is_gone, pids))


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("_hasty")
def test_worker_that_resumes_in_time_is_not_lost(
    pids: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    def go_on() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    with WorkerPool(stops_at_two, max_workers=2, initializer=at_once) as workers:
        group = workers.submit([1, 2, 3, 4])
        goes_on = threading.Timer(0.5, go_on)
        goes_on.start()
        answers = workers.results(group)
        goes_on.join()

    assert answers == [1, 2, 3, 4]
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("_hasty")
def test_process_that_takes_long_is_not_stopped(caplog: pytest.LogCaptureFixture) -> None:
    def slowly(number: int) -> int:
        time.sleep(1.5)
        return number

    with WorkerPool(slowly, max_workers=2, initializer=at_once) as workers:
        assert workers.results(workers.submit([1, 2])) == [1, 2]

    assert not caplog.records
