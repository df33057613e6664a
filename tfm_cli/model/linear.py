"""Linear maps whose products have few different sizes in bf16 on a CPU.

oneDNN, which computes them there, compiles and caches a kernel for each size of a product, and the
sizes of batches vary: after 40 updates of a narrow model the kernels took 900 MB.
"""

# N rows

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST_STEP = 16  # the rows of a tile of AMX


def compiles_sizes(x: Tensor) -> bool:
    """Return True if a kernel is compiled for each size of the products of `x`."""
    in_lower_precision = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return in_lower_precision and not torch.compiler.is_compiling()


def few_rows(count: int) -> int:
    """Return the smallest of a few numbers that is at least `count`: four in each octave."""
    step = _step(count)
    return -(-count // step) * step


def few_rows_within(count: int) -> int:
    """Return the largest of these numbers that is at most `count`, which is at least 16."""
    step = _step(count)
    return count // step * step


def _step(count: int) -> int:
    """Return an eighth of the power of two that is at least `count`."""
    return max(_LEAST_STEP, (1 << max(0, count - 1).bit_length()) // 8)


def padded_rows(x: Tensor) -> Tensor:
    """Return `x` (N, D) in the precision of its products, with rows of zeros up to `few_rows`."""
    lower = x.to(torch.get_autocast_dtype("cpu"))
    missing = few_rows(len(x)) - len(x)
    return F.pad(lower, (0, 0, 0, missing)) if missing else lower


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b of x (…, D), as `F.linear` does.

    Rows of zeros change no row of the result and add nothing to the gradient of the weights.
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
