"""The time limit of `--max-time`, and the alarm that interrupts work that would exceed it."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from tfm_cli.config.validation import duration_seconds
from tfm_cli.errors import OutOfTime

# Work may exceed the limit by this much before it is interrupted. A command may end ten seconds
# late; the remaining six are for the last checkpoint and the exit.
GRACE_SECONDS = 4.0
_LONGEST_ALARM = 1e8  # seconds, three years, which every system can count


class TimeLimit:
    """The deadline of a command, with its alarm and the duration of the newest checkpoint.

    Args:
        max_time: duration such as `20m`; empty for no limit.
        began: the start of the command, by `clock`; None for now.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        max_time: str = "",
        *,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_time = max_time
        self._clock = clock
        self.began = clock() if began is None else began
        self._seconds = duration_seconds(max_time) or math.inf
        self._is_armed = False
        self.saving_seconds = 0.0  # of the newest checkpoint, as an estimate for the last one

    @property
    def deadline(self) -> float:
        """Return the time of the end, by the clock; infinite without a limit."""
        return self.began + self._seconds

    @property
    def reason(self) -> str:
        """Return the reason for the end, as shown to the user."""
        return f"{self._max_time} passed (--max-time)"

    def check(self) -> None:
        """Raise OutOfTime if the limit and the grace period have passed."""
        if self._overdue_in() <= 0:
            raise OutOfTime(self.reason)

    @contextlib.contextmanager
    def alarm(self) -> Iterator[None]:
        """Raise OutOfTime in the main thread when the grace period ends, until `disarm`.

        This is for the time before the first update, when there is nothing to save yet: the command
        reads text, perhaps from an idle pipe, and waits for other processes.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if self._seconds == math.inf or not is_main or not hasattr(signal, "setitimer"):
            yield
            return

        def ring(number: int, frame: FrameType | None) -> None:
            if self._is_armed:
                self._is_armed = False
                raise OutOfTime(f"stopped before the first update: {self.reason}")

        handler = signal.signal(signal.SIGALRM, ring)
        self._is_armed = True
        set_at = time.monotonic()
        other_alarm, _ = signal.setitimer(signal.ITIMER_REAL, max(0.001, self._overdue_in()))
        try:
            yield
        finally:
            self.disarm()
            signal.signal(signal.SIGALRM, handler)
            if other_alarm:  # set by the caller
                left = other_alarm - (time.monotonic() - set_at)
                signal.setitimer(signal.ITIMER_REAL, max(0.001, left))

    def disarm(self) -> None:
        """Cancel the alarm."""
        if self._is_armed:
            self._is_armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _overdue_in(self) -> float:
        seconds = self.began + self._seconds + GRACE_SECONDS - self._clock()
        return min(seconds, _LONGEST_ALARM)
