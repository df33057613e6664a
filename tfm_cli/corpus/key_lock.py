"""One preparation of a text at a time, in whatever process, container or machine.

The lock is one of the file system's (flock) on `.KEY.lock` beside the folder `KEY`. The system lets
go of it when its process ends, however it does; no process is ever asked whether another one lives.
Where the file system has no locks, two runs may do the same work, each in a folder of its own.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from tfm_cli import durable
from tfm_cli.ownership import cannot_be_written, try_lock
from tfm_cli.plain_file import open_private

logger = logging.getLogger(__name__)

_NAME = re.compile(r"\.[0-9a-f]{32}\.lock")
_POLL_SECONDS = 0.1


@contextlib.contextmanager
def key_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a prepared text inside the block; wait for another run that holds it.

    Args:
        directory: the folder of the text, which need not exist.

    Raises:
        ResourceError: the lock cannot be written, or its name leads to something else.
    """
    path = directory.with_name(f".{directory.name}.lock")
    try:
        stream = _taken(path, directory)
    except OSError as error:
        raise cannot_be_written(directory.parent, error) from error
    with stream:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                _remove_held(path, stream)


def sweep_locks(cache: Path) -> None:
    """Remove the locks that killed processes left in a cache."""
    for path in [path for path in sorted(cache.iterdir()) if _NAME.fullmatch(path.name)]:
        with contextlib.suppress(OSError), open_private(path) as stream:
            if try_lock(stream.fileno()):
                _remove_held(path, stream)


def _taken(path: Path, directory: Path) -> BinaryIO:
    is_waiting = False
    while True:
        durable.make_directory(path.parent)
        try:
            stream = durable.go_on(path)
        except FileNotFoundError:  # another run failed, and removed the cache that it had made
            continue
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(stream.close)
            while (is_held := try_lock(stream.fileno())) is False:
                if not is_waiting:
                    logger.info("%s: waiting for another run that prepares this text", directory)
                    is_waiting = True
                time.sleep(_POLL_SECONDS)
            if is_held is None or _has_name(path, stream):
                on_failure.pop_all()
                return stream
        # The other run has ended, and this was its lock.


def _remove_held(path: Path, stream: BinaryIO | FileIO) -> None:
    """Remove a lock that is held, unless there is anything in it: tfm writes nothing there."""
    if _has_name(path, stream) and not os.fstat(stream.fileno()).st_size:
        durable.remove(path)


def _has_name(path: Path, stream: BinaryIO | FileIO) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    return False
