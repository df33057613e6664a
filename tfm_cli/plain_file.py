"""Open files that others may have made: regular ones, without waiting, none read beyond a size.

A *private* file is one that a program finds again by its name, such as a lock or a journal. It is
opened only if it is a regular file with one name: through a link, another file would be changed.
"""

import errno
import os
import stat
from io import FileIO
from pathlib import Path

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
