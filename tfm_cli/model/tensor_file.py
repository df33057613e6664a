"""Writing tensors to a safetensors file, byte for byte as the safetensors library does."""

from collections.abc import Iterator, Mapping
from typing import BinaryIO

import torch
from torch import Tensor

from tfm_cli.files.safetensors_file import Array, write_arrays

_TYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_tensors(
    stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors to a stream and return the SHA-256 of the file.

    Args:
        stream: positioned at its start.
        tensors: by name, contiguous and in CPU memory.
        metadata: strings that are stored with the tensors.
    """
    arrays = {
        name: Array(_TYPES[tensor.dtype], tuple(tensor.shape), _bytes(tensor))
        for name, tensor in tensors.items()
    }
    return write_arrays(stream, arrays, metadata)


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().reshape(-1)
    if flat.stride(0) != 1:  # a single number counts as contiguous with any stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    yield flat.view(torch.uint8).numpy().data
