"""What the header of a safetensors file says of its tensors, checked against the file's length.

Knows nothing of PyTorch. Stricter than the format asks for: each byte belongs to one tensor.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from tfm_cli.plain_json import parse_object

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
