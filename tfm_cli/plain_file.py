"""Files that others made: opened without waiting, regular ones only, none read beyond a size."""

import errno
import os
import stat
from io import FileIO
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


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
