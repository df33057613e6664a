"""The only module that writes to the disk, one operation at a time.

Each operation is a failpoint under its own name and under `durable` (see `faults`), and tests can
observe it. The callers determine the order of operations: `atomic`, and modules that append to a
file.
"""

import contextlib
import io
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from tfm_cli.files.faults import reach
from tfm_cli.files.untrusted import check_private, check_private_status

_BUFFER_BYTES = 1 << 20  # collects short lines; larger parts, such as tensors, bypass it


class Operation(NamedTuple):
    """A completed change of the file system."""

    kind: str  # create, open, write, truncate, sync, sync_directory, rename, remove, make_directory
    path: Path
    target: Path | None = None  # the new name, for a rename
    offset: int = 0  # the position of a write; the new size, for a truncation
    data: bytes = b""  # the bytes written


_watchers: list[Callable[[Operation], None]] = []


@contextlib.contextmanager
def watched(watcher: Callable[[Operation], None]) -> Iterator[None]:
    """Call `watcher` after each operation inside the block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def _reach(kind: str) -> str:
    return reach("durable") or reach(kind)


def _notify(operation: Operation) -> None:
    for watcher in _watchers:
        watcher(operation)


class _File(io.FileIO):
    """A raw file with failpoints; the buffers of the standard library require a FileIO."""

    def __init__(self, path: Path, mode: str, flags: int = 0) -> None:
        self._path = path
        super().__init__(path, mode, opener=lambda name, own: os.open(name, own | flags, 0o666))

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # any object with bytes
        action = _reach("write")
        if action in ("short", "tear"):
            view = view[: -(-len(view) // 2)]  # at least a byte, or the buffer would retry forever
        offset = self.tell() if _watchers else 0
        count = cast(int, super().write(view))  # the buffer writes the rest after a short write
        if action == "tear":
            os.kill(os.getpid(), signal.SIGKILL)
        if _watchers:
            _notify(Operation("write", self._path, offset=offset, data=bytes(view[:count])))
        return count

    def truncate(self, size: int | None = None) -> int:
        _reach("truncate")
        new = super().truncate(size)
        _notify(Operation("truncate", self._path, offset=new))
        return new


def create(path: Path) -> BinaryIO:
    """Create an empty file and open it for writing.

    Raises:
        FileExistsError: the name exists, even as a link without a target.
    """
    _reach("create")
    file = _File(path, "wb", os.O_EXCL | os.O_NOFOLLOW)
    _notify(Operation("create", path))
    return io.BufferedWriter(file, _BUFFER_BYTES)


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file without syncing it; the caller syncs its directory later."""
    with create(path) as stream:
        stream.write(content)


def open_for_update(path: Path) -> BinaryIO:
    """Open a private file (see `untrusted`) for reading and writing; create it if it is missing.

    Raises:
        NotPrivateError: the path is not that of a regular file with one name.
    """
    check_private(path)  # before opening, since merely opening a device can have effects
    _reach("create")
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    with contextlib.ExitStack() as on_failure:
        file = on_failure.enter_context(_File(path, "r+b", flags))
        check_private_status(os.fstat(file.fileno()), path)
        stream = io.BufferedRandom(file, _BUFFER_BYTES)
        on_failure.pop_all()
    _notify(Operation("open", path))
    return stream


def sync(stream: BinaryIO) -> None:
    """Flush an open file to the disk, so that its content survives a loss of power."""
    stream.flush()
    _reach("sync")
    os.fsync(stream.fileno())
    if _watchers:
        _notify(Operation("sync", Path(stream.name)))


def sync_directory(path: Path) -> None:
    """Flush a directory to the disk, so that its entries survive a loss of power."""
    _reach("sync_directory")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _notify(Operation("sync_directory", path))


def rename(path: Path, target: Path) -> None:
    """Rename a file or directory atomically; a file that has the new name is replaced."""
    _reach("rename")
    path.replace(target)
    _notify(Operation("rename", path, target))


def remove(path: Path) -> None:
    """Remove a file or an empty directory.

    Raises:
        FileNotFoundError: there is none.
    """
    _reach("remove")
    if stat.S_ISDIR(path.lstat().st_mode):
        path.rmdir()
    else:
        path.unlink()
    _notify(Operation("remove", path))


def remove_tree(path: Path) -> None:
    """Remove a directory and everything in it; links are removed, not followed."""
    if path.is_dir() and not path.is_symlink():
        for entry in sorted(path.iterdir()):
            remove_tree(entry)
    remove(path)


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents."""
    if path.is_dir():
        return
    make_directory(path.parent)
    _reach("make_directory")
    path.mkdir(exist_ok=True)
    _notify(Operation("make_directory", path))


def make_new_directory(path: Path) -> None:
    """Create a directory whose parent exists.

    Raises:
        FileExistsError: the name exists, even as a link without a target.
    """
    _reach("make_directory")
    path.mkdir()
    _notify(Operation("make_directory", path))
