"""A pool of forked worker processes, which share the memory of their parent."""

import gc
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

from tfm_cli.errors import END_SIGNALS, ConfigError, ResourceError, TfmError
from tfm_cli.parallel.child_processes import SuspensionMonitor
from tfm_cli.parallel.cpu_cores import available_cores

if TYPE_CHECKING:  # importing it takes 5 ms, which would delay a single line
    from multiprocessing.connection import Connection

logger = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

_JOBS_PER_WORKER = 2  # one in progress and one prefetched
_MAX_DEFAULT_WORKERS = 16  # each worker needs memory for its batch


def num_workers(requested: int, *, device: str) -> int:
    """Return the number of processes that translate.

    Args:
        requested: number of processes; 0 is one for each core, at most 16, on a CPU, otherwise one.
        device: type of the device.

    Raises:
        ConfigError: several processes were requested for a device other than a CPU.
        ResourceError: several processes were requested and this system cannot fork.
    """
    # On macOS, system frameworks fail after a fork.
    can_fork = hasattr(os, "fork") and sys.platform != "darwin"
    if not requested:
        is_single = device != "cpu" or not can_fork
        return 1 if is_single else min(available_cores(), _MAX_DEFAULT_WORKERS)
    if requested > 1 and device != "cpu":
        message = f"`--workers {requested}` is for a CPU, and the device is {device}"
        raise ConfigError(message, hint="leave it out, or use `--device cpu`")
    if requested > 1 and not can_fork:
        message = f"`--workers {requested}`: this system cannot share a model among processes"
        raise ResourceError(message, hint="leave it out")
    return requested


@dataclass(slots=True)
class Group(Generic[ResultT]):
    """Jobs that were submitted together, and their results so far.

    Attributes:
        missing: number of jobs without a result.
        results: results by the index of the job in the group.
        failures: exceptions by the index of the job in the group.
    """

    missing: int
    results: dict[int, ResultT] = field(default_factory=dict)
    failures: dict[int, Exception] = field(default_factory=dict)


@dataclass(slots=True)
class _Worker(Generic[ResultT]):
    pid: int
    connection: "Connection"
    jobs: deque[tuple[Group[ResultT], int]] = field(default_factory=deque)  # oldest first


