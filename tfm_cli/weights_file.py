"""The weights file on disk: mapped rather than read, and hashed while PyTorch is still imported.

Knows nothing of PyTorch. Whether the header tells the truth is for safetensors to check.
"""

import contextlib
import hashlib
import json
import mmap
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_MAX_HEADER_BYTES = 100_000_000  # as safetensors has it
_TYPE_NAMES = {"F32": "torch.float32"}  # others are refused when a model is loaded

_PART_BYTES = 1 << 23  # that are in memory together while they are hashed

Content = tuple[str, str, tuple[int, ...], Iterable[memoryview]]  # name, type, shape, values
_Identity = tuple[int, ...]
_ahead: dict[_Identity, tuple[threading.Thread, list[str]]] = {}


@dataclass(frozen=True, slots=True)
class Values:
    """Of which type and shape a tensor is, and where in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class WeightsFile:
    """A file of tensors; a class because it holds the mapping.

    Attributes:
        tensors: what is where, by name.
        mapping: the file's bytes; to write to them changes a copy of them in memory.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no file of tensors.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._identity = _identity(os.fstat(file.fileno()))
            size = int.from_bytes(file.read(8), "little")
            if size > _MAX_HEADER_BYTES:
                raise ValueError(f"its header has {size} bytes")
            self.tensors = _tensors(file.read(size), 8 + size)
            self.mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def sha256(self) -> str:
        """What `values_sha256` says of all tensors; known already where `hash_ahead` was told to.

        It leaves no memory in use; nothing may have been written to the mapping before.
        """
        thread, found = _ahead.pop(self._identity, (None, []))
        if thread is not None:
            thread.join()
        return found[0] if found else values_sha256(self._contents())

    def release(self) -> None:
        """Give back the memory of what was read; where it is needed, it is read again.

        Nothing may have been written to the mapping: that would be lost.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            with contextlib.suppress(OSError):  # it only costs memory
                self.mapping.madvise(mmap.MADV_DONTNEED)

    def _contents(self) -> Iterator[Content]:
        for name, values in sorted(self.tensors.items()):
            dtype = _TYPE_NAMES.get(values.dtype, values.dtype)
            yield name, dtype, values.shape, self._parts(values)

    def _parts(self, values: Values) -> Iterator[memoryview]:
        whole = memoryview(self.mapping)[: values.end]
        for start in range(values.begin, values.end, _PART_BYTES):
            yield whole[start : start + _PART_BYTES]
            self.release()


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
            found.append(values_sha256(file._contents()))

        # A daemon, since the program may end before.
        thread = threading.Thread(target=hashing, daemon=True)
        _ahead[file._identity] = thread, found
        thread.start()


def _identity(status: os.stat_result) -> _Identity:
    """What differs between files, and between a file and what it was before it was written to."""
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times


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
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its header is none of tensors: {error}") from error
    return tensors
