"""Reading of untrusted files: only regular files, without blocking, up to a given size.

A *private* file is one that tfm keeps under a fixed name, such as a lock or a journal. It is opened
only if it is a regular file with a single name: writing through a link would change another file.
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

from tfm_cli.errors import plain_reason

logger = logging.getLogger(__name__)

NOT_OURS = "tfm is not known to have made it"
MAX_JSON_BYTES = 1 << 20
_MAX_JSON_DEPTH = 8
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class NotPrivateError(OSError):
    """The error for a private file that is not a regular file with a single name."""


def open_regular(path: Path) -> FileIO:
    """Open a regular file for reading, without a buffer.

    A link is followed. The call does not wait for the writer of a pipe, and does not open a device,
    since merely opening one can have side effects.

    Raises:
        OSError: the file does not exist, may not be read, or is not a regular file.
    """
    _check_regular(os.stat(path), path)  # noqa: PTH116 - beside os.open and os.fstat
    descriptor = os.open(path, _FLAGS)
    try:
        _check_regular(os.fstat(descriptor), path)  # the path may lead to another file by now
        return FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: as `open_regular`.
        ValueError: the file has more than `max_bytes`.
    """
    with open_regular(path) as file:
        return _read_all(file, max_bytes)


def check_private(path: Path) -> bool:
    """Return True if a private file exists, False if its name does not exist.

    Raises:
        NotPrivateError: the path is a link, is not a regular file, or the file has another name
            as well.
        OSError: its status cannot be read.
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
        (stat.S_ISFIFO, errno.EINVAL, "it is a pipe, not a regular file"),
        (stat.S_ISSOCK, errno.EINVAL, "it is a socket, not a regular file"),
    )
    for is_kind, number, reason in kinds:
        if is_kind(status.st_mode):
            raise NotPrivateError(number, reason, str(path))
    if not stat.S_ISREG(status.st_mode):
        raise NotPrivateError(errno.EINVAL, "it is a device, not a regular file", str(path))
    if status.st_nlink > 1:
        reason = f"it is a hard link, one of {status.st_nlink} names of the same file"
        raise NotPrivateError(errno.EMLINK, reason, str(path))


def open_private(path: Path) -> FileIO:
    """Open a private file for reading, without a buffer.

    Raises:
        NotPrivateError: see `check_private`.
        OSError: the file does not exist, or cannot be read.
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
        OSError: the file does not exist, or cannot be read.
        ValueError: the file has more than `max_bytes`.
    """
    with open_private(path) as file:
        return _read_all(file, max_bytes)


def _read_all(file: FileIO, max_bytes: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise ValueError(f"has {size} bytes, expected at most {max_bytes}")
    content = bytearray()
    while part := file.read(max_bytes + 1 - len(content)):
        content += part
        if len(content) > max_bytes:  # it grew, or its size is given as 0, as in /proc
            raise ValueError(f"has more than {max_bytes} bytes")
    return bytes(content)


def _check_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


def parse_json(content: bytes, *, max_depth: int = _MAX_JSON_DEPTH) -> Any:
    """Return the value of untrusted JSON in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is not JSON, repeats a name within an object, has a number that is not
            finite, or is nested deeper than `max_depth`.
    """
    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object_with_unique_names,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {max_depth} levels") from error
    _check_depth(value, max_depth)
    return value


def parse_json_object(content: bytes, *, max_depth: int = _MAX_JSON_DEPTH) -> dict[str, Any]:
    """Return the object of untrusted JSON, as `parse_json` does.

    Raises:
        ValueError: as `parse_json`, or the value is not an object.
    """
    value = parse_json(content, max_depth=max_depth)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
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


def _object_with_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name `{name[:60]}` occurs twice")
            seen.add(name)
    return table


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a finite number")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is not a finite number")
    return value


def read_private_json(
    path: Path, *, fallback: str = "it is treated as absent", max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any] | None:
    """Return the object in a private JSON file, or None if it is missing or unusable.

    Such a file is untrusted as well: anyone who can write to its directory can change it, and many
    users can write to a shared cache. A warning is logged if it is unusable.

    Args:
        path: the file.
        fallback: the end of the warning, about the consequences.
        max_bytes: larger files are not read.
    """
    try:
        return parse_json_object(read_private(path, max_bytes=max_bytes))
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        reason = f"is damaged: {plain_reason(error)}"
    logger.warning("%s: %s; %s", path, reason, fallback)
    return None
