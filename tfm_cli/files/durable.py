"""Changes of the disk that must not be lost or half done: all of them are made here, one by one.

Each is a point at which a fault can be made to happen (see `failpoint`), by its own name and as
`durable`, and can be watched. Nothing here decides in which order changes are made: `files` does,
and who goes on with a file.
"""

import contextlib
import io
import os
import signal
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tfm_cli.files.faults import reach
from tfm_cli.files.untrusted import check_private, check_private_status

_BUFFER_BYTES = 1 << 20  # tensors come in large parts, lines in small ones


@dataclass(frozen=True, slots=True)
class Operation:
    """A change that was made."""

    kind: str  # create, open, write, truncate, sync, sync_directory, rename, remove, make_directory
    path: Path
    target: Path | None = None  # the new name, of a rename
    offset: int = 0  # where a write begins; the new size, of a truncation
    data: bytes = b""  # of a write


_watchers: list[Callable[[Operation], None]] = []


@contextlib.contextmanager
def watched(watcher: Callable[[Operation], None]) -> Iterator[None]:
    """Inside, each change is told to `watcher` once it was made."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def _reach(kind: str) -> str:
    return reach("durable") or reach(kind)


def _tell(operation: Operation) -> None:
    for watcher in _watchers:
        watcher(operation)


class _File(io.FileIO):
    """A file whose writes can fail; a class since buffers of the standard library want one."""

    def __init__(self, path: Path, mode: str, flags: int = 0) -> None:
        self._path = path
        super().__init__(path, mode, opener=lambda name, own: os.open(name, own | flags, 0o666))

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # whatever has bytes
        action = _reach("write")
        if action in ("short", "tear"):
            view = view[: -(-len(view) // 2)]  # a file that takes nothing would be tried for ever
        offset = self.tell() if _watchers else 0
        count = cast(int, super().write(view))  # fewer than wanted is for the buffer to go on with
        if action == "tear":
            os.kill(os.getpid(), signal.SIGKILL)
        if _watchers:
            _tell(Operation("write", self._path, offset=offset, data=bytes(view[:count])))
        return count

    def truncate(self, size: int | None = None) -> int:
        _reach("truncate")
        new = super().truncate(size)
        _tell(Operation("truncate", self._path, offset=new))
        return new


def create(path: Path) -> BinaryIO:
    """Create an empty file and open it for writing.

    Raises:
        FileExistsError: the name is taken, if only by a link.
    """
    _reach("create")
    file = _File(path, "wb", os.O_EXCL | os.O_NOFOLLOW)
    _tell(Operation("create", path))
    return io.BufferedWriter(file, _BUFFER_BYTES)


def write_file(path: Path, content: bytes) -> None:
    """Write a file as a whole, in a folder whose content is going to be synced."""
    with create(path) as stream:
        stream.write(content)


def go_on(path: Path) -> BinaryIO:
    """Open a private file (see `plain_file`) as it stands for reading and writing; create it if
    there is none.

    Raises:
        NotPrivateError: its name leads to something else.
    """
    check_private(path)  # before it is opened, as that alone can do something to a device
    _reach("create")
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    with contextlib.ExitStack() as on_failure:
        file = on_failure.enter_context(_File(path, "r+b", flags))
        check_private_status(os.fstat(file.fileno()), path)
        stream = io.BufferedRandom(file, _BUFFER_BYTES)
        on_failure.pop_all()
    _tell(Operation("open", path))
    return stream


def sync(stream: BinaryIO) -> None:
    """Make sure that what was written to an open file outlives a loss of power."""
    stream.flush()
    _reach("sync")
    os.fsync(stream.fileno())
    if _watchers:
        _tell(Operation("sync", Path(stream.name)))


def sync_directory(path: Path) -> None:
    """Make sure that names in a folder outlive a loss of power."""
    _reach("sync_directory")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _tell(Operation("sync_directory", path))


def rename(path: Path, target: Path) -> None:
    """Give a file or folder another name, in one step; a file that had it is gone."""
    _reach("rename")
    path.replace(target)
    _tell(Operation("rename", path, target))


def remove(path: Path) -> None:
    """Remove a file or an empty folder.

    Raises:
        FileNotFoundError: there is none.
    """
    _reach("remove")
    if stat.S_ISDIR(path.lstat().st_mode):
        path.rmdir()
    else:
        path.unlink()
    _tell(Operation("remove", path))


def remove_tree(path: Path) -> None:
    """Remove a folder and all that is in it; links are removed, not followed."""
    if path.is_dir() and not path.is_symlink():
        for entry in sorted(path.iterdir()):
            remove_tree(entry)
    remove(path)


def make_directory(path: Path) -> None:
    """Make a folder, and those around it that are missing."""
    if path.is_dir():
        return
    make_directory(path.parent)
    _reach("make_directory")
    path.mkdir(exist_ok=True)
    _tell(Operation("make_directory", path))


def make_new_directory(path: Path) -> None:
    """Make a folder in one that exists.

    Raises:
        FileExistsError: the name is taken, if only by a link.
    """
    _reach("make_directory")
    path.mkdir()
    _tell(Operation("make_directory", path))
