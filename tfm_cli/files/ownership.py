"""Ownership of files: tfm changes, replaces or removes only what it verifiably made.

Only `sweep` changes the disk: it removes temporary files of processes that have ended. A temporary
file or directory has a random name, and the process that writes it holds a lock on it (flock). A
lock that is free proves that the writer has ended, on any machine and in any container. Where the
file system has no locks, nothing is ever removed.
"""

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from tfm_cli.errors import ConfigError, OutputError, ResourceError
from tfm_cli.files import durable
from tfm_cli.files.layout import (
    BEST_FILES,
    CACHE_HASHES,
    CACHE_TEMPORARIES,
    CHECKPOINT,
    CHECKPOINT_FILES,
    CHECKPOINTS,
    CONFIG_FILE,
    CORPUS,
    EXPORT_FILE,
    MANIFEST_FILE,
    MARKER_FILE,
    ON_SCHEDULE,
    PREPARED,
    PREPARED_FACTS,
    PREPARED_FILES,
    PREPARED_LOCK,
)
from tfm_cli.files.untrusted import (
    NotPrivateError,
    open_regular,
    parse_json_object,
    read_private,
    read_regular,
)

_MAX_FACTS_BYTES = 1 << 20
_HEAD_BYTES = 1 << 10  # of a picture, in which its mark is
_END_OF_CARD = b"All settings are in `config.json`.\n"
_MAX_STEM_LENGTH = 50  # so that a temporary name of the longest file name is not too long
_TEMPORARY = re.compile(r"\.(.*)\.tfm-[0-9a-f]{16}\.(?:part|trash)", re.DOTALL)
_TEMPORARY_OF_0_1 = re.compile(r"\.(.*)\.[0-9]{1,10}\.(?:part|trash)", re.DOTALL)  # with PID
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


def temporary_name(name: str, kind: str = "part") -> str:
    """Return a new random name for a temporary file or directory.

    Args:
        name: the final name of the file or directory.
        kind: `part` for one that is being written, `trash` for one that is being removed.
    """
    return f".{name[:_MAX_STEM_LENGTH]}.tfm-{secrets.token_hex(8)}.{kind}"


def is_temporary(name: str) -> bool:
    """Return True for the name of a temporary file or directory."""
    return _stem(name, of_0_1=True) is not None


def is_temporary_of(name: str, final_name: str, *, of_0_1: bool = False) -> bool:
    """Return True for the name of a temporary file or directory with a given final name.

    Args:
        name: the name to examine.
        final_name: the name that the file or directory was to get.
        of_0_1: also accept names in the form of version 0.1, whose files were never locked.
    """
    return _stem(name, of_0_1=of_0_1) == final_name[:_MAX_STEM_LENGTH]


def _stem(name: str, *, of_0_1: bool) -> str | None:
    match = _TEMPORARY.fullmatch(name)
    if match is None and of_0_1:
        match = _TEMPORARY_OF_0_1.fullmatch(name)
    return match[1] if match else None


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or directory against other processes, without waiting.

    Args:
        descriptor: the open file or directory.
        shared: take a shared lock, which other processes may also hold.

    Returns:
        True if the lock is held now, False if another process holds it, None where the file
        system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sweep(directory: Path, names: Iterable[str], *, of_0_1: bool = False) -> None:
    """Remove temporary files and directories of processes that have ended.

    Those that are locked by a live process stay, and all stay where there are no locks.

    Args:
        directory: the directory that contains them.
        names: final names; only their temporary files and directories are removed.
        of_0_1: also remove those of version 0.1, which were never locked; the caller must know
            that no such process is alive.
    """
    stems = {name[:_MAX_STEM_LENGTH] for name in names}
    with contextlib.suppress(OSError):  # a directory that cannot be listed is left alone
        for path in sorted(directory.iterdir()):
            if _stem(path.name, of_0_1=of_0_1) in stems:
                with contextlib.suppress(OSError):
                    _sweep_one(path)


def _sweep_one(path: Path) -> None:
    status = path.lstat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        if try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.lstat()):
            durable.remove_tree(path)
    finally:
        os.close(descriptor)


def is_checkpoint(path: Path) -> bool:
    """Return True for a directory that is a checkpoint by its name and its content.

    It is empty, or it holds only files of a checkpoint, including the manifest or, if that was
    lost, all the others. A directory with any other file is not a checkpoint.
    """
    return is_checkpoint_name(path.name) and (
        is_empty_directory(path)
        or (
            holds_only(path, (*CHECKPOINT_FILES, MANIFEST_FILE))
            and (
                _has_file(path, MANIFEST_FILE)
                or all(_has_file(path, name) for name in CHECKPOINT_FILES)
            )
        )
    )


def is_checkpoint_name(name: str) -> bool:
    """Return True for the name of a checkpoint."""
    return CHECKPOINT.fullmatch(name) is not None


def is_prepared_text(path: Path) -> bool:
    """Return True for the directory of a prepared text: named by a hash, and empty or complete.

    A directory with any other file is not a prepared text.
    """
    return is_prepared_name(path.name) and (
        is_empty_directory(path)
        or (_has_file(path, PREPARED_FACTS) and holds_only(path, PREPARED_FILES))
    )


def is_prepared_name(name: str) -> bool:
    """Return True for the name of a prepared text, which is a hash."""
    return PREPARED.fullmatch(name) is not None


def is_empty_directory(path: Path) -> bool:
    """Return True for an empty directory that is not a link."""
    return _is_directory(path) and not any(path.iterdir())