class WorkerPool(Generic[JobT, ResultT]):
    """A pool of processes, forked as soon as there are several jobs.

    Everything in memory at that time, such as weights, is shared and never copied. Jobs and results
    are sent through pipes, so they must be plain Python objects without tensors. The processes end
    with this object, and with this process even if it is killed. With `max_workers` 1 all jobs run
    in this process. A worker that is stopped by a signal is reported after ten seconds and killed
    after a minute.

    Args:
        work: runs a job and returns its result.
        max_workers: maximum number of processes.
        initializer: called once in each worker.
        verb: what a worker does, in messages: `translate` or `score`.
    """

    def __init__(
        self,
        work: Callable[[JobT], ResultT],
        *,
        max_workers: int,
        initializer: Callable[[], None],
        verb: str = "translate",
    ) -> None:
        self._work = work
        self._max_workers = max_workers
        self._initializer = initializer
        self._workers: list[_Worker[ResultT]] = []
        self._queue: deque[tuple[Group[ResultT], int, JobT]] = deque()
        self._verb = verb
        self._suspension_monitor = SuspensionMonitor(f"a process that {verb}s")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._suspension_monitor.close()
        # Workers hold no state that a kill would lose.
        for worker in self._workers:
            worker.connection.close()
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        while self._workers:
            _exit_code(self._workers.pop().pid)

    def submit(self, jobs: Sequence[JobT]) -> Group[ResultT]:
        """Submit jobs, to run after those submitted before.

        The first worker is started only for several jobs; otherwise a job runs in this process.

        Raises:
            ResourceError: a worker was killed, or stopped for too long.
        """
        group: Group[ResultT] = Group(len(jobs))
        self._queue.extend((group, index, job) for index, job in enumerate(jobs))
        if self._max_workers > 1 and (self._workers or len(jobs) > 1):
            self._exchange(wait_seconds=0)
        else:
            while group.missing:
                self._work_here()
        return group

    def results(self, group: Group[ResultT]) -> list[ResultT]:
        """Wait for a group and return its results in order; raise the first failure.

        Raises:
            ResourceError: a worker was killed, or stopped for too long.
        """
        while group.missing:
            self._exchange()
        if group.failures:
            raise group.failures[min(group.failures)]
        return [group.results[index] for index in range(len(group.results))]

    def _exchange(self, wait_seconds: float | None = None) -> None:
        """Send jobs, receive results, send more jobs; None waits for at least one result."""
        self._send_jobs()
        if not self._workers:
            self._work_here()
            return
        from multiprocessing.connection import wait

        workers: dict[object, _Worker[ResultT]] = {one.connection: one for one in self._workers}
        for connection in wait([one.connection for one in self._workers], wait_seconds):
            worker = workers[connection]
            try:
                is_result, result = worker.connection.recv()
            except (EOFError, OSError) as error:
                raise self._lost(worker) from error
            group, index = worker.jobs.popleft()
            _record(group, index, result, is_result=is_result)
        self._send_jobs()

    def _send_jobs(self) -> None:
        """Send queued jobs to the workers with the fewest, starting workers while allowed."""
        while self._queue:
            worker = min(self._workers, key=lambda one: len(one.jobs), default=None)
            if (worker is None or worker.jobs) and len(self._workers) < self._max_workers:
                worker = self._started() or worker
            if worker is None or len(worker.jobs) >= _JOBS_PER_WORKER:
                return
            group, index, job = self._queue.popleft()
            worker.jobs.append((group, index))
            try:
                worker.connection.send(job)
            except OSError as error:
                raise self._lost(worker) from error

    def _work_here(self) -> None:
        """Run the next job in this process."""
        group, index, job = self._queue.popleft()
        try:
            _record(group, index, self._work(job), is_result=True)
        except Exception as error:  # `results` raises it
            _record(group, index, error, is_result=False)

    def _lost(self, worker: _Worker[ResultT]) -> ResourceError:
        """Remove a worker that has ended, and return the error to raise."""
        self._workers.remove(worker)
        worker.connection.close()
        code = _exit_code(worker.pid)
        if reason := self._suspension_monitor.reason(worker.pid):
            return reason
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "if memory ran out, lower `--workers` or `--max-tokens`"
        return ResourceError(f"a process that {self._verb}s {how}", hint=hint)

    def _started(self) -> _Worker[ResultT] | None:
        """Return a new worker; None, and no further attempts, if the system refuses."""
        from multiprocessing.connection import Pipe

        try:
            ours, theirs = Pipe()
            with theirs:
                worker = _Worker[ResultT](self._forked(ours, theirs), ours)
        except OSError as error:
            self._max_workers = count = len(self._workers)
            instead = f"{count} in all" if count else f"{self._verb[:-1]}ing in this one"
            logger.warning("cannot start another process: %s; %s", error.strerror, instead)
            return None
        self._workers.append(worker)
        self._suspension_monitor.add(worker.pid)
        return worker

    def _forked(self, ours: "Connection", theirs: "Connection") -> int:
        # A signal that arrives in the worker before `_serve` would run this process's handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns if there are threads, such as that of the progress display. A
                # worker needs none of the locks that they may hold: it neither logs nor prints.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                self._serve(ours, theirs, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    def _serve(
        self,
        ours: "Connection",
        theirs: "Connection",
        mask: Iterable[int],
    ) -> NoReturn:
        """Run a worker until the pipe is closed."""
        code = 1
        try:
            for number in END_SIGNALS:  # they are meant for the parent process
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            gc.freeze()  # garbage collection of shared memory would copy it
            # Otherwise the pipes of all workers stay open as long as one worker lives.
            for connection in (ours, *(worker.connection for worker in self._workers)):
                connection.close()
            jobs: SimpleQueue[JobT] = SimpleQueue()
            # OpenMP would wait for the thread team of the thread that forked; a new thread has no
            # team. This thread reads the pipe, so that the worker ends when the pipe is closed.
            threading.Thread(target=self._work_on, args=(jobs, theirs), daemon=True).start()
            with suppress(EOFError, OSError):
                while True:
                    jobs.put(theirs.recv())
            code = 0
        finally:
            os._exit(code)

    def _work_on(self, jobs: "SimpleQueue[JobT]", connection: "Connection") -> None:
        try:
            self._initializer()
            while True:
                job = jobs.get()
                message: tuple[bool, object]
                try:
                    message = (True, self._work(job))
                except Exception as error:  # the parent process raises it again
                    message = (False, _portable(error, f"a process that {self._verb}s"))
                connection.send(message)
        finally:
            os._exit(1)


def _record(group: Group[ResultT], index: int, result: Any, *, is_result: bool) -> None:
    (group.results if is_result else group.failures)[index] = result
    group.missing -= 1


def _portable(error: Exception, process: str) -> Exception:
    """Return an error that can be sent through a pipe, with its traceback.

    Args:
        error: the error.
        process: what it was raised in.
    """
    from multiprocessing.reduction import ForkingPickler

    text = "".join(traceback.format_exception(error))
    if not isinstance(error, TfmError):  # a TfmError is shown without a traceback
        error.add_note(f"in {process}:\n{text}")
    try:
        # Unpickling calls the class with the arguments of `raise`, which may fail in any way.
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError(text)
    return error


def _exit_code(pid: int) -> int:
    """Wait for a process and return its exit code; negative for a signal."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # unknown if SIGCHLD is ignored
        return 0
