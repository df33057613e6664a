"""Atomic writes of files and directories: each appears under its name complete or not at all.

Content is written under a temporary name, flushed to the disk and renamed, so that a reader sees
either the old file or the new one. `durable` performs the individual operations.
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
    """Raise a ResourceError if `path` cannot be written, before any long work begins.

    Parents may be missing as long as the nearest existing one is writable.

    Args:
        path: the output; for a file, `-` is standard output.
        folder: True if the output is a directory.
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


def _why_not_writable(path: Path, *, folder: bool) -> str:
    if path.exists():
        if path.is_dir() != folder:
            return "it is not a directory" if folder else "it is a directory"
        if not os.access(path, os.W_OK):
            return "no permission to write in it" if folder else "it is read-only"
        if folder or not path.is_file():
            return ""
    parent = link_target(path).parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        return f"`{parent}` is not a directory"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"no permission to write in `{parent}`"
    # Permission bits do not restrict root, so only creating a file proves that one can be created.
    # Where the system supports it, the file has no name, so that nothing is left behind.
    with tempfile.TemporaryFile(dir=parent):
        return ""


def link_target(path: str | Path) -> Path:
    """Return a path with all symbolic links resolved.

    Raises:
        OSError: the links form a loop.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # `realpath` does not resolve a loop
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


@contextlib.contextmanager
def atomic_file(path: str | Path, *, follow: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that appears under its name only once it is complete and synced.

    Leftovers of earlier attempts by processes that have ended are removed.

    Args:
        path: the file to create or replace.
        follow: True for a path that the user specified: a symbolic link is followed and its target
            replaced, and a pipe or a device is written to directly. False for a path in one of
            tfm's directories, where anything but a regular file is refused.

    Raises:
        OutputError: the file cannot be written, or its name belongs to something that must not be
            replaced, which is left unchanged.
    """
    target = Path(path)
    try:
        if follow:
            if target.exists() and not target.is_file():
                with target.open("wb") as stream:
                    yield stream
                return
            target = link_target(target)
        else:
            check_replaceable(target)
        with replace_file(target) as stream:
            yield stream
    except OSError as error:
        if not is_output_failure(error):
            raise
        raise output_error(path, error) from error


def refuse_irregular_file(path: Path) -> None:
    """Raise an OutputError if `check_replaceable` refuses the path."""
    try:
        check_replaceable(path)
    except OSError as error:
        raise output_error(path, error) from error


def check_replaceable(path: Path) -> None:
    """Raise a NotPrivateError if a path in one of tfm's directories is not a regular file.

    A hard link is accepted: its name is replaced, and other names keep the old content.
    """
    try:
        check_private(path)
    except NotPrivateError as error:
        if error.errno != errno.EMLINK:
            raise


def copy_permissions(path: Path, stream: BinaryIO) -> None:
    """Copy the permissions of the file at `path`, if there is one, to an open file."""
    with contextlib.suppress(FileNotFoundError):
        os.fchmod(stream.fileno(), stat.S_IMODE(path.lstat().st_mode))


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Create a temporary file beside `path` and hold a lock on it inside the block.

    It is removed at the end, unless it was renamed.
    """
    temporary: Path | None = None
    try:
        with _signals_blocked():  # a signal in between would leave a file that nothing removes
            temporary, stream = _create_locked_file(path)
        with stream:
            yield temporary, stream
    finally:
        if temporary is not None:
            _remove_quietly(temporary)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Defer the handlers of signals that end a command until the block is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _create_locked_file(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        temporary = path.with_name(temporary_name(path.name))
        stream = durable.create(temporary)
        if _lock_new(temporary, stream.fileno()):
            return temporary, stream
        stream.close()


@contextlib.contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """Create a temporary directory beside `path` and hold a lock on it inside the block.

    It is removed at the end, unless it was renamed.
    """
    while True:
        temporary = path.with_name(temporary_name(path.name))
        durable.make_new_directory(temporary)
        descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if _lock_new(temporary, descriptor):
            break
        os.close(descriptor)
    try:
        yield temporary
    finally:
        _remove_quietly(temporary)
        os.close(descriptor)


def _lock_new(path: Path, descriptor: int) -> bool:
    """Lock a new file or directory; return False if another process has removed it before."""
    if try_lock(descriptor) is False:
        return False
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces the one at `path` once it is complete and synced.

    An OSError is not converted. A symbolic link at `path` is itself replaced.
    """
    durable.make_directory(path.parent)
    sweep(path.parent, [path.name])
    with temporary_file(path) as (temporary, stream):
        copy_permissions(path, stream)
        yield stream
        durable.sync(stream)
        durable.rename(temporary, path)
        durable.sync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(
    path: Path, *, may_replace: Callable[[Path], bool] = is_empty_directory
) -> Iterator[Path]:
    """Create a directory that appears under its name only once all its files are synced.

    The block receives the temporary directory to write into; errors raised in the block are
    re-raised with the final name in their messages. Leftovers of earlier attempts by processes
    that have ended are removed.

    Args:
        path: the directory to create or replace.
        may_replace: returns True for an existing directory that may be replaced; it is called when
            everything has been written.

    Raises:
        OutputError: the directory cannot be written, or its name belongs to something that must
            not be replaced, which is left unchanged.
    """
    try:
        durable.make_directory(path.parent)
        sweep(path.parent, [path.name])
        with temporary_directory(path) as temporary:
            try:
                yield temporary
            except TfmError as error:
                message = str(error).replace(str(temporary), str(path))
                raise error.with_message(message) from error
            for file in sorted(temporary.iterdir()):
                with file.open("rb") as stream:
                    durable.sync(stream)
            durable.sync_directory(temporary)
            _rename_over(temporary, path, may_replace)
            durable.sync_directory(path.parent)
    except OSError as error:
        raise output_error(path, error) from error


def _rename_over(temporary: Path, path: Path, may_replace: Callable[[Path], bool]) -> None:
    """Rename a directory to `path`; an existing one is removed, or restored on failure."""
    if not os.path.lexists(path):
        durable.rename(temporary, path)
        return
    with _moved_to_trash(path, may_replace) as trash:
        try:
            durable.rename(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                trash.replace(path)
            raise


def remove_directory(path: Path, *, is_ours: Callable[[Path], bool]) -> bool:
    """Remove a directory, if it exists and tfm made it.

    It is renamed first, so that a partly removed directory never looks complete.

    Returns:
        False if tfm did not make it; it is then left unchanged.
    """
    if not os.path.lexists(path):
        return True
    if not is_ours(path):
        return False
    with _moved_to_trash(path, is_ours):
        return True


@contextlib.contextmanager
def _moved_to_trash(path: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Rename a directory to a temporary name, and remove it when the block succeeds."""
    if not is_ours(path):
        reason = "it exists and was not created by tfm"
        raise FileExistsError(errno.EEXIST, reason, str(path))
    trash = path.with_name(temporary_name(path.name, "trash"))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try_lock(descriptor)  # no other process may sweep it before the block has succeeded
        durable.rename(path, trash)
        yield trash
        _remove_quietly(trash)
    finally:
        os.close(descriptor)


def _remove_quietly(path: Path) -> None:
    """Remove a temporary file or directory; a later sweep removes what cannot be removed now."""
    if not os.path.lexists(path):
        return
    with contextlib.suppress(OSError):
        durable.remove_tree(path)


def is_output_failure(error: OSError) -> bool:
    """Return True if an error raised while an output is written means that writing failed.

    A reader that closed the pipe and a lack of memory are not failures of the output.
    """
    return not isinstance(error, BrokenPipeError) and error.errno != errno.ENOMEM
