"""Processes that work side by side and share all that was in memory when they were started."""

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

if TYPE_CHECKING:  # it takes 5 ms to import, which a single line need not wait for
    from multiprocessing.connection import Connection

logger = logging.getLogger(__name__)

JobT = TypeVar("JobT")
AnswerT = TypeVar("AnswerT")

_AT_HAND = 2  # jobs of a worker: the one it works on, and the next, so that it never waits for us
_MOST = 16  # workers that nobody asked for: each needs memory for its batch


def num_workers(asked: int, *, device: str) -> int:
    """How many processes are to translate.

    Args:
        asked: 0 for what suits the machine: on a CPU one for each core.
        device: its type.

    Raises:
        ConfigError: several are no use on this device.
        ResourceError: this system has no way to start them.
    """
    # The frameworks of macOS do not survive it.
    can_fork = hasattr(os, "fork") and sys.platform != "darwin"
    if not asked:
        alone = device != "cpu" or not can_fork
        return 1 if alone else min(available_cores(), _MOST)
    if asked > 1 and device != "cpu":
        message = f"`--workers {asked}` is for a CPU, and the device is {device}"
        raise ConfigError(message, hint="leave it out, or use `--device cpu`")
    if asked > 1 and not can_fork:
        message = f"`--workers {asked}`: this system cannot share a model among processes"
        raise ResourceError(message, hint="leave it out")
    return asked


@dataclass(slots=True)
class Group(Generic[AnswerT]):
    """Jobs that were begun together, and what became of them so far."""

    missing: int
    answers: dict[int, AnswerT] = field(default_factory=dict)  # by place in the group
    failures: dict[int, Exception] = field(default_factory=dict)


@dataclass(slots=True)
class _Worker(Generic[AnswerT]):
    pid: int
    connection: "Connection"
    given: deque[tuple[Group[AnswerT], int]] = field(default_factory=deque)  # oldest first


