"""The weights file on disk: read, and hashed while PyTorch is still imported.

Knows nothing of PyTorch. The header is checked before anything is made of what it says.
"""

import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from tfm_cli.plain_file import open_plain
from tfm_cli.tensor_header import Values, parse_header

# Twice what the deepest model needs, of 128 layers on each side.
MAX_HEADER_BYTES = 1 << 20
_TYPE_NAMES = {
    "F32": "torch.float32",
    "I8": "torch.int8",
}  # others are refused when a model is loaded

_PART_BYTES = 1 << 20  # that are in memory together while they are hashed

# A command opens the weights file several times before it reads them.
_parsed = functools.lru_cache(maxsize=2)(parse_header)

Content = tuple[str, str, tuple[int, ...], Iterable[memoryview]]  # name, type, shape, values
_ahead: dict["_Identity", tuple[threading.Thread, list[str]]] = {}


class WeightsFile:
    """A file of tensors, to be closed behind; a class because it holds the open file.

    It is read rather than mapped: a mapped file that somebody shortens ends the program.

    Attributes:
        tensors: what is where, by name.
        metadata: what else the file says of itself.

    Raises:
        OSError: the file cannot be read, or is no regular one.
        ValueError: it is no file of tensors, or says something else than it has.
    """

    def __init__(self, path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> None:
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(open_plain(path))
            self._identity = _identity(self._file.fileno())
            file_size = self._identity.size
            if file_size < 8:
                raise ValueError(f"it has {file_size} bytes")
            size = int.from_bytes(self._file.read(8), "little")
            if size > file_size - 8:
                raise ValueError(f"its header has {size} bytes, the file {file_size}")
            if size > max_header_bytes:
                wanted = f"wanted at most {max_header_bytes}"
                raise ValueError(f"its header has {size} bytes, {wanted}")
            header = bytearray(size)
            self._read_into(memoryview(header), 8)
            found = _parsed(bytes(header), start=8 + size, end=file_size)
            self.tensors, self.metadata = found
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
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
        self.check_unchanged()
        return contents

    def read_tensor(self, name: str, into: memoryview) -> None:
        """Read the values of one tensor into the beginning of a buffer.

        Raises:
            OSError: the file cannot be read.
            ValueError: it ends too early.
        """
        values = self.tensors[name]
        self._read_into(into[: values.end - values.begin], values.begin)

    def check_unchanged(self) -> None:
        """Raise a ValueError if the file was written to since it was opened."""
        # Its status changes also when another file takes its name, which is no matter here.
        if _identity(self._file.fileno())[:-1] != self._identity[:-1]:
            raise ValueError("it was written to while it was read")

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

    def hash_beside(self) -> Callable[[], str]:
        """Begin to hash the file beside what the caller does, unless `hash_ahead` has begun.

        Returns:
            A function that waits for the hash, which is that of `hash_from_disk`, and raises the
            same. The file is to be open until then.
        """
        thread, found = _ahead.pop(self._identity, (None, []))
        if thread is None:

            def hashing() -> None:
                with contextlib.suppress(OSError, ValueError):
                    found.append(self.hash_from_disk())

            thread = threading.Thread(target=hashing, daemon=True)
            thread.start()

        def finished() -> str:
            thread.join()
            return found[0] if found else self.hash_from_disk()

        return finished

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

    def sha256_of_file(self) -> str:
        """The hash of all bytes of the file, its header too.

        Raises:
            OSError: the file cannot be read.
        """
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def _parts_of(self, values: Values) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_PART_BYTES, values.end - values.begin)))
        for start in range(values.begin, values.end, _PART_BYTES):
            part = buffer[: min(_PART_BYTES, values.end - start)]
            self._read_into(part, start)
            yield part

    def _read_into(self, part: memoryview, start: int) -> None:
        """Fill a buffer from a place of the file; several threads may do so at once."""
        done = 0
        while done < len(part):
            count = os.preadv(self._file.fileno(), [part[done:]], start + done)
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
