"""Arrays of numbers into a safetensors file, byte for byte as the safetensors library writes them.

The library's own writers build the file in memory, or write it where nothing is known of faults
and of syncing. Source: the format's description, https://github.com/huggingface/safetensors.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import BinaryIO, NamedTuple

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
