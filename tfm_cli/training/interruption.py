"""Reasons to stop a run before it is complete: a signal, or the time limit."""

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
from tfm_cli.errors import END_SIGNALS, SignalReceived
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.launcher import is_launched
from tfm_cli.training.events import Stopped
from tfm_cli.training.state import TrainState
from tfm_cli.training.time_limit import TimeLimit

logger = logging.getLogger(__name__)

# A signal to a whole job may reach a process twice, since the launcher or the shell also forwards
# it. Within this many seconds, the second one counts as the same signal.
_SAME_SECONDS = 3.0

REQUESTED = 1 << 10  # in place of a signal: the program that called the training asked for its end
RESERVE_FACTOR = 1.1  # since no two validations take the same time


@contextlib.contextmanager
def record_signals(world_size: int = 1) -> Iterator[Callable[[], int]]:
    """Record the first termination signal in the block; a second one ends the process at once.

    Under a launcher, a signal soon after the first one counts as the same. So does a second SIGHUP
    in any case: when a connection is lost, the shell and the system each send one. A signal that is
    ignored before the block stays ignored, such as SIGINT in a background job of a script or SIGHUP
    under `nohup`. Yields a function that returns the number of the recorded signal, 0 for none.

    Args:
        world_size: the number of processes; if several, one may be waiting for another.
    """
    received: list[int] = []
    received_at = math.inf
    before = {each: signal.getsignal(each) for each in END_SIGNALS}
    watched = [each for each in END_SIGNALS if before[each] != signal.SIG_IGN]
    launched = is_launched()
    may_wait = launched or world_size > 1

    def record(number: int, frame: FrameType | None) -> None:
        nonlocal received_at
        received.append(number)
        if received[1:]:
            if not may_wait and time.monotonic() - received_at >= _SAME_SECONDS:  # another SIGHUP
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        received_at = time.monotonic()
        if not may_wait:
            for each in watched:
                if not number == each == signal.SIGHUP:
                    signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        logger.warning("%s: saving after this update; a second signal ends it at once", name)

    same_seconds = _SAME_SECONDS if launched else 0.0
    with _exit_on_second(watched, same_seconds) if may_wait else contextlib.nullcontext():
        for each in watched:
            signal.signal(each, record)
        try:
            yield lambda: received[0] if received else 0
        finally:
            # Everything is saved: a signal that the launcher forwards late is ignored.
            for each in watched:
                signal.signal(each, signal.SIG_IGN if launched and received else before[each])


@contextlib.contextmanager
def _exit_on_second(watched: Sequence[int], same_seconds: float) -> Iterator[None]:
    """End the process at a second signal that comes at least `same_seconds` after the first.

    This takes a thread, since Python runs signal handlers in the main thread, which may be waiting
    for another process.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def watch() -> None:
        until = math.inf
        while number := os.read(read_end, 1):  # Python writes each signal to the pipe at once
            if number[0] not in watched:
                continue
            if time.monotonic() >= until:
                os._exit(128 + number[0])
            same = _SAME_SECONDS if number[0] == signal.SIGHUP else same_seconds
            until = min(until, time.monotonic() + same)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)
        thread.join()
        os.close(read_end)


def validation_check(limit: TimeLimit, signalled: Callable[[], int]) -> Callable[[], None]:
    """Return a function that raises OutOfTime if a validation must end: time is up, or a signal.

    Args:
        limit: the time limit of the command.
        signalled: returns the number of the signal that was received, 0 for none.
    """

    def check() -> None:
        limit.check()
        if number := signalled():
            raise SignalReceived(_received(number))

    return check


def _received(number: int) -> str:
    if number == REQUESTED:
        return "a stop was requested"
    return f"{signal.Signals(number).name} was received"


def interruption(
    state: TrainState,
    signalled: Callable[[], int],
    *,
    max_time: str,
    began: float,
    clock: Callable[[], float] = time.monotonic,
    parallel: Parallel | None = None,
    saving_seconds: Callable[[], float] = lambda: 0.0,
    validation_seconds: Callable[[], float] = lambda: 0.0,
) -> Callable[[], Stopped | None]:
    """Return a function that returns the reason to stop now, or None to continue.

    All ranks stop after the same update, whichever of them has a reason. Before the time is up, the
    last weights are validated if that takes at most half of the time for training: otherwise a
    command with little time would spend it on validations.

    Args:
        state: the position of the run.
        signalled: returns the number of the signal that was received, 0 for none.
        max_time: the time limit of the command; empty for none.
        began: the start of the command, by `clock`.
        clock: returns the time in seconds.
        parallel: the processes, all of which must call the function together.
        saving_seconds: estimates the duration of the last checkpoint.
        validation_seconds: estimates the duration of a validation; 0 without validation text.
    """
    parallel = parallel or Parallel()
    limit = duration_seconds(max_time) or math.inf
    first_update = state.update
    longest_validation = (began + limit - clock()) / 2
    last_call = -math.inf
    update_seconds = math.inf  # of the quickest update, without validation and checkpoint

    def interrupted() -> Stopped | None:
        nonlocal last_call, update_seconds
        now, reserved = clock(), validation_seconds()
        update_seconds = min(update_seconds, now - last_call)
        last_call = now
        validates = 0 < reserved <= longest_validation
        needed = saving_seconds()
        if validates and state.update > first_update:
            # The next update must end early enough, too.
            needed += RESERVE_FACTOR * reserved + update_seconds
        number, is_late, validate_first = parallel.all_max(
            [signalled(), now - began + needed >= limit, validates or state.best_score is None]
        )
        if number:
            return Stopped(_received(number), is_complete=False, validate_first=False)
        # At least one update is made, so that repeating the command always makes progress.
        if is_late and state.update > first_update:
            reason = f"{max_time} passed (--max-time)"
            # Without any validation so far there would be no model to translate with.
            return Stopped(reason, is_complete=False, validate_first=bool(validate_first))
        return None

    return interrupted
