"""An output file that is written over hours: a killed job goes on where it stopped.

While it grows it stands beside its place as `.NAME.partial`, and `.NAME.progress` records how much
of it is done, by which settings and of which input. The old file stays until the new one is whole.
The journal is written first: without one, a partial file that has content is somebody else's.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from tfm_cli.errors import ConfigError, ResourceError
from tfm_cli.files import durable
from tfm_cli.files.atomic import copy_permissions, is_output_failure, link_target, replace_file
from tfm_cli.files.ownership import output_error, sweep
from tfm_cli.files.untrusted import NOT_OURS, check_private, read_private_json

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 5.0  # work that is lost at most, and that is worth being kept
_FORMAT = 1
_LONGEST_NAME = 200  # bytes; the file system allows 255


@dataclass(frozen=True, slots=True)
class Position:
    """How far the input was read."""

    lines: int = 0
    sha256: str = hashlib.sha256().hexdigest()  # of these lines, with a line feed each
    window_lines: int = 0  # most lines of the next window; 0 for the first


_POSITION = {"lines": int, "sha256": str, "window_lines": int}


class Output(Protocol):
    """What translations are written to."""

    @property
    def stream(self) -> BinaryIO:
        """The bytes go here."""

    @property
    def start(self) -> Position:
        """What the output has already."""

    def mark(self, position: Position) -> None:
        """Say that all up to this position was written."""


class StreamOutput:
    """Standard output, a pipe or a device: each window is sent on at once, none is kept."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.start = Position()

    def mark(self, position: Position) -> None:
        """Send on what was written."""
        self.stream.flush()


class ResumableFile:
    """A file on its way; a class because it holds the lock and what was written.

    Args:
        path: of the finished file.
        settings: what the content depends on, by the names that the user knows.
        overwrite: begin anew, whatever was begun.
        clock: seconds.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shown = path
        self._place = link_target(path)
        self._partial = _beside(self._place, "partial")
        self._journal = _beside(self._place, "progress")
        self._settings = json.loads(json.dumps(settings))  # as it comes back from the disk
        self._clock = clock
        durable.make_directory(self._place.parent)
        check_private(self._journal)
        self.stream = self._locked()
        sweep(self._place.parent, [self._journal.name])
        try:
            copy_permissions(self._place, self.stream)
            self.start, num_bytes = self._begun(overwrite=overwrite)
            if not self.start.lines:
                self._record(self.start, 0)
            self.stream.seek(num_bytes)
            self.stream.truncate()
        except BaseException:
            with contextlib.suppress(OSError):
                if not os.fstat(self.stream.fileno()).st_size:  # it may have been made just now
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
            self._keep()
            raise
        if kind is not None:
            self._keep()

    def mark(self, position: Position) -> None:
        """Say that all up to this position was written; it is made sure of every few seconds."""
        self._done = position, self.stream.tell()
        if self._clock() - self._last_commit >= COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        durable.sync(self.stream)  # first what was written, then that it was
        self._record(*self._done)
        self._committed = self._done
        self._last_commit = self._clock()

    def _record(self, position: Position, num_bytes: int) -> None:
        """Write the journal anew."""
        progress = {
            "format": _FORMAT,
            "settings": self._settings,
            "position": dataclasses.asdict(position),
            "bytes": num_bytes,
        }
        with replace_file(self._journal) as stream:
            stream.write(json.dumps(progress, indent=1).encode() + b"\n")

    def _finish(self) -> None:
        durable.sync(self.stream)
        durable.rename(self._partial, self._place)
        durable.sync_directory(self._place.parent)
        _forget(self._journal)
        self.stream.close()  # only here the lock ends

    def _keep(self) -> None:
        """Keep what was done, if it took long enough to be missed; else leave nothing."""
        is_long = self._clock() - self._last_commit >= COMMIT_SECONDS
        if self._done != self._committed and (is_long or self._committed[0].lines):
            with contextlib.suppress(OSError):  # a full disk: what was made sure of before counts
                self._commit()
        lines = self._committed[0].lines
        if not lines:
            with contextlib.suppress(OSError):
                durable.remove(self._partial)
                _forget(self._journal)
        elif lines > self.start.lines:
            told = "%s: %d lines are done and kept; the same command goes on after them"
            logger.warning(told, self._shown, lines)
        with contextlib.suppress(OSError):  # what it still holds cannot be written
            self.stream.close()

    def _locked(self) -> BinaryIO:
        """The partial file, which no other process has."""
        while True:
            stream = durable.open_for_update(self._partial)
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.close()
                raise ResourceError(
                    f"{self._shown}: another process is translating to it",
                    hint="wait for its end, or name another `--output`",
                ) from error
            except OSError:  # such as a file system without locks
                return stream
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), self._partial.lstat()):
                    return stream
            stream.close()  # the other one has just finished, and this is its output

    def _begun(self, *, overwrite: bool) -> tuple[Position, int]:
        """Where to go on, in the input and in the output."""
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
            title = f"{self._shown}: was begun with other settings; {len(changes)} change"
            raise ConfigError(
                "\n  ".join([title + ("s" if len(changes) > 1 else ""), *changes]),
                hint=f"keep them as they were to go on after line {position.lines}, or use "
                "`--overwrite` to begin again",
            )
        return position, num_bytes


@contextlib.contextmanager
def resumable_file(
    path: Path, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[ResumableFile]:
    """A ResumableFile; it takes its place when the block ends well.

    Raises:
        ConfigError: it was begun with other settings.
        ResourceError: another process writes it, or it cannot be written.
    """
    try:
        with ResumableFile(path, settings, overwrite=overwrite) as output:
            yield output
    except OSError as error:
        if not is_output_failure(error):
            raise
        raise output_error(path, error) from error


def _forget(journal: Path) -> None:
    if journal.exists():
        durable.remove(journal)


def _beside(place: Path, kind: str) -> Path:
    name = place.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return place.with_name(f".{name}.{kind}")


def _read(journal: Path) -> tuple[dict[str, Any], Position, int] | None:
    """Settings, position and size that a journal tells; None where there is none that is ours."""
    check_private(journal)  # else it would be replaced
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
    logger.warning("%s: does not tell where to go on; it begins again", journal)
    return None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: was {_spelled(before.get(name))}, is {_spelled(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _spelled(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
