"""The weights file on disk: read, and hashed while PyTorch is still imported.

Knows nothing of PyTorch. The header is checked before anything is made of what it says.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from tfm_cli.files.untrusted import open_plain, parse_object

# What the header of a safetensors file says of its tensors, checked against the file's length.
#
# Knows nothing of PyTorch. Stricter than the format asks for: each byte belongs to one tensor.

_METADATA = "__metadata__"
_MAX_DIMENSIONS = 8
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Values:
    """Of which type and shape a tensor is, and where in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorHeader(NamedTuple):
    """What is where in a file, and what else the file says of itself."""

    tensors: dict[str, Values]
    metadata: dict[str, str]


def parse_header(header: bytes, *, start: int, end: int) -> TensorHeader:
    """What a header says of the tensors that stand from `start` to `end` of the file.

    Raises:
        ValueError: it is none of tensors; or they have holes between them, overlap, or are larger
            or smaller than their shapes and the file are.
    """
    if not header.startswith(b"{"):
        raise ValueError("its header is none of tensors")
    table = parse_object(header, max_depth=3)
    metadata = table.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is no table of texts")
    tensors = {name: _values(name, entry, start) for name, entry in table.items()}
    place = start
    for name, values in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if values.begin != place:
            told = "a hole" if values.begin > place else "another tensor or the header"
            raise ValueError(f"`{name}` begins at {values.begin}, where {told} is")
        place = values.end
    if place != end:
        raise ValueError(f"its tensors end at {place}, the file at {end}")
    return TensorHeader(tensors, metadata)


def _values(name: str, entry: Any, start: int) -> Values:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"`{name}` has not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f"`{name}` has a type that is not known")
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"`{name}` has a shape that is none")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"`{name}` has no place in the file")
    begin, end = offsets
    if end - begin != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"`{name}` has {end - begin} bytes, which its shape and type have not")
    return Values(dtype, tuple(shape), start + begin, start + end)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


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


# Arrays of numbers into a safetensors file, byte for byte as the safetensors library writes them.
#
# The library's own writers build the file in memory, or write it where nothing is known of faults
# and of syncing. Source: the format's description, https://github.com/huggingface/safetensors.

# In the order in which the library puts types whose numbers are equally wide.
NUM_BYTES = {
    "I64": 8, "F64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
_ALIGNMENT = 8  # bytes, of where the values begin


class Stored(NamedTuple):
    """One array: its type by the format's name, its shape, and its bytes in one part or several."""

    dtype: str
    shape: tuple[int, ...]
    parts: Iterable[bytes | memoryview]


def write_arrays(
    stream: BinaryIO, arrays: Mapping[str, Stored], metadata: Mapping[str, str] | None = None
) -> str:
    """Write arrays, and return the SHA-256 of the file.

    Args:
        stream: at its start.
        arrays: by name.
        metadata: words that are kept beside them.
    """
    # The widest numbers first, so that each array begins where its numbers may.
    order = sorted(arrays.items(), key=lambda item: (_rank(item[1].dtype), item[0]))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in order:
        begin, end = end, end + math.prod(array.shape) * NUM_BYTES[array.dtype]
        header[name] = {
            "dtype": array.dtype,
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    beginning: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    for parts in (beginning, *(array.parts for _, array in order)):
        for part in parts:
            digest.update(part)
            stream.write(part)
    return digest.hexdigest()


def _rank(dtype: str) -> tuple[int, int]:
    return -NUM_BYTES[dtype], list(NUM_BYTES).index(dtype)
