"""Output files that a killed job can resume.

The output grows as `.NAME.partial` beside the final path. The journal `.NAME.progress` records its
size, its settings and the position in the input. An old output is replaced only when the new one is
complete. The journal is written first, so a partial file with content but without a journal belongs
to another program.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, Self

from tfm_cli.console import counted
from tfm_cli.errors import ConfigError, ResourceError
from tfm_cli.files import durable
from tfm_cli.files.atomic import copy_permissions, is_output_failure, link_target, replace_file
from tfm_cli.files.ownership import output_error, sweep
from tfm_cli.files.untrusted import NOT_OURS, check_private, read_private_json

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 5.0  # of work: the most that a kill loses, and the least that is saved
_FORMAT = 1
_MAX_NAME_BYTES = 200  # file systems allow 255


class Position(NamedTuple):
    """A position in the input.

    Attributes:
        lines: lines before it.
        sha256: hash of these lines, with a line feed each.
        window_lines: maximum number of lines of the next window; 0 for the first one.
    """

    lines: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    window_lines: int = 0


_POSITION = {"lines": int, "sha256": str, "window_lines": int}


class Output(Protocol):
    """An output of translations."""

    @property
    def stream(self) -> BinaryIO:
        """Return the stream to write to."""

    @property
    def start(self) -> Position:
        """Return the position in the input from which translation resumes."""

    def mark(self, position: Position) -> None:
        """Record that the output is written up to this position in the input."""


class StreamOutput:
    """Standard output, a pipe or a device, which is flushed after each window and never resumed."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.start = Position()

    def mark(self, position: Position) -> None:
        """Flush the stream."""
        self.stream.flush()