def holds_only(path: Path, names: Collection[str]) -> bool:
    """Return True for a directory, not a link, that holds only regular files with these names."""
    return _is_directory(path) and all(
        entry.name in names and stat.S_ISREG(entry.lstat().st_mode) for entry in path.iterdir()
    )


def holds_model(directory: Path) -> bool:
    """Return True if a directory has a `config.json` that tfm wrote."""
    with contextlib.suppress(OSError, ValueError):
        content = read_regular(directory / CONFIG_FILE, max_bytes=_MAX_FACTS_BYTES)
        return "tfm_version" in parse_json_object(content)
    return False


def holds_marker(directory: Path) -> bool:
    """Return True if a directory has the marker of a run that was started in it."""
    with contextlib.suppress(OSError, ValueError):
        content = read_private(directory / MARKER_FILE, max_bytes=_MAX_FACTS_BYTES)
        return "tfm_version" in parse_json_object(content)
    return False


def holds_export(directory: Path) -> bool:
    """Return True if a directory has the marker that `tfm export` writes."""
    with contextlib.suppress(OSError, ValueError):
        content = read_private(directory / EXPORT_FILE, max_bytes=_MAX_FACTS_BYTES)
        return "tfm_version" in parse_json_object(content)
    return False


def is_own_file(path: Path, names: Collection[str]) -> bool:
    """Return True for a regular file, not a link, with one of these names."""
    return path.name in names and stat.S_ISREG(path.lstat().st_mode)


def is_card(path: Path) -> bool:
    """Return True for a model card that tfm wrote, for an empty file, and if there is none.

    A file of other origin, or one that was appended to, has another beginning or end.
    """
    try:
        content = read_regular(path, max_bytes=_MAX_FACTS_BYTES)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    begins = content.startswith((b"# A translation model\n", b"# An imported translation model\n"))
    is_signed = b"\n| made by | tfm " in content
    return not content or (begins and is_signed and content.endswith(_END_OF_CARD))


def is_picture(path: Path) -> bool:
    """Return True for a page or an image that the package `pictures` wrote."""
    try:
        with open_regular(path) as stream:
            head = stream.read(_HEAD_BYTES) or b""
    except OSError:
        return False
    return any(
        head.startswith(start) and mark in head
        for start, mark in (
            (b"<!doctype html>", b'<meta name="generator" content="tfm '),
            (b"<svg ", b"<!-- tfm "),
            (b"\x89PNG\r\n", b"tEXtSoftware\x00tfm "),
        )
    )


def is_pictures_directory(path: Path) -> bool:
    """Return True for a directory, not a link, that holds pictures and nothing else."""
    return _is_directory(path) and all(
        stat.S_ISREG(entry.lstat().st_mode) and is_picture(entry) for entry in path.iterdir()
    )


def is_checkpoints_directory(path: Path) -> bool:
    """Return True for a directory that holds checkpoints and nothing else."""
    return (
        path.name == CHECKPOINTS
        and _is_directory(path)
        and all(
            is_checkpoint(entry) or is_scheduled_best(entry) or is_temporary(entry.name)
            for entry in path.iterdir()
        )
    )


def is_scheduled_best(path: Path) -> bool:
    """Return True for the directory with the best weights of scheduled validations."""
    return path.name == ON_SCHEDULE and holds_only(path, BEST_FILES)


def is_corpus_cache(path: Path) -> bool:
    """Return True for a directory that holds prepared texts and nothing else."""
    return path.name == CORPUS and _is_directory(path) and all(map(_is_cached, path.iterdir()))


def _is_cached(path: Path) -> bool:
    return (
        is_own_file(path, [CACHE_HASHES])
        or (PREPARED_LOCK.fullmatch(path.name) is not None and is_own_file(path, [path.name]))
        or is_prepared_text(path)
        or any(is_temporary_of(path.name, name, of_0_1=True) for name in CACHE_TEMPORARIES)
        or (is_temporary(path.name) and is_prepared_name(path.name.split(".")[1]))
    )


@contextlib.contextmanager
def inspecting(output: Path) -> Iterator[None]:
    """Convert an OSError in the block to a ResourceError about an output directory."""
    try:
        yield
    except OSError as error:
        message = f"{error.filename or output}: cannot be read: {error.strerror or error}"
        raise ResourceError(message, hint="name another `--output`") from error


def refuse_replacing_inputs(output: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output directory that contains an input, since it is replaced as a whole.

    Raises:
        ConfigError: the directory contains an input.
    """
    directory = Path(os.path.realpath(output))
    for path in inputs:
        if Path(os.path.realpath(path)).is_relative_to(directory):
            raise ConfigError(
                f"{output}: would replace or remove `{path}`, which is read",
                hint="name another `--output`",
            )


def output_error(path: Path | str, error: OSError) -> OutputError:
    """Return the error for an output that could not be written.

    After a NotPrivateError, the message has the path of that file, which may be inside `path`.
    """
    reason, hint = error.strerror or str(error), None
    if isinstance(error, NotPrivateError):
        path, hint = error.filename, "it is left as it is: remove it, or name another `--output`"
    elif isinstance(error, IsADirectoryError):
        reason = "it is a directory"
    return OutputError(f"{path}: cannot be written: {reason}", os_error=error, hint=hint)


def _has_file(directory: Path, name: str) -> bool:
    with contextlib.suppress(OSError):
        return _is_directory(directory) and stat.S_ISREG((directory / name).lstat().st_mode)
    return False


def _is_directory(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(path.lstat().st_mode)
    return False
