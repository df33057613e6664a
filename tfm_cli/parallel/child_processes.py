"""Processes of ours that something stopped: told of after a time, and ended after a longer one."""

import logging
import os
import signal
import threading
from contextlib import suppress

from tfm_cli.errors import ResourceError

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5  # between two looks whether a process is stopped
_TOLD_SECONDS = 10.0
_PATIENCE_SECONDS = 60.0


class StopWatch:
    """Watches child processes; a class because a thread of its own does.

    The main thread may wait for a process that is stopped, to send as well as to receive. Once that
    process is ended, it finds the other end of a pipe closed, and asks for the reason here.

    Args:
        what: words for one of the processes.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pids: tuple[int, ...] = ()
        self._overdue: set[int] = set()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, pid: int) -> None:
        """Watch one more process, which this one started."""
        self._pids = (*self._pids, pid)
        if self._thread is None:
            thread = threading.Thread(target=self._watch, name="stopped", daemon=True)
            thread.start()
            self._thread = thread  # only now: a signal amid the start leaves nothing to join

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def reason(self, pid: int) -> ResourceError | None:
        """Return an error that says why a process was ended; None if it was not ended here."""
        if pid not in self._overdue:
            return None
        return ResourceError(
            f"{self._what}, PID {pid}, was stopped for {_PATIENCE_SECONDS:g} s",
            hint="see what stopped it, and give the same command again",
        )

    def _watch(self) -> None:
        # Looks are counted, since no time should pass while this process is stopped as well.
        looks: dict[int, int] = {}
        told = max(1, round(_TOLD_SECONDS / _LOOK_SECONDS))
        while not self._closed.wait(_LOOK_SECONDS):
            for pid in self._pids:
                looks[pid] = looks.get(pid, 0) + 1 if _is_stopped(pid) else 0
                if looks[pid] == told:
                    words = "%s is stopped: `kill -CONT %d` lets it go on"
                    logger.warning(words, self._what, pid)
                if looks[pid] * _LOOK_SECONDS >= _PATIENCE_SECONDS:
                    self._overdue.add(pid)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    """Return True if a process that this one started is stopped now, where that can be known."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return False
    try:
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # it has ended
        return False
    return found is not None
