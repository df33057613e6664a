"""Failure of a process group: one rank reports the reason, and all exit with the same code.

PyTorch's `monitored_barrier` names late ranks only while all ranks are in a barrier, only on rank
0, and only with gloo. torchrun's error files hold the traceback of a process that raised, and
nothing about one that was killed or suspended. Hence the monitor in this module.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any

from tfm_cli.console import visible
from tfm_cli.errors import ReportedElsewhere, ResourceError, TfmError
from tfm_cli.parallel.heartbeat import DEFAULT_TIMEOUT_SECONDS, Heartbeat, ProgressState
from tfm_cli.parallel.launcher import launcher_holds_store

_NUM_ENDED, _EXIT_CODE, _NUM_ACKNOWLEDGED = "tfm/ended", "tfm/exit_code", "tfm/heard"
_POLL_SECONDS = 0.1
_RANK_0_FIRST_SECONDS = 0.5  # for rank 0 to report, if all ranks fail for the same reason
_ANSWER_SECONDS = 2.0
_GRACE_SECONDS = 120.0  # for work that can be finished alone, such as writing a checkpoint
_WAITING_GRACE_SECONDS = 4.0  # for a rank that waits: a closed connection ends most waits before


class RankLostError(ResourceError):
    """The exit of another rank before its part of the work was done."""

    def __init__(
        self, rank: int, world_size: int, lost: str = "another process", *, activity: str = ""
    ) -> None:
        super().__init__(
            f"rank {rank} of {world_size}{activity}: {lost} exited before the work was done",
            hint="see its own messages, and repeat the command",
        )
        self.lost = lost


class RankTimeoutError(ResourceError):
    """The failure of another rank to answer in time."""

    def __init__(self, rank: int, world_size: int, reason: str, *, activity: str = "") -> None:
        super().__init__(
            f"rank {rank} of {world_size}{activity}: {reason}",
            hint="check whether it is stopped or its machine is down, and repeat the command, "
            "on slow machines with a longer `--dist-timeout`",
        )


def is_lost_connection(error: BaseException) -> bool:
    """Return True for the errors of collective operations whose peer is gone."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    # Gloo's errors have no class of their own, but their message names a source file of gloo.
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("/gloo/", "Connection closed by peer", "NCCL error")
    )


