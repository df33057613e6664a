"""The kinds of errors that are reported to the user, with their exit codes."""

import errno
import signal
from typing import Self

# The signals that end a process: from a key, a scheduler, or a terminal that is gone.
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

INSTALL_TORCH = "install it with `pip install torch`"  # the hint where PyTorch is missing


def install_extra(extra: str) -> str:
    """Return the hint to install what an extra of the package consists of.

    It names the packages themselves, so that it is right in a checkout and for a wheel alike.
    """
    from importlib.metadata import PackageNotFoundError, requires

    try:
        required = requires("tfm-cli") or []
    except PackageNotFoundError:
        required = []
    of_extra = [
        package.strip()
        for package, _, marker in (each.partition(";") for each in required)
        if f'extra == "{extra}"' in marker.replace("'", '"')
    ]
    names = " ".join(f"'{name}'" for name in of_extra) or f"'tfm-cli[{extra}]'"
    return f"install it with `pip install {names}`"


class TfmError(Exception):
    """An error that the user can resolve; it is shown without a traceback.

    The message names the file, the line, the actual and the expected value. The hint is one
    imperative line.
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
    """A check that failed, such as `tfm evaluate --fail-under`."""

    exit_code = 1


class ConfigError(TfmError):
    """A wrong command line or configuration."""

    exit_code = 2


class DataError(TfmError):
    """Input that is missing, malformed or misaligned."""

    exit_code = 3


class ModelError(TfmError):
    """A model directory that is missing, incomplete, of another format, or not trustworthy."""

    exit_code = 4


class ResourceError(TfmError):
    """A lack of memory, disk space, a device or an optional package."""

    exit_code = 5


class OutputError(ResourceError):
    """An output that cannot be written; `os_error` is the reason that the system gave."""

    def __init__(self, message: str, *, os_error: OSError, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.os_error = os_error

    @property
    def is_disk_full(self) -> bool:
        """Return True if there is no space left for the output, or no quota."""
        return self.os_error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DivergedError(TfmError):
    """Training with losses or gradients that are not finite, or far too large.

    Attributes:
        since: the first such update; the update before it may have damaged the weights.
    """

    exit_code = 6

    def __init__(self, message: str, *, hint: str | None = None, since: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.since = since


class Interrupted(TfmError):  # noqa: N818 - a signal is not an error; the exit code is 128 + number
    """The end of a command by a signal; once training has begun, a checkpoint was saved."""

    def __init__(self, message: str, *, signal_number: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number


class OutOfTime(BaseException):
    """The expiry of the time limit of a command.

    Like KeyboardInterrupt it is not an Exception: it may be raised anywhere, and code that handles
    errors must not catch it.
    """

    exit_code = 0


class SignalReceived(OutOfTime):
    """The end of a validation because of a signal or a request, as if its time were up."""


class ReportedElsewhere(TfmError):  # noqa: N818 - the error is that of another process
    """The exit of a process because of an error that another process reports; it shows nothing."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
