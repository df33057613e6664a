"""Safetensors files: an untrusted reader, hashes of the tensors, and a writer.

Nothing here needs PyTorch or NumPy. The reader checks the whole header before it allocates or
reads anything for a tensor, and it is stricter than the format: each byte after the header belongs
to exactly one tensor. Source of the format: https://github.com/huggingface/safetensors.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from tfm_cli.files.untrusted import open_regular, parse_json_object

MAX_HEADER_BYTES = 1 << 20  # twice the header of the deepest model, of 128 layers on each side
_METADATA = "__metadata__"
_MAX_DIMENSIONS = 8
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


class TensorInfo(NamedTuple):
    """The type and shape of a tensor, and the bytes of the file that hold its values."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """The parsed header of a file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def parse_header(header: bytes, *, start: int, end: int) -> Header:
    """Parse the header of a file whose tensors take up the bytes from `start` to `end`.

    Raises:
        ValueError: it is not a header of tensors, or the tensors leave gaps, overlap, or do not
            match their shapes or the size of the file.
    """
    if not header.startswith(b"{"):
        raise ValueError("its header is not that of a safetensors file")
    table = parse_json_object(header, max_depth=3)
    metadata = table.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is not a table of strings")
    tensors = {name: _tensor_info(name, entry, start) for name, entry in table.items()}
    position = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin > position:
            raise ValueError(f"`{name}` begins at {info.begin}, after a gap from {position}")
        if info.begin < position:
            raise ValueError(
                f"`{name}` begins at {info.begin}, inside the header or another tensor"
            )
        position = info.end
    if position != end:
        raise ValueError(f"its tensors end at {position}, the file at {end}")
    return Header(tensors, metadata)


def _tensor_info(name: str, entry: Any, start: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"`{name}` must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f"`{name}` has an unknown dtype")
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"`{name}` has an invalid shape")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"`{name}` has invalid data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"`{name}` has {end - begin} bytes, which do not fit its shape and dtype")
    return TensorInfo(dtype, tuple(shape), start + begin, start + end)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


# Reading

# The names of types in the hash of a model's weights, which have only these types.
_TYPE_NAMES = {"F32": "torch.float32", "I8": "torch.int8"}
_PART_BYTES = 1 << 20  # held in memory at a time while a file is hashed

# A command opens the weights file several times before it reads the tensors.
_parsed = functools.lru_cache(maxsize=2)(parse_header)

HashInput = tuple[str, str, tuple[int, ...], Iterable[memoryview]]  # name, type, shape, values
_prefetched: dict["_Identity", tuple[threading.Thread, list[str]]] = {}