class FailureMonitor:
    """Threads that watch for the failure of other ranks, and publish a failure of this one.

    Without them, a process that waits for another one on a GPU would wait forever, and the error of
    a lost connection would give neither the rank nor the reason.

    Args:
        store: a store of `torch.distributed`, held by rank 0 or the launcher.
        rank, world_size: rank of this process, and number of processes.
        state: the progress of its main thread.
        timeout_seconds: time after which a rank that does not answer is late.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        state: ProgressState | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._state = state or ProgressState()
        self._heartbeat = Heartbeat(store, rank, world_size, self._state, timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._exit_code: int | None = None  # of the first rank that failed
        self._failed = threading.Event()  # another rank has published a failure
        self._closed = threading.Event()
        self._is_ending = False  # the main thread is exiting
        self._store_answered_at = time.monotonic()
        self._watcher = threading.Thread(target=self._watch, name="failure", daemon=True)
        self._watcher.start()
        threading.Thread(target=self._watch_store, name="store", daemon=True).start()

    def close(self) -> None:
        """Stop the threads, and announce a normal exit unless this rank failed."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._watcher.join(_ANSWER_SECONDS)
        with contextlib.suppress(RuntimeError):
            if not self._is_ending:
                self._heartbeat.finish()

    def publish(self, error: BaseException) -> BaseException:
        """Publish the failure of this rank, and return the error to raise.

        The first rank that fails raises its own error. The others raise a ReportedElsewhere with
        the same exit code.
        """
        ignore_termination()
        self._is_ending = True
        if isinstance(error, ReportedElsewhere):  # all ranks end for one reason, which rank 0 gives
            self._failed.wait(_ANSWER_SECONDS)
            return error
        if self._rank > 0 or isinstance(error, RankLostError):
            self._failed.wait(_RANK_0_FIRST_SECONDS)
        try:
            if self._failed.is_set() or self._store.add(_NUM_ENDED, 1) > 1:
                self._failed.wait(_ANSWER_SECONDS)
                code = _exit_code(error) if self._exit_code is None else self._exit_code
                message = f"rank {self._rank} exited after the failure of another rank"
                return ReportedElsewhere(message, exit_code=code)
            if isinstance(error, RankLostError):
                error = self._lost(self._heartbeat.silent_ranks() or error.lost)
            self.close()
            self._store.set(_EXIT_CODE, str(_exit_code(error)))
        except RuntimeError:  # without the store, each rank reports its own error
            if isinstance(error, RankLostError):
                error = self._lost(error.lost if launcher_holds_store() else "rank 0")
        if self._rank == 0 or isinstance(error, RankLostError):
            return error
        rank = f"rank {self._rank} of {self._world_size}{self._activity}"
        if isinstance(error, TfmError):
            return error.with_message(f"{rank}: {error}")
        error.add_note(rank)  # shown below the traceback
        return error

    def _lost(self, lost: str) -> RankLostError:
        return RankLostError(self._rank, self._world_size, lost, activity=self._activity)

    def wait_until_acknowledged(self) -> None:
        """Wait until the others have read the exit code, since the store may end with rank 0."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        with contextlib.suppress(RuntimeError):
            while (
                self._store.add(_NUM_ACKNOWLEDGED, 0) < self._world_size - 1
                and time.monotonic() < deadline
            ):
                time.sleep(0.02)

    def _watch(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone
            while not self._store.check([_EXIT_CODE]):
                lateness = self._heartbeat.beat()
                self._store_answered_at = time.monotonic()
                if lateness and not self._is_ending:
                    self._exit_for_late_rank(lateness, is_first=self._store.add(_NUM_ENDED, 1) == 1)
                if self._closed.wait(_POLL_SECONDS):
                    return
            self._exit_code = int(self._store.get(_EXIT_CODE))
            self._failed.set()
            self._store.add(_NUM_ACKNOWLEDGED, 1)
        if self._exit_code is None:
            return
        failed_at = time.monotonic()
        while not self._closed.wait(_POLL_SECONDS):  # the main thread may wait for a lost rank
            is_waiting = self._state.is_waiting or self._state.has_deadline
            has_short_grace = is_waiting and not self._is_ending
            grace = _WAITING_GRACE_SECONDS if has_short_grace else _GRACE_SECONDS
            if time.monotonic() - failed_at > grace:
                os._exit(self._exit_code)

    def _watch_store(self) -> None:
        """Exit if the holder of the store is suspended while this process waits for another one.

        Without the store, this process can neither inform the others nor learn of their failures.
        While it makes progress it continues, as when a launcher is suspended at a terminal.
        """
        polled_at, num_steps = time.monotonic(), -1
        while not self._closed.wait(_POLL_SECONDS) and self._watcher.is_alive():
            now = time.monotonic()
            if self._failed.is_set():
                return
            state, was_suspended = self._state, now - polled_at > self._timeout_seconds / 2
            has_moved = state.num_steps != num_steps
            if was_suspended or has_moved or not (state.is_waiting or state.has_deadline):
                self._store_answered_at = now
            polled_at, num_steps = now, state.num_steps
            if now - self._store_answered_at > self._timeout_seconds:
                holder = "the launcher" if launcher_holds_store() else "rank 0"
                self._print(f"{holder} has not answered for {self._timeout_seconds:g} s")
                os._exit(RankTimeoutError.exit_code)

    def _exit_for_late_rank(self, reason: str, *, is_first: bool) -> None:
        """Report a late rank and exit, since the main thread waits for that rank."""
        with contextlib.suppress(RuntimeError):
            if not is_first:  # another rank reports
                self._closed.wait(_ANSWER_SECONDS)
            elif not self._closed.is_set():
                self._print(reason)
                self._store.set(_EXIT_CODE, str(RankTimeoutError.exit_code))
                if self._rank == 0:
                    self.wait_until_acknowledged()
        os._exit(RankTimeoutError.exit_code)

    def _print(self, reason: str) -> None:
        error = RankTimeoutError(self._rank, self._world_size, reason, activity=self._activity)
        lines = f"error: {visible(str(error))}\nhint: {visible(str(error.hint))}\n"
        with contextlib.suppress(OSError, ValueError):
            show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
            sys.stderr.write(show_cursor + lines)
            sys.stderr.flush()

    @property
    def _activity(self) -> str:
        return f", {self._state.activity}" if self._state.activity else ""


def _exit_code(error: BaseException) -> int:
    """Return the exit code of the command after an error."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):  # the reader of our output has closed it
        return 0
    code = getattr(error, "exit_code", 70)
    return code if isinstance(code, int) else 70


def ignore_termination() -> None:
    """Ignore SIGTERM and SIGHUP from now on.

    A launcher sends one of them to all other processes as soon as one has ended, which would cut
    off their messages and change their exit codes.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
