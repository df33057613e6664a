"""Why a run stops before it is complete: a signal, or the time that it was given."""

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from tfm_cli.config.validation import duration_seconds
from tfm_cli.errors import END_SIGNALS
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.launcher import is_launched
from tfm_cli.training.events import Stopped
from tfm_cli.training.state import TrainState

logger = logging.getLogger(__name__)

_SAME_SECONDS = 3.0  # for a signal to all of a job, which a launcher or a shell hands on once more


@contextlib.contextmanager
def record_signals(world: int = 1) -> Iterator[Callable[[], int]]:
    """Inside, a first signal to end is remembered; a second one ends the process at once.

    Under a launcher, what comes soon after the first is taken for the same one. So is a second
    SIGHUP: of a connection that is gone, the shell tells its jobs, and so does the system. A signal
    that is ignored, as SIGINT is in the background of a script and SIGHUP by `nohup`, stays
    ignored. Yields a function that gives the number of the signal that came, 0 for none.

    Args:
        world: number of processes at the same work, which wait for each other.
    """
    received: list[int] = []
    received_at = math.inf
    before = {each: signal.getsignal(each) for each in END_SIGNALS}
    watched = [each for each in END_SIGNALS if before[each] != signal.SIG_IGN]
    launched = is_launched()
    waits = launched or world > 1

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal received_at
        received.append(number)
        if received[1:]:
            if not waits and time.monotonic() - received_at >= _SAME_SECONDS:  # another SIGHUP
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        received_at = time.monotonic()
        if not waits:
            for each in watched:
                if not number == each == signal.SIGHUP:
                    signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        logger.warning("%s: saving after this update; once more ends it at once", name)

    same_seconds = _SAME_SECONDS if launched else 0.0
    with _end_by_second(watched, same_seconds) if waits else contextlib.nullcontext():
        for each in watched:
            signal.signal(each, remember)
        try:
            yield lambda: received[0] if received else 0
        finally:
            for each in watched:  # all is saved: what the launcher hands on late is for nothing
                signal.signal(each, signal.SIG_IGN if launched and received else before[each])


@contextlib.contextmanager
def _end_by_second(watched: Sequence[int], same_seconds: float) -> Iterator[None]:
    """Inside, a signal that comes so many seconds after the first, or more, ends the process.

    A thread sees to it: the handlers of signals wait for the main thread, which may itself wait for
    another process.
    """
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)

    def watch() -> None:
        until = math.inf
        while number := os.read(ours, 1):  # Python writes each signal to the other end at once
            if number[0] not in watched:
                continue
            if time.monotonic() >= until:
                os._exit(128 + number[0])
            same = _SAME_SECONDS if number[0] == signal.SIGHUP else same_seconds
            until = min(until, time.monotonic() + same)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(theirs)
        thread.join()
        os.close(ours)


def interruption(
    state: TrainState,
    signalled: Callable[[], int],
    *,
    max_time: str,
    began: float,
    clock: Callable[[], float] = time.monotonic,
    parallel: Parallel | None = None,
    saving_seconds: Callable[[], float] = lambda: 0.0,
) -> Callable[[], Stopped | None]:
    """A function that says why to stop now; None to go on.

    What stops one process stops all of them, after the same update.

    Args:
        state: where the run stands.
        signalled: number of the signal that came, 0 for none.
        max_time: duration that this command may take; empty for any.
        began: when it began, by `clock`.
        clock: seconds.
        parallel: the processes, all of which ask at the same time.
        saving_seconds: how long the checkpoint at the end is expected to take.
    """
    processes = parallel or Parallel()
    limit = duration_seconds(max_time) or math.inf
    first = state.update

    def interrupted() -> Stopped | None:
        number, is_late = processes.all_max(
            [signalled(), clock() - began + saving_seconds() >= limit]
        )
        if number:
            reason = f"{signal.Signals(number).name} was received"
            return Stopped(reason, is_complete=False, validate_first=False)
        # At least one update is made, so that the same command again always gets further.
        if is_late and state.update > first:
            reason = f"{max_time} passed (--max-time)"
            # Without any validation so far there would be no model to translate with.
            return Stopped(reason, is_complete=False, validate_first=state.best_score is None)
        return None

    return interrupted
