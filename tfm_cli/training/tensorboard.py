"""TensorBoard's event files, with the points of `metrics.jsonl`.

An event file is a sequence of records: the length of the data, the checksum of the length, the
data, and its checksum (`tensorflow/core/lib/io/record_writer.h`). The data is a protocol buffer of
type Event (`tensorflow/core/util/event.proto` and `tensorflow/core/framework/summary.proto`). The
few fields that a learning curve needs are encoded here, since the packages that do so depend on
much else. TensorBoard is needed only to view the curves.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfm_cli.errors import ConfigError
from tfm_cli.files import durable
from tfm_cli.files.atomic import check_writable
from tfm_cli.files.layout import CHECKPOINTS, CORPUS
from tfm_cli.files.untrusted import open_private

logger = logging.getLogger(__name__)

_PATTERN = "events.out.tfevents.*.tfm"
_WRITER = "tfm of run "
_NO_VALUES = ("update", "epoch", "seconds")
_LARGEST_FLOAT = 3.4e38
_MAX_SECONDS = 1e12
_MAX_HEADER_BYTES = 1 << 10


class EventFile:
    """The points of one run in a directory for TensorBoard, in a file of their own.

    The file is written anew when the run is resumed, so that no point is there twice. It then has a
    new name, by which a running TensorBoard notices it, and the former file is removed.

    Args:
        directory: created if it is missing.
        output: directory of the run.
        began: the time at which training would have begun had it never been interrupted, in seconds
            since 1970.
    """

    def __init__(self, directory: Path, output: Path, *, began: float) -> None:
        self._directory = directory
        self._run = _run_name(output)
        self._began = began
        self._path: Path | None = None  # None if it could not be written

    def rewrite(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Replace the points by those of the lines of `metrics.jsonl`."""
        header = _record(_header(self._run, time.time()))
        content = b"".join([header, *(self._records(facts) for facts in lines)])
        with self._failure_reported():
            durable.make_directory(self._directory)
            former = [path for path, run in _event_files(self._directory) if run == self._run]
            path = self._new_path()
            durable.write_file(path, content)
            self._path = path
            for each in former:
                durable.remove(each)

    def add(self, facts: Mapping[str, Any]) -> None:
        """Append the points of a line of `metrics.jsonl`."""
        content = self._records(facts)
        if self._path is None or not content:
            return
        with self._failure_reported(), durable.open_for_update(self._path) as stream:
            if stream.seek(0, os.SEEK_END) == 0:  # it was removed during the run
                stream.write(_record(_header(self._run, time.time())))
            stream.write(content)

    def _records(self, facts: Mapping[str, Any]) -> bytes:
        """Return the record with all points of a line; empty if it has none, or is not ours."""
        values = [_message(1, _value(tag, number)) for tag, number in points(facts)]
        update, seconds = facts.get("update"), facts.get("seconds") or 0.0
        if type(update) is not int or type(seconds) not in (int, float) or not values:
            return b""
        if not (0 <= update < 1 << 63 and 0 <= seconds <= _MAX_SECONDS):
            return b""
        event = _double(1, self._began + seconds) + _integer(2, update)
        return _record(event + _message(5, b"".join(values)))

    def _new_path(self) -> Path:
        """Return a free name, which comes after those of earlier files in alphabetical order."""
        for number in itertools.count(time.time_ns() // 1000):
            path = self._directory / _PATTERN.replace("*", str(number))
            if not os.path.lexists(path):
                return path
        raise AssertionError

    @contextlib.contextmanager
    def _failure_reported(self) -> Iterator[None]:
        """Warn of an error of the file system and write no more points; training goes on."""
        try:
            yield
        except OSError as error:
            self._path = None
            reason = error.strerror or error
            logger.warning(
                "%s: cannot be written: %s; the curves are complete in `metrics.jsonl`, and a "
                "resumed run writes them here again", self._directory, reason,
            )  # fmt: skip


def check_directory(directory: Path, output: Path) -> None:
    """Raise an error if the event file of a run cannot be in a directory.

    Raises:
        ResourceError: it cannot be written.
        ConfigError: it has the curves of another run, with which TensorBoard would mix them up; or
            it is among the files that the run replaces.
    """
    for name in (CHECKPOINTS, CORPUS):
        if Path(os.path.realpath(directory)).is_relative_to(os.path.realpath(output / name)):
            raise ConfigError(
                f"--tensorboard {directory}: is in `{output / name}`, where tfm removes files",
                hint=f"name another directory, such as `{output / 'tensorboard'}`",
            )
    check_writable(directory, folder=True)
    if any(run != _run_name(output) for _, run in _event_files(directory)):
        raise ConfigError(
            f"--tensorboard {directory}: holds the curves of another run",
            hint="name a directory for each run; TensorBoard compares those in one `--logdir`. If "
            f"this run was moved, remove `{_PATTERN}` there: they are written again",
        )


def points(facts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the tag and the value of each point that a line of `metrics.jsonl` has."""
    kind = facts.get("event")
    if kind not in ("train", "valid"):
        return
    for name, value in facts.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and name not in _NO_VALUES and abs(value) <= _LARGEST_FLOAT:
            yield f"{kind}/{name}", float(value)


def _run_name(output: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(output))).hexdigest()[:16]


def _event_files(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files in a directory that tfm has written, with the names of their runs."""
    for path in sorted(directory.glob(_PATTERN)):
        with contextlib.suppress(OSError, ValueError, struct.error), open_private(path) as file:
            content = file.read(_MAX_HEADER_BYTES)
            (seconds,) = struct.unpack_from("<d", content, 13)
            start = content.index(_WRITER.encode()) + len(_WRITER)
            run = content[start : start + 16].decode("ascii")
            if content.startswith(_record(_header(run, seconds))):
                yield path, run


# Records and protocol buffers.


def _header(run: str, seconds: float) -> bytes:
    """Return the event that an event file begins with."""
    writer = _message(1, f"{_WRITER}{run}".encode())
    return _double(1, seconds) + _message(3, b"brain.Event:2") + _message(10, writer)


def _value(tag: str, number: float) -> bytes:
    return _message(1, tag.encode()) + _key(2, 5) + struct.pack("<f", number)


def _record(data: bytes) -> bytes:
    """Return data with its length and the checksums of both."""
    length = struct.pack("<Q", len(data))
    return length + _masked_checksum(length) + data + _masked_checksum(data)


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _message(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _double(field: int, number: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", number)


def _integer(field: int, number: int) -> bytes:
    return _key(field, 0) + _varint(number)


def _varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _masked_checksum(data: bytes) -> bytes:
    """Return the CRC-32C of data, rotated and shifted as TensorFlow does."""
    checksum = crc32c(data)
    rotated = (checksum >> 15 | checksum << 17) + 0xA282EAD8
    return struct.pack("<I", rotated & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of data: the reflected polynomial 0x82F63B78 (RFC 3720, appendix B.4)."""
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum = _TABLE[(checksum ^ byte) & 255] ^ checksum >> 8
    return checksum ^ 0xFFFFFFFF


def _entry(checksum: int) -> int:
    for _ in range(8):
        checksum = checksum >> 1 ^ (0x82F63B78 if checksum & 1 else 0)
    return checksum


_TABLE = tuple(map(_entry, range(256)))
