"""Open files that others may have made: regular ones, without waiting, none read beyond a size.

A *private* file is one that a program finds again by its name, such as a lock or a journal. It is
opened only if it is a regular file with one name: through a link, another file would be changed.
"""

import errno
import json
import logging
import math
import os
import stat
from io import FileIO
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


NOT_OURS = "tfm is not known to have made it"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class NotPrivateError(OSError):
    """The name of a private file leads to something else, which is left as it is."""


def open_plain(path: Path) -> FileIO:
    """A regular file, open for reading, without a buffer.

    A link is followed. What is no file, such as a pipe that nobody writes to, is not waited for,
    and a device is not opened, since that alone can do something.

    Raises:
        OSError: there is none, it may not be read, or it is no regular file.
    """
    _check_regular(os.stat(path), path)  # noqa: PTH116 - beside os.open and os.fstat
    descriptor = os.open(path, _FLAGS)
    try:
        _check_regular(os.fstat(descriptor), path)  # what was looked at may be another by now
        return FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_plain`.
        ValueError: it has more than `max_bytes`.
    """
    with open_plain(path) as file:
        return _content(file, max_bytes)


def check_private(path: Path) -> bool:
    """Return True if a private file exists, False if nothing has its name.

    Raises:
        NotPrivateError: the name is a link, or that of no regular file, or of a file that has
            another name as well.
        OSError: it cannot be looked at.
    """
    try:
        check_private_status(path.lstat(), path)
    except FileNotFoundError:
        return False
    return True


def check_private_status(status: os.stat_result, path: Path) -> None:
    """Raise a NotPrivateError if a status is not that of a regular file with one name."""
    kinds = (
        (stat.S_ISLNK, errno.ELOOP, "it is a symbolic link"),
        (stat.S_ISDIR, errno.EISDIR, os.strerror(errno.EISDIR)),
        (stat.S_ISFIFO, errno.EINVAL, "it is not a regular file, but a pipe"),
        (stat.S_ISSOCK, errno.EINVAL, "it is not a regular file, but a socket"),
    )
    for is_kind, number, told in kinds:
        if is_kind(status.st_mode):
            raise NotPrivateError(number, told, str(path))
    if not stat.S_ISREG(status.st_mode):
        raise NotPrivateError(errno.EINVAL, "it is not a regular file, but a device", str(path))
    if status.st_nlink > 1:
        told = f"it is a hard link, one of {status.st_nlink} names of the same file"
        raise NotPrivateError(errno.EMLINK, told, str(path))


def open_private(path: Path) -> FileIO:
    """Open a private file for reading, without a buffer.

    Raises:
        NotPrivateError: see `check_private`.
        OSError: it does not exist, or cannot be read.
    """
    check_private_status(path.lstat(), path)
    descriptor = os.open(path, _FLAGS | os.O_NOFOLLOW)
    try:
        check_private_status(os.fstat(descriptor), path)
        return FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_private(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a private file.

    Raises:
        NotPrivateError: see `check_private`.
        OSError: it does not exist, or cannot be read.
        ValueError: it has more than `max_bytes`.
    """
    with open_private(path) as file:
        return _content(file, max_bytes)


def _content(file: FileIO, max_bytes: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise ValueError(f"has {size} bytes, wanted at most {max_bytes}")
    content = bytearray()
    while part := file.read(max_bytes + 1 - len(content)):
        content += part
        if len(content) > max_bytes:  # it grew, or is one of those that tell no size
            raise ValueError(f"has more than {max_bytes} bytes")
    return bytes(content)


def _check_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))


# JSON that others wrote: names once, finite numbers, not nested deeply.

_MAX_DEPTH = 8


def parse_json(content: bytes, *, max_depth: int = _MAX_DEPTH) -> Any:
    """What JSON in UTF-8 says; a mark of the encoding before it is left out.

    Raises:
        ValueError: it is none, has a name twice in one object, has a number that is none or is not
            finite, or is nested deeper than `max_depth`.
    """
    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {max_depth} levels") from error
    _check_depth(value, max_depth)
    return value


def parse_object(content: bytes, *, max_depth: int = _MAX_DEPTH) -> dict[str, Any]:
    """The same, of an object.

    Raises:
        ValueError: as `parse_json`, or it is something else.
    """
    value = parse_json(content, max_depth=max_depth)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _check_depth(value: Any, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict | list):
                inner += each.values() if isinstance(each, dict) else each
        level = inner
    if not any(isinstance(each, dict | list) for each in level):
        return
    raise ValueError(f"it is nested deeper than {max_depth} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name `{name[:60]}` occurs twice")
            seen.add(name)
    return table


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is no finite number")
    return value


# JSON files that tfm keeps for itself: read as warily as those of a stranger.
#
# Anybody who can write to a folder can change them, and a shared cache has many who can.

MAX_BYTES = 1 << 20


def read_private_json(
    path: Path, *, otherwise: str = "it is treated as absent", max_bytes: int = MAX_BYTES
) -> dict[str, Any] | None:
    """Return the object in a private file, or None, with a warning unless there is no file.

    Nothing but a regular file with one name is opened, and no link is followed.

    Args:
        path: of the file.
        otherwise: what follows if the file cannot be used, for the warning.
        max_bytes: larger files are not read.
    """
    try:
        return parse_object(read_private(path, max_bytes=max_bytes))
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        reason = f"is damaged: {error}"
    logger.warning("%s: %s; %s", path, reason, otherwise)
    return None
