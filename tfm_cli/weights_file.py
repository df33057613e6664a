"""The weights file on disk: read, and hashed while PyTorch is still imported.

Knows nothing of PyTorch. Whether the header tells the truth is for safetensors to check.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

_MAX_HEADER_BYTES = 100_000_000  # as safetensors has it
_TYPE_NAMES = {"F32": "torch.float32"}  # others are refused when a model is loaded

_PART_BYTES = 1 << 23  # that are in memory together while they are hashed

Content = tuple[str, str, tuple[int, ...], Iterable[memoryview]]  # name, type, shape, values
_ahead: dict["_Identity", tuple[threading.Thread, list[str]]] = {}


@dataclass(frozen=True, slots=True)
class Values:
    """Of which type and shape a tensor is, and where in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class WeightsFile:
    """A file of tensors, to be closed behind; a class because it holds the open file.

    It is read rather than mapped: a mapped file that somebody shortens ends the program.

    Attributes:
        tensors: what is where, by name.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no file of tensors.
    """

    def __init__(self, path: Path) -> None:
        # Without a buffer of Python's own, whose content could be older than the file's.
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(path.open("rb", buffering=0))
            self._identity = _identity(self._file.fileno())
            size = int.from_bytes(self._file.read(8), "little")
            if size > _MAX_HEADER_BYTES:
                raise ValueError(f"its header has {size} bytes")
            self.tensors = _tensors(self._file.read(size), 8 + size)
            for name, values in self.tensors.items():
                if not 8 + size <= values.begin <= values.end:
                    raise ValueError(f"`{name}` begins before the values or behind its end")
                if values.end > self._identity.size:
                    raise ValueError(f"`{name}` ends beyond the file")
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def read(self) -> dict[str, bytearray]:
        """The values of all tensors, by name.

        Raises:
            OSError: the file cannot be read.
            ValueError: it ends too early, or was written to meanwhile.
        """
        contents = {}
        for name, values in self.tensors.items():
            contents[name] = bytearray(values.end - values.begin)
            self._read_into(memoryview(contents[name]), values.begin)
        if _identity(self._file.fileno()) != self._identity:
            raise ValueError("it was written to while it was read")
        return contents

    def sha256(self, contents: Mapping[str, bytearray]) -> str:
        """What `values_sha256` says of what was read, or `hash_ahead` has found already."""
        thread, found = _ahead.pop(self._identity, (None, []))
        if thread is not None:
            thread.join()
        if found:
            return found[0]
        return values_sha256(
            (name, _type_name(values), values.shape, [memoryview(contents[name])])
            for name, values in sorted(self.tensors.items())
        )

    def hash_from_disk(self) -> str:
        """The same hash of a file that is not to stay in memory.

        Raises:
            OSError: the file cannot be read.
            ValueError: it ends too early.
        """
        return values_sha256(
            (name, _type_name(values), values.shape, self._parts_of(values))
            for name, values in sorted(self.tensors.items())
        )

    def _parts_of(self, values: Values) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_PART_BYTES, values.end - values.begin)))
        for start in range(values.begin, values.end, _PART_BYTES):
            part = buffer[: min(_PART_BYTES, values.end - start)]
            self._read_into(part, start)
            yield part

    def _read_into(self, part: memoryview, start: int) -> None:
        self._file.seek(start)
        done = 0
        while done < len(part):
            count = self._file.readinto(part[done:])
            if not count:
                raise ValueError(f"it ends after {start + done} bytes")
            done += count


def values_sha256(tensors: Iterable[Content]) -> str:
    """A hash of tensors in the order of their names: of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, dtype, shape, parts in tensors:
        digest.update(f"{name} {dtype} {shape}\n".encode())
        for part in parts:
            digest.update(part)
    return digest.hexdigest()


def hash_ahead(path: Path) -> None:
    """Begin to hash a weights file that is going to be loaded, beside what the program does next.

    A file that is another one when it is loaded is hashed then. What is wrong with it is told then.
    """
    with contextlib.suppress(OSError, ValueError):
        file, found = WeightsFile(path), list[str]()

        def hashing() -> None:
            with file, contextlib.suppress(OSError, ValueError):
                found.append(file.hash_from_disk())

        # A daemon, since the program may end before.
        thread = threading.Thread(target=hashing, daemon=True)
        _ahead[file._identity] = thread, found
        thread.start()


def _type_name(values: Values) -> str:
    return _TYPE_NAMES.get(values.dtype, values.dtype)


class _Identity(NamedTuple):
    """What differs between files, and between a file and what it was before it was written to."""

    device: int
    inode: int
    size: int
    written: int  # ns
    changed: int  # ns


def _identity(file: int) -> _Identity:
    """Of an open file."""
    status = os.fstat(file)
    times = status.st_mtime_ns, status.st_ctime_ns
    return _Identity(status.st_dev, status.st_ino, status.st_size, *times)


def _tensors(header: bytes, start: int) -> dict[str, Values]:
    """What a header says of the tensors behind it, which begin at a place in the file."""
    try:
        table = json.loads(header)
        table.pop("__metadata__", None)
        tensors = {}
        for name, entry in table.items():
            begin, end = map(int, entry["data_offsets"])
            shape = tuple(int(size) for size in entry["shape"])
            tensors[str(name)] = Values(str(entry["dtype"]), shape, start + begin, start + end)
    except (AttributeError, KeyError, OverflowError, TypeError, RecursionError) as error:
        raise ValueError(f"its header is none of tensors: {error}") from error
    return tensors
