"""A monitor of suspended child processes: it warns the user, and later kills the process."""

import logging
import os
import signal
import threading
from contextlib import suppress

from tfm_cli.errors import ResourceError

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_WARNING_SECONDS = 10.0
_TIMEOUT_SECONDS = 60.0


class SuspensionMonitor:
    """A thread that watches for suspended child processes.

    The main thread may block on a pipe to a suspended process, for sending as well as for
    receiving. Once that process is killed, the main thread finds the pipe closed and calls
    `reason`.

    Args:
        description: a description of one process, such as `a process that translates`.
    """

    def __init__(self, description: str) -> None:
        self._description = description
        self._pids: tuple[int, ...] = ()
        self._killed: set[int] = set()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, pid: int) -> None:
        """Watch one more child of this process."""
        self._pids = (*self._pids, pid)
        if self._thread is None:
            thread = threading.Thread(target=self._watch, name="stopped", daemon=True)
            thread.start()
            self._thread = thread  # set last: a signal during the start leaves nothing to join

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def reason(self, pid: int) -> ResourceError | None:
        """Return the error for a process that this monitor killed; None for any other."""
        if pid not in self._killed:
            return None
        return ResourceError(
            f"{self._description}, PID {pid}, was stopped for {_TIMEOUT_SECONDS:g} s",
            hint="find out what stopped it, and repeat the command",
        )

    def _watch(self) -> None:
        # Polls are counted instead of seconds, since seconds would also pass while this process
        # itself is suspended.
        polls: dict[int, int] = {}
        warning_polls = max(1, round(_WARNING_SECONDS / _POLL_SECONDS))
        while not self._closed.wait(_POLL_SECONDS):
            for pid in self._pids:
                polls[pid] = polls.get(pid, 0) + 1 if _is_suspended(pid) else 0
                if polls[pid] == warning_polls:
                    message = "%s is stopped: `kill -CONT %d` resumes it"
                    logger.warning(message, self._description, pid)
                if polls[pid] * _POLL_SECONDS >= _TIMEOUT_SECONDS:
                    self._killed.add(pid)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def _is_suspended(pid: int) -> bool:
    """Return True if a child of this process is suspended, where the system can report it."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return False
    try:
        status = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # it has ended
        return False
    return status is not None
