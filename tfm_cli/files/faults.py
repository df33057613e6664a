"""Faults on purpose: what `TFM_FAILPOINT` asks for happens when a point is reached the n-th time.

That is how the tests fail every single operation in turn. Without the variable nothing happens.

    TFM_FAILPOINT=write:3=enospc          the third write finds the disk full
    TFM_FAILPOINT=durable:17=kill         the process is killed at the 17th durable operation
    TFM_FAILPOINT=update:7@1=stop,…       rank 1 is stopped at its seventh update; and another fault
    TFM_FAILPOINT=save:2+=eio             every save from the second on

What a launcher starts again after a failure is spared, so that it gets further.

Source: SQLite's and curl's tests, which fail the n-th operation for n = 1, 2, 3 … until none fails.
"""

import errno
import functools
import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass

from tfm_cli.errors import ConfigError

VARIABLE = "TFM_FAILPOINT"
_SPELLING = re.compile(r"([a-z_]+):([1-9][0-9]{0,8})(\+?)(?:@([0-9]{1,6}))?=([a-z]+)")
_ERRORS = {
    "enospc": errno.ENOSPC,
    "edquot": errno.EDQUOT,
    "efbig": errno.EFBIG,
    "eio": errno.EIO,
    "erofs": errno.EROFS,
}
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
_BY_CALLER = ("short", "tear", "nan")  # what only the place itself can do
_SLEEP_SECONDS = 1.0
_ACTIONS = (*_ERRORS, *_SIGNALS, "memory", "sleep", *_BY_CALLER)

_reached: Counter[str] = Counter()


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to happen, and when."""

    point: str
    number: int  # counted from 1, in each process for itself
    goes_on: bool  # whether also each time after that
    action: str


def reach(point: str) -> str:
    """Say that a point is reached; what was asked for happens here and now.

    Returns:
        What the caller has to do itself: `short`, to write half; `tear`, to write half and be
        killed; `nan`; or nothing.

    Raises:
        OSError: that is what was asked for.
        MemoryError: want of memory was asked for.
    """
    faults = _faults()
    if not faults:
        return ""
    _reached[point] += 1
    for fault in faults:
        is_due = fault.number == _reached[point] or (
            fault.goes_on and fault.number < _reached[point]
        )
        if fault.point == point and is_due:
            return _happen(fault.action)
    return ""


def _happen(action: str) -> str:
    if action in _BY_CALLER:
        return action
    if action in _ERRORS:
        raise OSError(_ERRORS[action], os.strerror(_ERRORS[action]))
    if action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[action])
    elif action == "memory":
        raise MemoryError(f"can't allocate memory: asked for by {VARIABLE}")
    else:
        time.sleep(_SLEEP_SECONDS)
    return ""


@functools.cache
def _faults() -> tuple[Fault, ...]:
    """What is asked for of this process; the variable is read once."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return ()
    return parsed(os.environ.get(VARIABLE, ""), rank=os.environ.get("RANK", "0"))


def parsed(text: str, *, rank: str = "0") -> tuple[Fault, ...]:
    """The faults that are asked for, of one process.

    Raises:
        ConfigError: it is none that there is.
    """
    faults = []
    for each in filter(None, text.split(",")):
        found = _SPELLING.fullmatch(each)
        if found is None or found[5] not in _ACTIONS:
            raise ConfigError(
                f"{VARIABLE}: `{each}` is none, wanted POINT:N=ACTION",
                hint=f"unset it, or take one of these actions: {', '.join(_ACTIONS)}",
            )
        point, number, goes_on, wanted_rank, action = found.groups()
        if wanted_rank in (None, rank):
            faults.append(Fault(point, int(number), bool(goes_on), action))
    return tuple(faults)


def begin_again() -> None:
    """Read the variable anew and count from the start; for tests in one process."""
    _faults.cache_clear()
    _reached.clear()
