"""Files and folders that appear under their name whole or not at all.

What is written is written aside, flushed to the disk and renamed, so that a reader sees the old
file or the new one. The changes themselves are made by `durable`.
"""

import contextlib
import errno
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tfm_cli.errors import END_SIGNALS, ResourceError, TfmError
from tfm_cli.files import durable
from tfm_cli.files.ownership import (
    is_empty_directory,
    output_error,
    sweep,
    temporary_name,
    try_lock,
)
from tfm_cli.files.untrusted import NotPrivateError, check_private


def check_writable(path: str | Path, *, folder: bool = False) -> None:
    """Raise a ResourceError if `path` could not be written; before the long work.

    Missing parents are fine as long as the nearest one that exists can be written to.

    Args:
        path: what is to be written; for a file, `-` is standard output.
        folder: whether it is to be a folder.
    """
    if str(path) == "-" and not folder:
        if sys.stdout is None:
            raise ResourceError("standard output: cannot be written: it is closed")
        return
    try:
        reason = _why_not_writable(Path(path), folder=folder)
    except OSError as error:  # such as a name that is too long
        reason = str(error.strerror)
    if reason:
        raise ResourceError(f"{path}: cannot be written: {reason}")


def _why_not_writable(place: Path, *, folder: bool) -> str:
    if place.exists():
        if place.is_dir() != folder:
            return "it is not a directory" if folder else "it is a directory"
        if not os.access(place, os.W_OK):
            return "no permission to write in it" if folder else "it is read-only"
        if folder or not place.is_file():
            return ""
    parent = link_target(place).parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        return f"`{parent}` is not a directory"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"no permission to write in `{parent}`"
    # For root, permission says little: only making something shows that it can be made.
    # A file without a name, where the system has them: nothing is left of it, whatever happens.
    with tempfile.TemporaryFile(dir=parent):
        return ""


def link_target(path: str | Path) -> Path:
    """Return the path that a path leads to once all symbolic links are followed.

    Raises:
        OSError: the links lead in a circle.
    """
    place = Path(os.path.realpath(path))
    if place.is_symlink():  # a loop is where `realpath` gives up
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return place


