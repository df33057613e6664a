"""Linear maps in 8-bit integers, summed in 32-bit integers."""

# M rows, K inputs, N outputs

import math
import warnings
from functools import cache

import torch
from torch import Tensor

from tfm_cli.decoding.hypothesis import refuse_non_finite

LARGEST = 127.0  # of a signed byte, without -128, so that both signs reach equally far
_TOGETHER = 524_288  # numbers whose intermediate results stay in the processor's own memory
_SMALLEST_PEAK = 1e-12  # a row of zeros has some scale as well


def quantized_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (M, K) as bytes (M, K), and the largest magnitude of each row (M, 1).

    A row is the bytes times its peak / 127, each element to within half of that.
    """
    if len(x) > 1 and x.numel() > 2 * _TOGETHER:
        stored, peaks = torch.empty_like(x, dtype=torch.int8), x.new_empty(len(x), 1)
        together = max(1, _TOGETHER // x.shape[1])
        for start in range(0, len(x), together):
            part = slice(start, start + together)
            stored[part], peaks[part] = quantized_rows(x[part])
        return stored, peaks
    if len(x) == 1:  # one operator, which is slow for many rows
        peak = torch.linalg.vector_norm(x, math.inf, 1, keepdim=True)  # (1, 1)
    else:
        peak = x.abs().amax(1, keepdim=True)  # (M, 1)
    peak.clamp_min_(_SMALLEST_PEAK)
    return torch.div(x, peak).mul_(LARGEST).round_().to(torch.int8), peak


def columns_of(stored: Tensor) -> Tensor:
    """Bytes (N, K) as the (K, N) that products take, stored as they were.

    Of a single input, torch 2.13's product mistakes strides (1, 1) for those of a matrix the other
    way round, and reads what is not there.
    """
    return stored.t() if stored.shape[1] > 1 else stored.view(1, -1)


class RowwiseInt8Linear:
    """x W^T + b with weights in bytes: a scale for each output, and for each row of the input.

    A row's result is the same whatever its neighbours.

    Args:
        weight: (N, K), fp32.
        bias: (N,); None for none.
        relu: put a ReLU behind.
    """

    __slots__ = ("_bias", "_columns", "_relu", "_scale")

    def __init__(self, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> None:
        stored, peak = quantized_rows(weight)
        self._columns = columns_of(stored)
        # Both rows and weights were multiplied by 127.
        self._scale = peak[:, 0] / LARGEST**2  # (N,)
        self._bias = bias
        self._relu = relu

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (M, K) to (M, N), fp32 both."""
        rows, peak = quantized_rows(x)
        sums = torch._int_mm(rows, self._columns).float()  # (M, N)
        sums.mul_(peak)
        sums.mul_(self._scale)
        if self._bias is not None:
            sums.add_(self._bias)
        return sums.relu_() if self._relu else sums


class Int8Linear:
    """The same with one scale for all rows of the input, in one operator of FBGEMM.

    Half the time of `RowwiseInt8Linear`, whose ten operators each walk through rows or results.

    Args:
        weight: (N, K), fp32.
        bias: (N,); None for none.
        relu: put a ReLU behind.
    """

    __slots__ = ("_packed", "_product")

    def __init__(self, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> None:
        stored, peak = quantized_rows(weight)
        scales = peak[:, 0].double() / LARGEST
        zeros = torch.zeros(len(weight), dtype=torch.long)
        engine = torch.backends.quantized.engine
        with warnings.catch_warnings():
            # It is told that they will be removed; `has_fbgemm` asks whether they are there.
            warnings.simplefilter("ignore")
            quantized = torch._make_per_channel_quantized_tensor(stored, scales, zeros, 0)
        try:
            torch.backends.quantized.engine = "fbgemm"
            self._packed = torch.ops.quantized.linear_prepack(quantized, bias)
        finally:
            torch.backends.quantized.engine = engine
        product = torch.ops.quantized
        self._product = (product.linear_relu_dynamic if relu else product.linear_dynamic).default

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (M, K) to (M, N), fp32 both."""
        try:
            y: Tensor = self._product(x, self._packed)
        except RuntimeError:  # FBGEMM finds no scale for what is not finite
            refuse_non_finite(x)
            raise
        return y


def int8_linear(
    weight: Tensor, bias: Tensor | None, *, relu: bool = False
) -> Int8Linear | RowwiseInt8Linear:
    """The faster of the two where it can be had."""
    return (Int8Linear if has_fbgemm() else RowwiseInt8Linear)(weight, bias, relu=relu)


@cache
def has_fbgemm() -> bool:
    """Whether this processor and this version of PyTorch have the operators of `Int8Linear`.

    Without the processor's own products of bytes, FBGEMM sums them in 16 bits, which overflow.
    """
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return (
        bool(capabilities.get("avx512_vnni"))
        and "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch, "_make_per_channel_quantized_tensor")
        and hasattr(torch.ops.quantized, "linear_dynamic")
    )
