"""One run at a time in a directory; a lock that a dead process left does not count."""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tfm_cli import durable
from tfm_cli.errors import ResourceError
from tfm_cli.files import check_writable
from tfm_cli.ownership import cannot_be_written
from tfm_cli.plain_file import NOT_OURS, NotPrivateError
from tfm_cli.plain_json import parse_object

logger = logging.getLogger(__name__)

LOCK_FILE = ".tfm-train.lock"
_BEGINNING = b'{"pid": '
_TELLING_SECONDS = 0.5  # from taking the lock to having told by whom it was taken


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Inside, no other process trains into `output`, which exists.

    The system lets go of the lock of a process that ends, however it does. If `output` is new and
    empty at the end, it is removed again.

    Raises:
        ResourceError: another process trains into it: names that process, its machine and since
            when; or the directory, or the lock in it, cannot be written.
    """
    check_writable(output, folder=True)
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    path = output / LOCK_FILE
    try:
        durable.make_directory(output)
        stream = _taken(path, output)
    except OSError as error:
        raise cannot_be_written(output, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            durable.remove(path)  # while it is held, so that it is nobody else's
        stream.close()
        with contextlib.suppress(OSError):  # it is not empty
            for folder in missing:
                durable.remove(folder)


def _taken(path: Path, output: Path) -> BinaryIO:
    """The lock file, open and held."""
    while True:
        stream = durable.go_on(path)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with stream:
                raise ResourceError(
                    f"{output}: {_holder(stream)}",
                    hint="wait for its end, end it, or name another `--output`",
                ) from error
        except OSError as error:
            logger.warning("%s: no lock against a second run: %s", output, error.strerror)
            return stream
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.lstat()):
                break
        stream.close()  # another process has just ended, and this was its lock
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(stream.close)
        if os.pread(stream.fileno(), len(_BEGINNING), 0) not in (b"", _BEGINNING):
            raise NotPrivateError(errno.EEXIST, NOT_OURS, str(path))
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        stream.truncate(0)
        stream.write(json.dumps(facts).encode())
        stream.flush()
        on_failure.pop_all()
    return stream


def _holder(stream: BinaryIO) -> str:
    until = time.monotonic() + _TELLING_SECONDS
    while True:
        with contextlib.suppress(ValueError, KeyError):
            facts = parse_object(os.pread(stream.fileno(), 1 << 10, 0))
            pid, host, since = (str(facts[name])[:80] for name in ("pid", "host", "since"))
            return f"process {pid} on {host} trains into it since {since}"
        if time.monotonic() > until:
            return "another process trains into it"
        time.sleep(0.02)
