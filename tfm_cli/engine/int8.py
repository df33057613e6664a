"""Linear maps in 8-bit integers: a scale for each output of the weights and each row of the input.

Products are summed in 32-bit integers, so a row's result is the same whatever its neighbours.
"""

# M rows, K inputs, N outputs

import math

import torch
from torch import Tensor

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


class Int8Linear:
    """x W^T + b with weights in bytes.

    Args:
        weight: (N, K), fp32.
        bias: (N,); None for none.
    """

    __slots__ = ("_bias", "_columns", "_scale")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        stored, peak = quantized_rows(weight)
        self._columns = columns_of(stored)
        # Both rows and weights were multiplied by 127.
        self._scale = peak[:, 0] / LARGEST**2  # (N,)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (M, K) to (M, N), fp32 both."""
        rows, peak = quantized_rows(x)
        sums = torch._int_mm(rows, self._columns).float()  # (M, N)
        sums.mul_(peak)
        if self._bias is None:
            return sums.mul_(self._scale)
        return torch.addcmul(self._bias, sums, self._scale)
