"""How processes that work together end: one of them says why, and all exit with the same code."""

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any

from tfm_cli.console import visible
from tfm_cli.errors import ResourceError, ToldElsewhere
from tfm_cli.parallel.heartbeat import Heart, Whereabouts
from tfm_cli.parallel.launcher import holds_store

_ENDED, _CODE, _HEARD = "tfm/ended", "tfm/exit_code", "tfm/heard"
_LOOK_SECONDS = 0.1  # between two looks whether another process has ended
_FIRST_WORD_SECONDS = 0.5  # that rank 0 has, where all end for the same reason
_ANSWER_SECONDS = 2.0
_GRACE_SECONDS = 120.0  # for what can be finished alone, such as the writing of a checkpoint
_WAITING_SECONDS = 4.0  # … where nothing is: a connection that is closed would end it by itself

DEFAULT_PATIENCE = 600.0  # seconds


class LostError(ResourceError):
    """Another process is gone, and what it did for all with it."""

    def __init__(
        self, rank: int, world: int, other: str = "another process", *, place: str = ""
    ) -> None:
        super().__init__(
            f"rank {rank} of {world}{place}: {other} ended before the work was done",
            hint="see what it said, and start the same again",
        )
        self.other = other


class LateError(ResourceError):
    """Another process does not answer in time."""

    def __init__(self, rank: int, world: int, why: str, *, place: str = "") -> None:
        super().__init__(
            f"rank {rank} of {world}{place}: {why}",
            hint="see whether it is stopped or its machine is down, and start the same again, "
            "for slow machines with a longer `--dist-timeout`",
        )


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error is what a collective operation says when another process is gone."""
    import torch.distributed as processes

    if isinstance(error, processes.DistError):
        return True
    # Gloo's errors have no class of their own, but name the file they come from.
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("/gloo/", "Connection closed by peer", "NCCL error")
    )


class Ending:
    """What processes note down for each other when one fails; a class because it watches for it.

    Nothing else would tell a process that waits for another on a GPU, or why a connection is gone,
    or who is late.

    Args:
        store: of `torch.distributed`; rank 0 or the launcher holds it.
        rank, world: this process among all.
        here: where its main thread is.
        patience: seconds until another process that does not answer is late.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world: int,
        here: Whereabouts | None = None,
        patience: float = DEFAULT_PATIENCE,
    ) -> None:
        self._store = store
        self._rank = rank
        self._world = world
        self._here = here or Whereabouts()
        self._heart = Heart(store, rank, world, self._here, patience)
        self._patience = patience
        self._code: int | None = None  # of the first that ended
        self._heard = threading.Event()
        self._closed = threading.Event()
        self._ends = False  # whether the main thread is on its way out
        self._answered_at = time.monotonic()  # when the store did
        self._watcher = threading.Thread(target=self._watch, name="ending", daemon=True)
        self._watcher.start()
        threading.Thread(target=self._watch_store, name="store", daemon=True).start()

    def close(self) -> None:
        """Watch no more."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._watcher.join(_ANSWER_SECONDS)
        with contextlib.suppress(RuntimeError):
            if not self._ends:
                self._heart.rest()

    def early(self, error: BaseException) -> BaseException:
        """What to raise for an error: itself where this process is the first that ends.

        The first one speaks for all; the others end without a word, by the same exit code.
        """
        leave_signals_alone()
        self._ends = True
        if self._rank > 0 or isinstance(error, LostError):
            self._heard.wait(_FIRST_WORD_SECONDS)
        try:
            if self._heard.is_set() or self._store.add(_ENDED, 1) > 1:
                self._heard.wait(_ANSWER_SECONDS)
                code = _exit_code(error) if self._code is None else self._code
                told = f"rank {self._rank} ended with the others"
                return ToldElsewhere(told, exit_code=code)
            if isinstance(error, LostError):
                others = self._heart.silent() or error.other
                error = LostError(self._rank, self._world, others, place=self._place)
            self.close()
            self._store.set(_CODE, str(_exit_code(error)))
        except RuntimeError:  # without the store it speaks for itself
            if isinstance(error, LostError):
                other = error.other if holds_store() else "rank 0"
                error = LostError(self._rank, self._world, other, place=self._place)
        is_named = isinstance(error, LostError) or self._rank == 0
        if isinstance(error, Exception) and error.args and not is_named:
            who = f"rank {self._rank} of {self._world}{self._place}"
            error.args = (f"{who}: {error}", *error.args[1:])
        return error

    def wait_until_heard(self) -> None:
        """Let the others read the exit code while this process, rank 0, may hold the store."""
        until = time.monotonic() + _ANSWER_SECONDS
        with contextlib.suppress(RuntimeError):
            while self._store.add(_HEARD, 0) < self._world - 1 and time.monotonic() < until:
                time.sleep(0.02)

    def _watch(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone
            while not self._store.check([_CODE]):
                late = self._heart.beat()
                self._answered_at = time.monotonic()
                if late and not self._ends:
                    self._end_by_force(late, is_first=self._store.add(_ENDED, 1) == 1)
                if self._closed.wait(_LOOK_SECONDS):
                    return
            self._code = int(self._store.get(_CODE))
            self._heard.set()
            self._store.add(_HEARD, 1)
        if self._code is None:
            return
        heard_at = time.monotonic()
        while not self._closed.wait(_LOOK_SECONDS):  # it may wait for what will never come
            waits = (self._here.waits or self._here.is_bounded) and not self._ends
            grace = _WAITING_SECONDS if waits else _GRACE_SECONDS
            if time.monotonic() - heard_at > grace:
                os._exit(self._code)

    def _watch_store(self) -> None:
        """Notice that nobody answers: who holds the store was stopped, and no other can be told.

        While this process gets on, that does no harm, as when a launcher is stopped at a terminal.
        """
        looked_at, steps = time.monotonic(), -1
        while not self._closed.wait(_LOOK_SECONDS) and self._watcher.is_alive():
            now = time.monotonic()
            if self._heard.is_set():
                return
            here, was_stopped = self._here, now - looked_at > self._patience / 2
            if was_stopped or here.steps != steps or not (here.waits or here.is_bounded):
                self._answered_at = now
            looked_at, steps = now, here.steps
            if now - self._answered_at > self._patience:
                late = "the launcher" if holds_store() else "rank 0"
                self._say(f"{late} was not heard of for {self._patience:g} s")
                os._exit(LateError.exit_code)

    def _end_by_force(self, late: str, *, is_first: bool) -> None:
        """Say who is late and end, since the main thread waits for it and cannot."""
        with contextlib.suppress(RuntimeError):
            if not is_first:  # and so nobody would listen
                self._closed.wait(_ANSWER_SECONDS)
            elif not self._closed.is_set():
                self._say(late)
                self._store.set(_CODE, str(LateError.exit_code))
                if self._rank == 0:
                    self.wait_until_heard()
        os._exit(LateError.exit_code)

    def _say(self, late: str) -> None:
        error = LateError(self._rank, self._world, late, place=self._place)
        lines = f"error: {visible(str(error))}\nhint: {visible(str(error.hint))}\n"
        with contextlib.suppress(OSError, ValueError):
            show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
            sys.stderr.write(show_cursor + lines)
            sys.stderr.flush()

    @property
    def _place(self) -> str:
        return f", {self._here.where}" if self._here.where else ""


def _exit_code(error: BaseException) -> int:
    """What the command line makes of an error."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):  # the reader of our output has all it wanted
        return 0
    code = getattr(error, "exit_code", 70)
    return code if isinstance(code, int) else 70


def leave_signals_alone() -> None:
    """Ignore SIGTERM and SIGHUP from now on.

    A launcher sends one of them to all the others as soon as one process has ended; what they have
    to say and their exit codes should not be lost by it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