class ResumableFile:
    """A locked partial file, renamed to its final path when complete, and resumable until then.

    Args:
        path: path of the complete file.
        settings: all that the content depends on except the input, by the names of the flags.
        overwrite: start again instead of resuming an unfinished file.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = path
        self._path = link_target(path)
        self._partial = _private_path(self._path, "partial")
        self._journal = _private_path(self._path, "progress")
        self._settings = json.loads(json.dumps(settings))  # as a journal is read back
        self._clock = clock
        durable.make_directory(self._path.parent)
        check_private(self._journal)
        self.stream = self._lock()
        sweep(self._path.parent, [self._journal.name])
        try:
            copy_permissions(self._path, self.stream)
            self.start, num_bytes = self._resume_position(overwrite=overwrite)
            if not self.start.lines:
                self._record(self.start, 0)
            self.stream.seek(num_bytes)
            self.stream.truncate()
        except BaseException:
            with contextlib.suppress(OSError):
                if not os.fstat(self.stream.fileno()).st_size:  # it may have been created just now
                    durable.remove(self._partial)
            self.stream.close()
            raise
        self._done = self._committed = (self.start, num_bytes)
        self._last_commit = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._save_partial()
            raise
        if kind is not None:
            self._save_partial()

    def mark(self, position: Position) -> None:
        """Record that the output is written up to this position; commit it every few seconds."""
        self._done = position, self.stream.tell()
        if self._clock() - self._last_commit >= COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        durable.sync(self.stream)  # before the journal that refers to it
        self._record(*self._done)
        self._committed = self._done
        self._last_commit = self._clock()

    def _record(self, position: Position, num_bytes: int) -> None:
        """Replace the journal."""
        progress = {
            "format": _FORMAT,
            "settings": self._settings,
            "position": position._asdict(),
            "bytes": num_bytes,
        }
        with replace_file(self._journal) as stream:
            stream.write(json.dumps(progress, indent=1).encode() + b"\n")

    def _finish(self) -> None:
        durable.sync(self.stream)
        durable.rename(self._partial, self._path)
        durable.sync_directory(self._path.parent)
        _remove(self._journal)
        self.stream.close()  # releases the lock

    def _save_partial(self) -> None:
        """Commit the work so far if it took more than a few seconds; otherwise leave no files."""
        is_long = self._clock() - self._last_commit >= COMMIT_SECONDS
        if self._done != self._committed and (is_long or self._committed[0].lines):
            with contextlib.suppress(OSError):  # on a full disk, the last commit remains
                self._commit()
        lines = self._committed[0].lines
        if not lines:
            with contextlib.suppress(OSError):
                durable.remove(self._partial)
                _remove(self._journal)
        elif lines > self.start.lines:
            message = "%s: %d lines are written; the same command resumes after them"
            logger.warning(message, self._name, lines)
        with contextlib.suppress(OSError):  # buffered bytes cannot be written
            self.stream.close()

    def _lock(self) -> BinaryIO:
        """Open and lock the partial file.

        Raises:
            ResourceError: another process has locked it.
        """
        while True:
            stream = durable.open_for_update(self._partial)
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.close()
                raise ResourceError(
                    f"{self._name}: another process is translating to it",
                    hint="wait for its end, or name another `--output`",
                ) from error
            except OSError:  # the file system has no locks
                return stream
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), self._partial.lstat()):
                    return stream
            stream.close()  # another process has just renamed this file to its final path

    def _resume_position(self, *, overwrite: bool) -> tuple[Position, int]:
        """Return the position in the input and the size of the output to resume at.

        Raises:
            ConfigError: the output was begun with other settings.
            ResourceError: the partial file belongs to another program.
        """
        size = os.fstat(self.stream.fileno()).st_size
        if size and not overwrite and not self._journal.exists():
            raise ResourceError(
                f"{self._partial}: cannot be written: {NOT_OURS}",
                hint="move it away, name another `--output`, or replace it by `--overwrite`",
            )
        progress = None if overwrite else _read(self._journal)
        if progress is None or progress[2] > size or not progress[1].lines:
            return Position(), 0
        settings, position, num_bytes = progress
        changes = _changes(settings, self._settings)
        if changes:
            title = (
                f"{self._name}: was begun with other settings; {counted(len(changes), 'change')}"
            )
            raise ConfigError(
                "\n  ".join([title, *changes]),
                hint=f"restore them to resume after line {position.lines}, or use "
                "`--overwrite` to begin again",
            )
        return position, num_bytes


@contextlib.contextmanager
def resumable_file(
    path: Path, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[ResumableFile]:
    """Yield a ResumableFile, which replaces its path when the block ends without an exception.

    Raises:
        ConfigError: the output was begun with other settings.
        ResourceError: another process writes it, or it cannot be written.
    """
    try:
        with ResumableFile(path, settings, overwrite=overwrite) as output:
            yield output
    except OSError as error:
        if not is_output_failure(error):
            raise
        raise output_error(path, error) from error


def _remove(journal: Path) -> None:
    if journal.exists():
        durable.remove(journal)


def _private_path(path: Path, kind: str) -> Path:
    """Return the path of the partial file or the journal of an output."""
    name = path.name
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return path.with_name(f".{name}.{kind}")


def _read(journal: Path) -> tuple[dict[str, Any], Position, int] | None:
    """Return the settings, position and size in a journal; None if there is no valid one."""
    check_private(journal)  # a file of another program must not be replaced
    progress = read_private_json(journal, fallback="it begins again")
    if progress is None:
        return None
    settings, position, size = (progress.get(name) for name in ("settings", "position", "bytes"))
    if (
        progress.get("format") == _FORMAT
        and isinstance(settings, dict)
        and isinstance(position, dict)
        and {name: type(value) for name, value in position.items()} == _POSITION
        and type(size) is int
        and min(position["lines"], position["window_lines"], size) >= 0
    ):
        return settings, Position(**position), size
    logger.warning("%s: has no position to resume at; it begins again", journal)
    return None


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that differs."""
    return [
        f"{name}: was {_setting_text(before.get(name))}, is {_setting_text(after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _setting_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
