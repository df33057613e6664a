"""What can go wrong, in the user's terms, and the exit code of each kind."""

import errno
import signal
from typing import Self

# Those that ask a process to end: a key, a scheduler, a terminal or connection that is gone.
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

INSTALL_TORCH = "install it with `pip install torch`"  # the hint where PyTorch is missing


class TfmError(Exception):
    """Something the user can put right; shown without a traceback.

    The message names the thing, the place, what was found and what was wanted. The hint is one
    imperative line that says what to do.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def with_message(self, message: str) -> Self:
        """Return an error of the same kind and with the same fields, but with another message."""
        error = type(self).__new__(type(self), message)  # which sets `args`; fields follow
        error.__dict__.update(self.__dict__)
        return error


class CheckError(TfmError):
    """A check that was asked for does not hold, such as `tfm evaluate --fail-under`."""

    exit_code = 1


class ConfigError(TfmError):
    """How the command was called or configured."""

    exit_code = 2


class DataError(TfmError):
    """What the command was given to read: missing, malformed or misaligned."""

    exit_code = 3


class ModelError(TfmError):
    """A model directory that is missing, torn, of another format, or not to be trusted."""

    exit_code = 4


class ResourceError(TfmError):
    """What the machine lacks: memory, disk, a device, an optional package."""

    exit_code = 5


class OutputError(ResourceError):
    """An output that cannot be written; `os_error` is the reason that the system gave."""

    def __init__(self, message: str, *, os_error: OSError, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.os_error = os_error

    @property
    def is_disk_full(self) -> bool:
        """True if there is no space left for the output, or no quota."""
        return self.os_error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DivergedError(TfmError):
    """Training met losses or gradients that are no finite numbers, or far from any use.

    `since` is the first update that showed it: what the one before made of the weights may be why.
    """

    exit_code = 6

    def __init__(self, message: str, *, hint: str | None = None, since: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.since = since


class Interrupted(TfmError):  # noqa: N818 - a signal is no error, and its exit code is 128 + number
    """A signal asked for the end and everything worth keeping was saved."""

    def __init__(self, message: str, *, signal_number: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number


class OutOfTime(BaseException):
    """The time that the command was given is over; whatever it was doing ends here.

    Like KeyboardInterrupt it is no Exception: it may come at any place, and nothing on the way out
    should take it for an error that can be dealt with.
    """

    exit_code = 0


class ToldElsewhere(TfmError):  # noqa: N818 - what went wrong is said by another process
    """This process ends because of another one, which says why; nothing is shown."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
