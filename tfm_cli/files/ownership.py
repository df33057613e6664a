"""Decide what this program may change, replace or remove: what it made, and can prove that it made.

Nothing here changes the disk but `sweep`, which removes temporary files of processes that ended.

A temporary file or directory has a random name, and the process that writes it holds a lock on it
(flock). A free lock proves that the writer ended, on whatever machine and in whatever container it
ran. Where the file system has no locks nothing is ever swept.
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
from tfm_cli.files.untrusted import NotPrivateError, parse_object, read_plain, read_private

# A run that ends between two scheduled validations judges its last weights too and keeps them if
# they are best. The best ones by schedule wait here: a run that resumes takes them back, and so
# leaves to the byte what it would have left had it never stopped.

_MAX_FACTS_BYTES = 1 << 20
_END_OF_CARD = b"All settings are in `config.json`.\n"
_LONGEST_STEM = 50  # the longest name that a file can have leaves no room for more
_TEMPORARY = re.compile(r"\.(.*)\.tfm-[0-9a-f]{16}\.(?:part|trash)", re.DOTALL)
_TEMPORARY_OF_0_1 = re.compile(r"\.(.*)\.[0-9]{1,10}\.(?:part|trash)", re.DOTALL)  # by process
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


def temporary_name(name: str, kind: str = "part") -> str:
    """Return a new random name for a file or directory that is to become `name`.

    Args:
        name: under which it appears when it is whole.
        kind: `part` while it is written, `trash` for what had the name before.
    """
    return f".{name[:_LONGEST_STEM]}.tfm-{secrets.token_hex(8)}.{kind}"


def is_temporary(name: str) -> bool:
    """Return True for the name of something that was being written or removed."""
    return _stem(name, of_0_1=True) is not None


def is_temporary_of(name: str, place: str, *, of_0_1: bool = False) -> bool:
    """Return True for the name of a temporary file or directory that was to become `place`.

    Args:
        name: of the file or directory.
        place: the name under which it was to appear.
        of_0_1: accept names as version 0.1 gave them, which a lock never held.
    """
    return _stem(name, of_0_1=of_0_1) == place[:_LONGEST_STEM]


def _stem(name: str, *, of_0_1: bool) -> str | None:
    found = _TEMPORARY.fullmatch(name)
    if found is None and of_0_1:
        found = _TEMPORARY_OF_0_1.fullmatch(name)
    return found[1] if found else None


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or directory against other processes, without waiting.

    Args:
        descriptor: of the file or directory.
        shared: let others have a shared lock on it as well.

    Returns:
        True if it is held now, False if another process holds it, None where the file system has
        no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sweep(directory: Path, names: Iterable[str], *, of_0_1: bool = False) -> None:
    """Remove what processes that ended left of their attempts to write some names.

    What a living process holds stays, and so does everything where there are no locks.

    Args:
        directory: in which they were to appear.
        names: of the files and directories that were to appear.
        of_0_1: remove what version 0.1 left, too, which held no locks; for a caller who knows in
            another way that no such process is alive.
    """
    wanted = {name[:_LONGEST_STEM] for name in names}
    with contextlib.suppress(OSError):  # such as where nothing may be listed: then it stays
        for path in sorted(directory.iterdir()):
            if _stem(path.name, of_0_1=of_0_1) in wanted:
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
    """Return True for a directory that is a checkpoint by its name and by what is in it.

    That is nothing; or the files of a checkpoint and no others, among them the manifest or, where
    that was lost, all the rest. With a file of somebody else's in it, it is no more ours alone.
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
    """Return True for a name that a run gives to a checkpoint."""
    return CHECKPOINT.fullmatch(name) is not None


def is_prepared_text(path: Path) -> bool:
    """Return True for a directory that a data cache named by a hash, with its facts or empty.

    With anything else in it than a prepared text has, it is no more ours alone.
    """
    return is_prepared_name(path.name) and (
        is_empty_directory(path)
        or (_has_file(path, PREPARED_FACTS) and holds_only(path, PREPARED_FILES))
    )


def is_prepared_name(name: str) -> bool:
    """Return True for a name that a data cache gives to a prepared text: a hash."""
    return PREPARED.fullmatch(name) is not None