class SafetensorsFile:
    """An open safetensors file, whose header has been checked.

    The file is read, not mapped: if another process truncated a mapped file, an access to it would
    kill this process.

    Attributes:
        tensors: type, shape and position of each tensor, by name.
        metadata: further strings in the header.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: the file is not a safetensors file, or its header does not match its size.
    """

    def __init__(self, path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> None:
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(open_regular(path))
            self._identity = _identity(self._file.fileno())
            file_size = self._identity.size
            if file_size < 8:
                raise ValueError(f"it has {file_size} bytes")
            size = int.from_bytes(self._file.read(8), "little")
            if size > file_size - 8:
                raise ValueError(f"its header has {size} bytes, the file {file_size}")
            if size > max_header_bytes:
                expected = f"expected at most {max_header_bytes}"
                raise ValueError(f"its header has {size} bytes, {expected}")
            header = bytearray(size)
            self._read_into(memoryview(header), 8)
            parsed = _parsed(bytes(header), start=8 + size, end=file_size)
            self.tensors, self.metadata = parsed
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def read(self) -> dict[str, bytearray]:
        """Return the bytes of all tensors, by name.

        Raises:
            OSError: the file cannot be read.
            ValueError: it ends too early, or was modified while it was read.
        """
        contents = {}
        for name, info in self.tensors.items():
            contents[name] = bytearray(info.end - info.begin)
            self._read_into(memoryview(contents[name]), info.begin)
        self.check_unchanged()
        return contents

    def read_tensor(self, name: str, into: memoryview) -> None:
        """Read the bytes of one tensor into the beginning of a buffer.

        Raises:
            OSError: the file cannot be read.
            ValueError: it ends too early.
        """
        info = self.tensors[name]
        self._read_into(into[: info.end - info.begin], info.begin)

    def check_unchanged(self) -> None:
        """Raise a ValueError if the file was modified since it was opened."""
        # The status change time is ignored, since it also changes when the file is unlinked.
        if _identity(self._file.fileno())[:-1] != self._identity[:-1]:
            raise ValueError("it was written to while it was read")

    def sha256(self, contents: Mapping[str, bytearray]) -> str:
        """Return `values_sha256` of the tensors that `read` returned.

        If `prefetch_hash` was called for this file, its result is used.
        """
        thread, result = _prefetched.pop(self._identity, (None, []))
        if thread is not None:
            thread.join()
        if result:
            return result[0]
        return values_sha256(
            (name, _type_name(info), info.shape, [memoryview(contents[name])])
            for name, info in sorted(self.tensors.items())
        )

    def hash_in_background(self) -> Callable[[], str]:
        """Start to hash the file in a thread, unless `prefetch_hash` has already done so.

        Returns:
            A function that waits for the result and returns it, or raises the errors of
            `hash_from_disk`. The file must stay open until then.
        """
        thread, result = _prefetched.pop(self._identity, (None, []))
        if thread is None:
            thread = self._start_hashing(result)

        def finished() -> str:
            thread.join()
            return result[0] if result else self.hash_from_disk()

        return finished

    def _start_hashing(self, result: list[str], *, close: bool = False) -> threading.Thread:
        """Start a thread that appends the hash to `result`, or nothing if the file is damaged."""

        def hash_file() -> None:
            with contextlib.suppress(OSError, ValueError):
                result.append(self.hash_from_disk())
            if close:
                self.close()

        thread = threading.Thread(target=hash_file, daemon=True)  # the program may end before it
        thread.start()
        return thread

    def hash_from_disk(self) -> str:
        """Return `values_sha256` of the file without keeping its tensors in memory.

        Raises:
            OSError: the file cannot be read.
            ValueError: it ends too early.
        """
        return values_sha256(
            (name, _type_name(info), info.shape, self._parts_of(info))
            for name, info in sorted(self.tensors.items())
        )

    def sha256_of_file(self) -> str:
        """Return the SHA-256 of all bytes of the file, including the header.

        Raises:
            OSError: the file cannot be read.
        """
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def _parts_of(self, info: TensorInfo) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_PART_BYTES, info.end - info.begin)))
        for start in range(info.begin, info.end, _PART_BYTES):
            part = buffer[: min(_PART_BYTES, info.end - start)]
            self._read_into(part, start)
            yield part

    def _read_into(self, part: memoryview, start: int) -> None:
        """Fill a buffer from a position in the file; threads may do so concurrently."""
        done = 0
        while done < len(part):
            count = os.preadv(self._file.fileno(), [part[done:]], start + done)
            if not count:
                raise ValueError(f"it ends after {start + done} bytes")
            done += count


def values_sha256(tensors: Iterable[HashInput]) -> str:
    """Return the SHA-256 of names, types, shapes and values of tensors, in the given order."""
    digest = hashlib.sha256()
    for name, dtype, shape, parts in tensors:
        digest.update(f"{name} {dtype} {shape}\n".encode())
        for part in parts:
            digest.update(part)
    return digest.hexdigest()


def prefetch_hash(path: Path) -> None:
    """Start to hash a weights file in a thread, for the `SafetensorsFile` that will be read later.

    If the file has changed by then, it is hashed again. Errors are reported by that reader.
    """
    with contextlib.suppress(OSError, ValueError):
        file, result = SafetensorsFile(path), list[str]()
        _prefetched[file._identity] = file._start_hashing(result, close=True), result


def _type_name(info: TensorInfo) -> str:
    return _TYPE_NAMES.get(info.dtype, info.dtype)


class _Identity(NamedTuple):
    """Fields of a file's status that differ between files, and between versions of one file."""

    device: int
    inode: int
    size: int
    written: int  # ns
    changed: int  # ns


def _identity(descriptor: int) -> _Identity:
    status = os.fstat(descriptor)
    times = status.st_mtime_ns, status.st_ctime_ns
    return _Identity(status.st_dev, status.st_ino, status.st_size, *times)


# Writing. The file is byte for byte what the safetensors library writes. The library would either
# build the whole file in memory, or write it without failpoints, syncing and hashing.

# In the order in which the library sorts types of the same width.
NUM_BYTES = {
    "I64": 8, "F64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
_ALIGNMENT = 8  # of the first value, in bytes


class Array(NamedTuple):
    """An array to write: its type by the format's name, its shape, and its bytes in parts."""

    dtype: str
    shape: tuple[int, ...]
    parts: Iterable[bytes | memoryview]


def write_arrays(
    stream: BinaryIO, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> str:
    """Write arrays as a safetensors file, and return the SHA-256 of the file.

    Args:
        stream: a file at its start.
        arrays: by name.
        metadata: strings for the header.
    """
    # The widest types come first, so that each array is aligned.
    order = sorted(arrays.items(), key=lambda item: (_rank(item[1].dtype), item[0]))
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
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