@contextlib.contextmanager
def atomic_file(path: str | Path, *, follow: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that appears under its name only when it was written and synced whole.

    What processes that ended left of their attempts at the same file is swept out.

    Args:
        path: of the file.
        follow: write through a path that a person typed: a symbolic link stays one, and what it
            points to is replaced; a pipe or a device is written to as it stands. Without it, the
            path is that of a file of ours, and whatever is no regular file is refused.

    Raises:
        ResourceError: it could not be written, or something stands under the name that is not to be
            replaced; whatever stood there is untouched.
    """
    place = Path(path)
    try:
        if follow:
            if place.exists() and not place.is_file():
                with place.open("wb") as stream:
                    yield stream
                return
            place = link_target(place)
        else:
            check_own(place)
        with replacing(place) as stream:
            yield stream
    except OSError as error:
        if not is_of_output(error):
            raise
        raise output_error(path, error) from error


def refuse_odd_file(path: Path) -> None:
    """Raise a ResourceError where `check_own` finds that a file of ours leads elsewhere."""
    try:
        check_own(path)
    except OSError as error:
        raise output_error(path, error) from error


def check_own(path: Path) -> None:
    """Raise a NotPrivateError if a name in a directory of ours leads to no regular file in it.

    Other names of the file do no harm: it is replaced, never written to.
    """
    try:
        check_private(path)
    except NotPrivateError as error:
        if error.errno != errno.EMLINK:
            raise


def keep_permissions(place: Path, stream: BinaryIO) -> None:
    """Give an open file the permissions of the one that it is going to replace, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.fchmod(stream.fileno(), stat.S_IMODE(place.lstat().st_mode))


@contextlib.contextmanager
def temporary_file(place: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Create a file beside `place` that no other process has, held by a lock inside the block.

    At the end it is removed, unless it was renamed.
    """
    aside: Path | None = None
    try:
        with _signals_held_back():  # or one would end us with the file made and nobody to remove it
            aside, stream = _held_file(place)
        with stream:
            yield aside, stream
    finally:
        if aside is not None:
            _remove_quietly(aside)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let handlers of signals that end a command run behind the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _held_file(place: Path) -> tuple[Path, BinaryIO]:
    while True:
        aside = place.with_name(temporary_name(place.name))
        stream = durable.create(aside)
        if _is_held(aside, stream.fileno()):
            return aside, stream
        stream.close()


@contextlib.contextmanager
def temporary_directory(place: Path) -> Iterator[Path]:
    """Make a directory beside `place` that no other process has, held by a lock inside the block.

    At the end it is removed, unless it was renamed.
    """
    while True:
        aside = place.with_name(temporary_name(place.name))
        durable.make_new_directory(aside)
        descriptor = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if _is_held(aside, descriptor):
            break
        os.close(descriptor)
    try:
        yield aside
    finally:
        _remove_quietly(aside)
        os.close(descriptor)


def _is_held(aside: Path, descriptor: int) -> bool:
    """Lock what was just made; False if another process took it for left over before that."""
    if try_lock(descriptor) is False:
        return False
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), aside.lstat())
    return False


@contextlib.contextmanager
def replacing(place: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of another one when it was written and synced whole.

    Errors are those of the system, and a link under the name is replaced itself.
    """
    durable.make_directory(place.parent)
    sweep(place.parent, [place.name])
    with temporary_file(place) as (aside, stream):
        keep_permissions(place, stream)
        yield stream
        durable.sync(stream)
        durable.rename(aside, place)
        durable.sync_directory(place.parent)


@contextlib.contextmanager
def atomic_directory(
    path: Path, *, may_replace: Callable[[Path], bool] = is_empty_directory
) -> Iterator[Path]:
    """Make a directory that appears under its name only when all in it was written and synced.

    What processes that ended left of their attempts at the same directory is swept out. Messages
    of errors in between name the directory, not where it is written aside.

    Args:
        path: of the directory.
        may_replace: whether that which stands under the name, when all is written, is ours.

    Raises:
        ResourceError: it could not be written, or something stands under the name that is not to be
            replaced; whatever stood there is untouched.
    """
    try:
        durable.make_directory(path.parent)
        sweep(path.parent, [path.name])
        with temporary_directory(path) as aside:
            try:
                yield aside
            except TfmError as error:
                message = str(error).replace(str(aside), str(path))
                raise error.with_message(message) from error
            for file in sorted(aside.iterdir()):
                with file.open("rb") as stream:
                    durable.sync(stream)
            durable.sync_directory(aside)
            _take_place(aside, path, may_replace)
            durable.sync_directory(path.parent)
    except OSError as error:
        raise output_error(path, error) from error


def _take_place(aside: Path, path: Path, may_replace: Callable[[Path], bool]) -> None:
    """Give a directory its name; one that has it gets out of the way, and back if need be."""
    if not os.path.lexists(path):
        durable.rename(aside, path)
        return
    with _out_of_the_way(path, may_replace) as trash:
        try:
            durable.rename(aside, path)
        except OSError:
            with contextlib.suppress(OSError):
                trash.replace(path)
            raise


def remove_directory(path: Path, *, is_ours: Callable[[Path], bool]) -> bool:
    """Remove a directory, if it is there and ours.

    It loses its name first, so that half of it never looks like a whole one.

    Returns:
        False if it is not ours: then it is left as it is.
    """
    if not os.path.lexists(path):
        return True
    if not is_ours(path):
        return False
    with _out_of_the_way(path, is_ours):
        return True


@contextlib.contextmanager
def _out_of_the_way(path: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Rename a directory of ours, and remove it at the end."""
    if not is_ours(path):
        told = "something stands there that was not made by tfm"
        raise FileExistsError(errno.EEXIST, told, str(path))
    trash = path.with_name(temporary_name(path.name, "trash"))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try_lock(descriptor)  # so that nobody takes it for left over before it is decided on
        durable.rename(path, trash)
        yield trash
        _remove_quietly(trash)
    finally:
        os.close(descriptor)


def _remove_quietly(path: Path) -> None:
    """Remove what nobody will miss; what cannot be removed now is swept out another time."""
    if not os.path.lexists(path):
        return
    with contextlib.suppress(OSError):
        durable.remove_tree(path)


def is_of_output(error: OSError) -> bool:
    """Whether an error amid the writing of an output says that it could not be written.

    Not where its reader is gone, or where memory did not suffice for what was to be written.
    """
    return not isinstance(error, BrokenPipeError) and error.errno != errno.ENOMEM