def is_empty_directory(path: Path) -> bool:
    """Return True for a directory, not a link to one, in which there is nothing."""
    return _is_directory(path) and not any(path.iterdir())


def holds_only(path: Path, names: Collection[str]) -> bool:
    """Return True for a directory, not a link to one, of regular files with these names alone."""
    return _is_directory(path) and all(
        entry.name in names and stat.S_ISREG(entry.lstat().st_mode) for entry in path.iterdir()
    )


def holds_model(directory: Path) -> bool:
    """Return True if a directory has a `config.json` of ours; many programs call a file so."""
    with contextlib.suppress(OSError, ValueError):
        content = read_plain(directory / CONFIG_FILE, max_bytes=_MAX_FACTS_BYTES)
        return "tfm_version" in parse_object(content)
    return False


def holds_marker(directory: Path) -> bool:
    """Return True if a directory has the marker of a run that began in it."""
    with contextlib.suppress(OSError, ValueError):
        content = read_private(directory / MARKER_FILE, max_bytes=_MAX_FACTS_BYTES)
        return "tfm_version" in parse_object(content)
    return False


def holds_export(directory: Path) -> bool:
    """Return True if a directory has the marker of an export, which other programs do not write."""
    with contextlib.suppress(OSError, ValueError):
        content = read_private(directory / EXPORT_FILE, max_bytes=_MAX_FACTS_BYTES)
        return "tfm_version" in parse_object(content)
    return False


def is_own_file(path: Path, names: Collection[str]) -> bool:
    """Return True for a regular file, not a link to one, with one of the names that are ours."""
    return path.name in names and stat.S_ISREG(path.lstat().st_mode)


def is_card(path: Path) -> bool:
    """Return True for a model card as `tfm` writes it, for an empty file, and where there is none.

    What somebody else wrote under the name, or added to a card, has another beginning or end.
    """
    try:
        content = read_plain(path, max_bytes=_MAX_FACTS_BYTES)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    begins = content.startswith((b"# A translation model\n", b"# An imported translation model\n"))
    is_signed = b"\n| made by | tfm " in content
    return not content or (begins and is_signed and content.endswith(_END_OF_CARD))


def is_checkpoints(path: Path) -> bool:
    """Return True for a directory of checkpoints, in which there is nothing else."""
    return (
        path.name == CHECKPOINTS
        and _is_directory(path)
        and all(
            is_checkpoint(entry) or is_set_aside(entry) or is_temporary(entry.name)
            for entry in path.iterdir()
        )
    )


def is_set_aside(path: Path) -> bool:
    """Return True for the best model by schedule, which was set aside among the checkpoints."""
    return path.name == ON_SCHEDULE and holds_only(path, BEST_FILES)


def is_cache(path: Path) -> bool:
    """Return True for a directory of prepared texts, in which there is nothing else."""
    return path.name == CORPUS and _is_directory(path) and all(map(_is_of_cache, path.iterdir()))


def _is_of_cache(path: Path) -> bool:
    return (
        is_own_file(path, [CACHE_HASHES])
        or (PREPARED_LOCK.fullmatch(path.name) is not None and is_own_file(path, [path.name]))
        or is_prepared_text(path)
        or any(is_temporary_of(path.name, name, of_0_1=True) for name in CACHE_TEMPORARIES)
        or (is_temporary(path.name) and is_prepared_name(path.name.split(".")[1]))
    )


@contextlib.contextmanager
def looking_at(place: Path) -> Iterator[None]:
    """Turn what the system refuses to show of a directory into a ResourceError."""
    try:
        yield
    except OSError as error:
        told = f"{error.filename or place}: cannot be read: {error.strerror or error}"
        raise ResourceError(told, hint="name another `--output`") from error


def refuse_replacing(output: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output directory that is replaced as a whole, where an input lies in it.

    Raises:
        ConfigError: names the input.
    """
    place = Path(os.path.realpath(output))
    for path in inputs:
        if Path(os.path.realpath(path)).is_relative_to(place):
            raise ConfigError(
                f"{output}: would replace or remove `{path}`, which is read",
                hint="name another `--output`",
            )


def output_error(path: Path | str, error: OSError) -> OutputError:
    """Return the error to raise where the system refused to write an output.

    Where a private file turned out to be a link, for example, it names that file, which may lie
    inside `path`.
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
