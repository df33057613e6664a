"""Failpoints: `TFM_FAILPOINT` makes a named point fail the n-th time that it is reached.

Tests use it to make each operation fail. Without the variable it has no effect.

    TFM_FAILPOINT=write:3=enospc          the third write fails with a full disk
    TFM_FAILPOINT=durable:17=kill         the process is killed at the 17th durable operation
    TFM_FAILPOINT=update:7@1=stop,…       rank 1 is stopped at its seventh update; more may follow
    TFM_FAILPOINT=save:2+=eio             every save from the second on fails

A process that torchrun restarts after a failure ignores the variable, so that it makes progress.

Source: SQLite's and curl's tests, which fail the n-th operation for n = 1, 2, 3 … until none fails.
"""

import errno
import functools
import os
import re
import signal
import time
from collections import Counter
from typing import NamedTuple

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
_BY_CALLER = ("short", "tear", "nan")  # `reach` returns these, and its caller carries them out
_SLEEP_SECONDS = 1.0
_ACTIONS = (*_ERRORS, *_SIGNALS, "memory", "sleep", *_BY_CALLER)

_reached: Counter[str] = Counter()


class Fault(NamedTuple):
    """An action that is due when a point is reached for the `number`-th time in this process."""

    point: str
    number: int  # from 1
    repeats: bool  # the action is due each time after that as well
    action: str


def reach(point: str) -> str:
    """Count a point as reached, and carry out the fault that is due there.

    Returns:
        An action that the caller has to carry out: `short`, to write half; `tear`, to write half
        and be killed; `nan`, to use a NaN; or the empty string.

    Raises:
        OSError: the fault is a system error.
        MemoryError: the fault is a lack of memory.
    """
    faults = _faults()
    if not faults:
        return ""
    _reached[point] += 1
    for fault in faults:
        is_due = fault.number == _reached[point] or (
            fault.repeats and fault.number < _reached[point]
        )
        if fault.point == point and is_due:
            return _carry_out(fault.action)
    return ""


def _carry_out(action: str) -> str:
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
    """Return the faults of this process; the variable is read once."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return ()
    return parse_faults(os.environ.get(VARIABLE, ""), rank=os.environ.get("RANK", "0"))


def parse_faults(text: str, *, rank: str = "0") -> tuple[Fault, ...]:
    """Return the faults of one rank from the value of the variable.

    Raises:
        ConfigError: the value has another form than POINT:N=ACTION, or an unknown action.
    """
    faults = []
    for spelled in filter(None, text.split(",")):
        match = _SPELLING.fullmatch(spelled)
        if match is None or match[5] not in _ACTIONS:
            raise ConfigError(
                f"{VARIABLE}: expected POINT:N=ACTION, got `{spelled}`",
                hint=f"unset it, or use one of these actions: {', '.join(_ACTIONS)}",
            )
        point, number, plus, fault_rank, action = match.groups()
        if fault_rank in (None, rank):
            faults.append(Fault(point, int(number), bool(plus), action))
    return tuple(faults)


def reset_faults() -> None:
    """Read the variable again and restart all counts; for tests in one process."""
    _faults.cache_clear()
    _reached.clear()
