"""Files and folders that appear under their name whole or not at all.

What is written is written aside, flushed to the disk and renamed, so that a reader sees the old
file or the new one. The changes themselves are made by `durable`.
"""

import contextlib
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tfm_cli import durable
from tfm_cli.errors import ResourceError, TfmError

_LEFTOVER = re.compile(r"\..*\.[0-9]+\.(part|trash)")  # as `_aside` names it


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
    parent = Path(os.path.realpath(place)).parent
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


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when it was written and synced whole.

    A symbolic link stays one, and what it points to is replaced. A pipe or a device cannot be
    replaced: it is written to as it stands.

    Raises:
        ResourceError: it could not be written; whatever stood under the name is untouched.
    """
    place = Path(path)
    try:
        if place.exists() and not place.is_file():
            with place.open("wb") as stream:
                yield stream
            return
        with _replacing(Path(os.path.realpath(place))) as stream:
            yield stream
    except OSError as error:
        if not is_of_output(error):
            raise
        reason = "it is a directory" if isinstance(error, IsADirectoryError) else error.strerror
        raise ResourceError(f"{path}: cannot be written: {reason}") from error


@contextlib.contextmanager
def _replacing(place: Path) -> Iterator[BinaryIO]:
    aside = _aside(place)
    try:
        durable.make_directory(place.parent)
        with durable.create(aside) as stream:
            if place.exists():
                shutil.copymode(place, aside)
            yield stream
            durable.sync(stream)
        durable.rename(aside, place)
        durable.sync_directory(place.parent)
    finally:
        if aside.exists():
            with contextlib.suppress(OSError):
                durable.remove(aside)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when all in it was written and synced.

    What killed processes left of their attempts at the same folder is swept out. Messages of
    errors in between name the folder, not where it is written aside.

    Raises:
        ResourceError: it could not be written; a folder that stood under the name is untouched.
    """
    aside = _aside(path)
    try:
        durable.make_directory(path.parent)
        _sweep(path)
        _remove_quietly(aside)
        durable.make_directory(aside)
        yield aside
        for file in sorted(aside.iterdir()):
            with file.open("rb") as stream:
                durable.sync(stream)
        durable.sync_directory(aside)
        _take_place(aside, path)
        durable.sync_directory(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(f"{path}: cannot be written: {reason}") from error
    except TfmError as error:
        error.args = (str(error).replace(str(aside), str(path)),)
        raise
    finally:
        _remove_quietly(aside)


def _take_place(aside: Path, path: Path) -> None:
    """Give a folder its name; one that has it gets out of the way, and back if need be."""
    trash = _aside(path, "trash")
    if path.exists():
        durable.rename(path, trash)
    try:
        durable.rename(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            trash.replace(path)
        raise
    _remove_quietly(trash)


def remove_directory(path: Path) -> None:
    """Remove a folder; it loses its name first, so that half of it never looks like a whole one."""
    if path.exists():
        trash = _aside(path, "trash")
        _remove_quietly(trash)
        durable.rename(path, trash)
        _remove_quietly(trash)


def _remove_quietly(path: Path) -> None:
    """Remove what nobody will miss; what cannot be removed now is swept out another time."""
    if path.exists():
        with contextlib.suppress(OSError):
            durable.remove_tree(path)


def _aside(place: Path, kind: str = "part") -> Path:
    # The longest name a file can have leaves no room for more, so it is cut.
    return place.with_name(f".{place.name[:50]}.{os.getpid()}.{kind}")


def is_leftover(name: str) -> bool:
    """Whether a file or folder has the name of something that was being written or removed."""
    return _LEFTOVER.fullmatch(name) is not None


def _sweep(place: Path) -> None:
    """Remove the folders that killed processes left beside a folder they were to write."""
    pattern = re.compile(re.escape(f".{place.name[:50]}.") + r"([0-9]{1,9})\.(?:part|trash)")
    with contextlib.suppress(OSError):  # such as where nothing may be listed: then it stays
        for path in place.parent.iterdir():
            found = pattern.fullmatch(path.name)
            if found and not _is_running(int(found[1])) and path.is_dir():
                _remove_quietly(path)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)  # asks only
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def is_of_output(error: OSError) -> bool:
    """Whether an error amid the writing of an output says that it could not be written.

    Not where its reader is gone, or where memory did not suffice for what was to be written.
    """
    return not isinstance(error, BrokenPipeError) and error.errno != errno.ENOMEM


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that there is no room for what was written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__
    return False
