"""How processes that work together end: one of them says why, and all exit with the same code."""

import contextlib
import os
import signal
import threading
import time
from typing import Any

from tfm_cli.errors import ResourceError, ToldElsewhere

_ENDED, _CODE, _HEARD = "tfm/ended", "tfm/exit_code", "tfm/heard"
_LOOK_SECONDS = 0.1  # between two looks whether another process has ended
_FIRST_WORD_SECONDS = 0.5  # that rank 0 has, where all end for the same reason
_ANSWER_SECONDS = 2.0
_GRACE_SECONDS = 120.0  # for what can be finished alone, such as the writing of a checkpoint


class LostError(ResourceError):
    """Another process is gone, and what it did for all with it."""

    def __init__(self, rank: int, world: int, other: str = "another process") -> None:
        super().__init__(
            f"rank {rank} of {world}: {other} ended before the work was done",
            hint="see what it said, and start the same again",
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

    Nothing else would tell a process that waits for another on a GPU, or why a connection is gone.

    Args:
        store: of `torch.distributed`; rank 0 or the launcher holds it.
        rank, world: this process among all.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store = store
        self._rank = rank
        self._world = world
        self._code: int | None = None  # of the first that ended
        self._heard = threading.Event()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="ending", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()
        self._watcher.join()

    def early(self, error: BaseException) -> BaseException:
        """What to raise for an error: itself where this process is the first that ends.

        The first one speaks for all; the others end without a word, by the same exit code.
        """
        leave_signals_alone()
        if self._rank > 0 or isinstance(error, LostError):
            self._heard.wait(_FIRST_WORD_SECONDS)
        with contextlib.suppress(RuntimeError):  # without the store it speaks for itself
            if self._heard.is_set() or self._store.add(_ENDED, 1) > 1:
                self._heard.wait(_ANSWER_SECONDS)
                code = _exit_code(error) if self._code is None else self._code
                told = f"rank {self._rank} ended with the others"
                return ToldElsewhere(told, exit_code=code)
            self.close()
            self._store.set(_CODE, str(_exit_code(error)))
        is_named = isinstance(error, LostError) or self._rank == 0
        if isinstance(error, Exception) and error.args and not is_named:
            error.args = (f"rank {self._rank} of {self._world}: {error}", *error.args[1:])
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
                if self._closed.wait(_LOOK_SECONDS):
                    return
            self._code = int(self._store.get(_CODE))
            self._heard.set()
            self._store.add(_HEARD, 1)
        if self._code is not None and not self._closed.wait(_GRACE_SECONDS):
            os._exit(self._code)  # it waits for what will never come


def _exit_code(error: BaseException) -> int:
    """What the command line makes of an error."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):  # the reader of our output has all it wanted
        return 0
    code = getattr(error, "exit_code", 70)
    return code if isinstance(code, int) else 70


def leave_signals_alone() -> None:
    """Ignore SIGTERM from now on.

    A launcher sends it to all the others as soon as one process has ended; what they have to say
    and their exit codes should not be lost by it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
