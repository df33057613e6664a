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


def plain_reason(error: Exception) -> str:
    """Return what is wrong with a file that could not be read, for a message.

    Python's own words are for programmers, such as `Expecting value: line 1 column 1 (char 0)`.
    """
    from json import JSONDecodeError

    kind = f"{type(error).__module__}.{type(error).__name__}"
    if isinstance(error, JSONDecodeError):
        return _json_reason(error.msg, error.doc, error.pos)
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is 0x{error.object[error.start]:02x}, expected UTF-8"
    if isinstance(error, EOFError):
        return "it is cut off"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if kind == "zlib.error":
        return "its compressed data are damaged"
    if kind == "gzip.BadGzipFile":
        is_end = "CRC" in str(error) or "length" in str(error)
        return "its checksum is wrong" if is_end else "something other than gzip data follows"
    if kind == "zipfile.BadZipFile":
        is_none = "not a zip file" in str(error)
        return "it is not a zip archive, or cut off" if is_none else "the zip archive is damaged"
    if kind == "tomllib.TOMLDecodeError":
        words = str(error).replace("at end of document", "at the end of the file")
        return words[:1].lower() + words[1:]
    if isinstance(error, ValueError) and "integer string conversion" in str(error):
        return "a number has too many digits"
    if isinstance(error, ValueError) and "JSON compliant" in str(error):
        return "a number is not finite"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _json_reason(message: str, document: str, position: int) -> str:
    """Return the reason why a text is not JSON: the place, what was expected and what was found."""
    if not document.strip():
        return "it is empty"
    line = document.count("\n", 0, position) + 1
    column = position - document.rfind("\n", 0, position)
    place = f"line {line}, column {column}" if "\n" in document.strip() else f"character {column}"
    found = document[position : position + 1]
    shown = "the end" if not found else f"`{found if found.isprintable() else ascii(found)[1:-1]}`"
    if message.startswith("Unterminated string"):
        return f"the string at {place} has no end"
    if message.startswith("Invalid control"):
        return f"a string has {shown} at {place}, expected an escape sequence"
    if message.startswith("Invalid"):
        return f"a string has an unknown escape sequence at {place}"
    expected = {
        "Expecting property name enclosed in double quotes": "a name in double quotes",
        "Expecting ':' delimiter": "`:`",
        "Expecting ',' delimiter": "`,`",
        "Extra data": "the end",
        "Illegal trailing comma before end of object": "no comma",
        "Illegal trailing comma before end of array": "no comma",
    }.get(message, "a value")
    return f"expected {expected} at {place}, found {shown}"


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
