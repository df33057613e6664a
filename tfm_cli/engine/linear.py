"""Linear maps x W^T + b, without gradients, in the arithmetic and order that a processor likes."""

# M rows, K inputs, N outputs

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfm_cli.engine.int8 import int8_linear

Linear = Callable[[Tensor], Tensor]  # (M, K) → (M, N), fp32

# Rows of a matrix whose length in bytes is a power of two fall into the same lines of the cache:
# 82 GFLOPS without and 126 with this many more floats a row, for 64 rows and 512 x 2048.
_PADDING = 16
_TURNED = 128  # rows, of the usual length, that stay in the processor's own memory
# Weights. Rounding the rows costs about what a product with 256 x 256 saves in bytes.
_WORTH_ROUNDING = 100_000


def prepared_linear(
    linear: nn.Linear, precision: str, outputs: slice = slice(None), *, relu: bool = False
) -> Linear:
    """What `linear` does, in `fp32`, `bf16` or `int8`; of its outputs only these, maybe with ReLU.

    Its weight may be stored anew, with the same values. Small matrices stay in fp32 where `int8` is
    asked for.
    """
    if precision == "int8" and linear.weight.numel() < _WORTH_ROUNDING:
        precision = "fp32"
    if precision == "fp32" and _likes_columns(linear.weight.device) and linear.weight.stride(0) > 1:
        linear.weight.data = by_columns(linear.weight)
    weight, bias = linear.weight.detach()[outputs], linear.bias.detach()[outputs]
    return linear_of(weight, bias, precision, relu=relu)


def linear_of(weight: Tensor, bias: Tensor, precision: str, *, relu: bool = False) -> Linear:
    """x W^T + b in `fp32`, `bf16` or `int8`.

    Args:
        weight: (N, K), fp32; for `fp32` best as `by_columns` stores it.
        bias: (N,).
        precision: of the product; what comes in and goes out is fp32.
        relu: put a ReLU behind.
    """
    if precision == "int8":
        return int8_linear(weight, bias, relu=relu)
    product = _float_linear(weight, bias, precision)
    return (lambda x: product(x).relu_()) if relu else product


def _float_linear(weight: Tensor, bias: Tensor, precision: str) -> Linear:
    if precision == "bf16":
        return _bf16_linear(weight, bias)
    if _likes_columns(weight.device) or not _has_onednn(weight.device):
        columns = weight.t()
        return lambda x: torch.addmm(bias, x, columns)
    return _packed_linear(weight, bias)


def output_linear(weight: Tensor, bias: Tensor, precision: str) -> Linear:
    """The same for the matrix of a large vocabulary, which is also that of the embeddings.

    It stays as it is for them. oneDNN's packed copy is as fast as columns for many rows of 32,000
    outputs, and twice as fast for four.
    """
    if precision == "fp32" and _has_onednn(weight.device):
        return _packed_linear(weight, bias)
    return linear_of(weight, bias, precision)


def by_columns(weight: Tensor) -> Tensor:
    """The same matrix (N, K), whose columns lie one after the other.

    MKL multiplies a few rows with it 1.2 to 2 times as fast as with one stored by rows, since
    it need not turn it round each time.
    """
    outputs, inputs = weight.shape
    stored = weight.new_empty(inputs, outputs + _PADDING)
    # PyTorch turns blocks fast where it stores them without gaps.
    for start in range(0, outputs, _TURNED):
        turned = weight.detach()[start : start + _TURNED].t().contiguous()
        stored[:, start : start + turned.shape[1]] = turned
    return stored[:, :outputs].t()


def _packed_linear(weight: Tensor, bias: Tensor) -> Linear:
    """In fp32 through oneDNN, which reads the weights from a copy in the order of use.

    One row is a walk through the weights however they stand, and PyTorch's own call has the
    smaller overhead.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    product = torch.ops.mkldnn._linear_pointwise

    def apply(x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return F.linear(x, weight, bias)
        y: Tensor = product(x, packed, bias, "none", [], "")
        return y

    return apply


def _bf16_linear(weight: Tensor, bias: Tensor) -> Linear:
    half = weight.bfloat16().contiguous()
    if not _has_onednn(weight.device):
        return lambda x: F.linear(x.bfloat16(), half).float().add_(bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(half, None)
    product = torch.ops.mkldnn._linear_pointwise

    def apply(x: Tensor) -> Tensor:
        y: Tensor = product(x.bfloat16(), packed, None, "none", [], "")
        return y.float().add_(bias)

    return apply


def _has_onednn(device: torch.device) -> bool:
    # It ships no type information.
    return device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _likes_columns(device: torch.device) -> bool:
    return device.type == "cpu" and _is_intel_with_mkl()


@cache
def _is_intel_with_mkl() -> bool:
    """Whether products run in MKL on a processor that it was made for."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call] # as above
        return False
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "intel" in str(capabilities.get("cpu_name", "")).lower()
