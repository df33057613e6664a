"""The time that `--max-time` gives a command, and how work that takes longer is cut off."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from tfm_cli.config.validation import duration_seconds
from tfm_cli.errors import OutOfTime

# How long work that is under way when the time is up may still take. What is left of the ten
# seconds by which a command may be late is for the last checkpoint and the way out.
GRACE_SECONDS = 4.0


class TimeLimit:
    """When a command has to end; a class because it holds the alarm and what a checkpoint takes.

    Args:
        max_time: duration such as `20m`; empty for no limit.
        began: when the command began, by `clock`; None for now.
        clock: seconds.
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
        self.saving_seconds = 0.0  # that the newest checkpoint took: the last one needs as many

    @property
    def reason(self) -> str:
        """Why work ended, in the user's words."""
        return f"{self._max_time} passed (--max-time)"

    def check(self) -> None:
        """Raise OutOfTime if the time and the grace after it are over."""
        if self._overdue_in() <= 0:
            raise OutOfTime(self.reason)

    @contextlib.contextmanager
    def alarm(self) -> Iterator[None]:
        """Raise OutOfTime inside, wherever the main thread is, when the grace is over.

        For what comes before the first update, when there is nothing to save yet: it reads text,
        perhaps from a pipe to which nothing comes, and waits for other processes. Nothing is
        raised after `disarm`.
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
        others, _ = signal.setitimer(signal.ITIMER_REAL, max(0.001, self._overdue_in()))
        try:
            yield
        finally:
            self.disarm()
            signal.signal(signal.SIGALRM, handler)
            if others:  # the alarm of somebody else
                left = others - (time.monotonic() - set_at)
                signal.setitimer(signal.ITIMER_REAL, max(0.001, left))

    def disarm(self) -> None:
        """Let the alarm not ring any more."""
        if self._is_armed:
            self._is_armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _overdue_in(self) -> float:
        return self.began + self._seconds + GRACE_SECONDS - self._clock()
