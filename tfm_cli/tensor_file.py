"""Tensors into a safetensors file, byte for byte as the safetensors library writes them.

The library's own writers build the file in memory, or write it where nothing is known of faults
and of syncing. Source: the format's description, https://github.com/huggingface/safetensors.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import torch
from torch import Tensor

# In the order in which the library puts types whose numbers are equally wide.
_TYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALIGNMENT = 8  # bytes, of where the values begin


def write_tensors(
    stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors, in the memory of the CPU and contiguous; returns the SHA-256 of the file.

    Args:
        stream: at its start.
        tensors: by name.
        metadata: words that are kept beside them.
    """
    # The widest numbers first, so that each tensor begins where its numbers may.
    order = sorted(tensors.items(), key=lambda item: (_rank(item[1]), item[0]))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in order:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    for part in _parts(text, [tensor for _, tensor in order]):
        digest.update(part)
        stream.write(part)
    return digest.hexdigest()


def _parts(header: bytes, tensors: Sequence[Tensor]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        if flat.stride(0) != 1:  # a single number may have any stride, and counts as contiguous
            flat = flat.clone(memory_format=torch.contiguous_format)
        yield flat.view(torch.uint8).numpy().data


def _rank(tensor: Tensor) -> tuple[int, int]:
    return -tensor.element_size(), list(_TYPES).index(tensor.dtype)
