"""Linear maps that pad their inputs to a few sizes in bf16 on a CPU.

oneDNN compiles and caches a kernel for each shape of a matrix product, and the sizes of batches
vary: after 40 updates of a narrow model the kernels took 900 MB.
"""

# N rows

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MIN_STEP = 16  # rows of an AMX tile


def compiles_sizes(x: Tensor) -> bool:
    """Return True if oneDNN compiles a kernel for each shape of a product with `x`."""
    in_lower_precision = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return in_lower_precision and not torch.compiler.is_compiling()


def round_up_rows(count: int) -> int:
    """Return `count` rounded up to one of a few sizes, at most four between two powers of two."""
    step = _step(count)
    return -(-count // step) * step


def round_down_rows(count: int) -> int:
    """Return `count`, which is at least 16, rounded down to one of the sizes of `round_up_rows`."""
    step = _step(count)
    return count // step * step


def _step(count: int) -> int:
    """Return an eighth of the smallest power of two that is at least `count`, at least 16."""
    return max(_MIN_STEP, (1 << max(0, count - 1).bit_length()) // 8)


def padded_rows(x: Tensor) -> Tensor:
    """Return `x` (N, D) in the dtype of autocast, with rows of zeros up to `round_up_rows(N)`."""
    lower = x.to(torch.get_autocast_dtype("cpu"))
    missing = round_up_rows(len(x)) - len(x)
    return F.pad(lower, (0, 0, 0, missing)) if missing else lower


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b of x (…, D), as `F.linear` does.

    Padding with rows of zeros changes neither the result nor the gradient of the weights.
    """
    if x.ndim < 2 or not compiles_sizes(x):
        return F.linear(x, weight, bias)
    rows = x.flatten(0, -2)  # (N, D)
    return F.linear(padded_rows(rows), weight, bias)[: len(rows)].view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """An `nn.Linear` that computes its products with `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, D) to (…, F)."""
        return linear(x, self.weight, self.bias)
