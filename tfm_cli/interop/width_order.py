"""The coordinates of the width in another order, so that interleaved sinusoids become halves.

The paper's sinusoids stand interleaved, sine and cosine by turns; other runtimes compute all sines
before all cosines. Which coordinate is which means nothing to a Transformer as long as all that
reads or writes them agrees: embeddings, matrices, norms and position encodings. So a model for the
one layout becomes one for the other by moving numbers about, to the bit, and back again.
"""

# D model width, V vocabulary, F inner width

from collections.abc import Mapping

import torch
from torch import Tensor

from tfm_cli.config import ModelConfig

# What a parameter's coordinates are, by the end of its name: columns that read the width, rows
# that write it. All others keep away from it.
_COLUMNS = (
    "_embedding.weight",  # (V, D)
    ".projection.weight",  # (3D, D)
    ".inner.weight",  # (F, D)
)
_ROWS = (
    "_attention.output.weight",  # (D, D)
    "_attention.output.bias",  # (D,)
    ".outer.weight",  # (D, F)
    ".outer.bias",
    "norm.weight",
    "norm.bias",
)
_OUTPUT = "output.weight"  # (V, D), where it is no embedding


def to_halves(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Weights for `sinusoidal_halves` that compute what these compute with `sinusoidal`.

    Args:
        weights: parameters by their names in a Transformer without learned positions.
        config: its shape.
    """
    return _reordered(weights, halves_order(config.width))


def from_halves(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The weights that `to_halves` was given, to the bit."""
    return _reordered(weights, halves_order(config.width).argsort())


def halves_order(width: int) -> Tensor:
    """Where each coordinate comes from, (D,): the even ones first, which are sines."""
    return torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2)))


def _reordered(weights: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    return {name: _moved(name, tensor, order) for name, tensor in weights.items()}


def _moved(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    order = order.to(tensor.device)
    if name == _OUTPUT or name.endswith(_COLUMNS):
        return tensor.index_select(1, order)
    if name.endswith(_ROWS):
        return tensor.index_select(0, order)
    return tensor.clone()