class Workers(Generic[JobT, AnswerT]):
    """Does jobs in processes that are forked off when there are several to do.

    What was in memory then, such as weights in whatever arrangement, is shared and never copied.
    Jobs and answers go through pipes, so they have to be plain: no tensors. Processes end with
    this object, and with this process, however that ends. One alone does its jobs here. A process
    that something stops is told of after ten seconds, and ended after a minute.

    Args:
        work: does a job.
        most: processes.
        begin: called once in each process that was forked off.
    """

    def __init__(
        self, work: Callable[[JobT], AnswerT], *, most: int, begin: Callable[[], None]
    ) -> None:
        self._work = work
        self._most = most
        self._begin = begin
        self._workers: list[_Worker[AnswerT]] = []
        self._waiting: deque[tuple[Group[AnswerT], int, JobT]] = deque()
        self._stop_watch = SuspensionMonitor("a process that translates")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        place: TracebackType | None,
    ) -> None:
        self._stop_watch.close()
        # They own nothing that would be lost.
        for worker in self._workers:
            worker.connection.close()
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        while self._workers:
            _exit_code(self._workers.pop().pid)

    def begin(self, jobs: Sequence[JobT]) -> Group[AnswerT]:
        """Have jobs done, behind those begun before; a single one is not worth a first process.

        Raises:
            ResourceError: a worker was killed, or stopped for too long.
        """
        group: Group[AnswerT] = Group(len(jobs))
        self._waiting.extend((group, place, job) for place, job in enumerate(jobs))
        if self._most > 1 and (self._workers or len(jobs) > 1):
            self._turn(wait_seconds=0)
        else:
            while group.missing:
                self._do_here()
        return group

    def finish(self, group: Group[AnswerT]) -> list[AnswerT]:
        """The answers to all jobs of a group, in order; of several failures the first is raised.

        Raises:
            ResourceError: a worker was killed, or stopped for too long.
        """
        while group.missing:
            self._turn()
        if group.failures:
            raise group.failures[min(group.failures)]
        return [group.answers[place] for place in range(len(group.answers))]

    def _turn(self, wait_seconds: float | None = None) -> None:
        """Give out jobs, wait for answers, give out more."""
        self._give_out()
        if not self._workers:
            self._do_here()
            return
        from multiprocessing.connection import wait

        workers: dict[object, _Worker[AnswerT]] = {one.connection: one for one in self._workers}
        for connection in wait([one.connection for one in self._workers], wait_seconds):
            worker = workers[connection]
            try:
                is_answer, found = worker.connection.recv()
            except (EOFError, OSError) as error:
                raise self._lost(worker) from error
            group, place = worker.given.popleft()
            _note(group, place, found, is_answer=is_answer)
        self._give_out()

    def _give_out(self) -> None:
        while self._waiting:
            worker = min(self._workers, key=lambda one: len(one.given), default=None)
            if (worker is None or worker.given) and len(self._workers) < self._most:
                worker = self._started() or worker
            if worker is None or len(worker.given) >= _AT_HAND:
                return
            group, place, job = self._waiting.popleft()
            worker.given.append((group, place))
            try:
                worker.connection.send(job)
            except OSError as error:
                raise self._lost(worker) from error

    def _do_here(self) -> None:
        group, place, job = self._waiting.popleft()
        try:
            _note(group, place, self._work(job), is_answer=True)
        except Exception as error:  # raised where the group is finished
            _note(group, place, error, is_answer=False)

    def _lost(self, worker: _Worker[AnswerT]) -> ResourceError:
        """What to say of a worker that is no more."""
        self._workers.remove(worker)
        worker.connection.close()
        code = _exit_code(worker.pid)
        if reason := self._stop_watch.reason(worker.pid):
            return reason
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "if memory ran out, lower `--workers` or `--max-tokens`"
        return ResourceError(f"a process that translates {how}", hint=hint)

    def _started(self) -> _Worker[AnswerT] | None:
        """One more worker; None, and no further attempt, where the system refuses."""
        from multiprocessing.connection import Pipe

        try:
            ours, theirs = Pipe()
            with theirs:
                worker = _Worker[AnswerT](self._forked(ours, theirs), ours)
        except OSError as error:
            self._most = len(self._workers)
            instead = f"{self._most} in all" if self._most else "translating in this one"
            logger.warning("cannot start another process: %s; %s", error.strerror, instead)
            return None
        self._workers.append(worker)
        self._stop_watch.add(worker.pid)
        return worker

    def _forked(self, ours: "Connection", theirs: "Connection") -> int:
        # A signal between the fork and what the worker makes of it would find our own handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns if there are threads, such as the one that shows progress. What
                # they may hold just then, a worker does not touch: it neither logs nor prints.
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
        """Be a worker: answer jobs until nobody is left to send any."""
        code = 1
        try:
            for number in END_SIGNALS:  # they mean the process that started us
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            gc.freeze()  # looking for garbage in what is shared would copy it
            # The pipes of all would stay open for as long as one of us lives.
            for connection in (ours, *(worker.connection for worker in self._workers)):
                connection.close()
            jobs: SimpleQueue[JobT] = SimpleQueue()
            # A thread that is new has no team of threads, as OpenMP keeps for the one that forked
            # and would wait for; and this one notices at once when the pipe is closed.
            threading.Thread(target=self._answer, args=(jobs, theirs), daemon=True).start()
            with suppress(EOFError, OSError):
                while True:
                    jobs.put(theirs.recv())
            code = 0
        finally:
            os._exit(code)

    def _answer(self, jobs: "SimpleQueue[JobT]", connection: "Connection") -> None:
        try:
            self._begin()
            while True:
                job = jobs.get()
                message: tuple[bool, object]
                try:
                    message = (True, self._work(job))
                except Exception as error:  # raised again by the process that started us
                    message = (False, _portable(error))
                connection.send(message)
        finally:
            os._exit(1)


def _note(group: Group[AnswerT], place: int, found: Any, *, is_answer: bool) -> None:
    (group.answers if is_answer else group.failures)[place] = found
    group.missing -= 1


def _portable(error: Exception) -> Exception:
    """The error, where it survives the way through a pipe; else one that tells of it."""
    from multiprocessing.reduction import ForkingPickler

    told = "".join(traceback.format_exception(error))
    if not isinstance(error, TfmError):  # which is shown without a traceback
        error.add_note(f"in a process that translates:\n{told}")
    try:
        # What it is made from anew may lack arguments, and then anything may go wrong.
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError(told)
    return error


def _exit_code(pid: int) -> int:
    """The exit code of a process that has ended or is about to; below 0 that of a signal."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # where SIGCHLD is ignored, nobody knows
        return 0
