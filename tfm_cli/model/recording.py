"""Recording of the values that a model computes on the way to its output, by name."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn


class Record(Protocol):
    """A receiver of values by name, which a module calls if its `record` is not None."""

    def __call__(self, **values: Tensor) -> None:
        """Store the values; a later value of the same name replaces an earlier one."""


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the values that a Transformer, or one of its modules, computes inside the block.

    The names are those of the modules, with `encoder.0` for the first encoder layer:

    - `encoder.0.self_attention.weights`: of each attention, `query`, `key` and `value` of each
      head, their `products` Q K^T, `scores` after the mask, `weights`, `heads` and `output`.
    - `encoder.0.feed_forward_norm.sum`: of each add & norm, its `input`, the output of the
      `sublayer`, their `sum` and its `output`; in pre-norm models also `normed`, the input of the
      sub-layer.
    - `source.embedding`: of `source` and `target`, the scaled `embedding`, the `positions` that are
      added to it, unless they are rotary, and the `input` of the first layer.
    - `encoder.output`, `decoder.output`: of the stacks, after the final norm.

    Recorded attention does not use fused kernels.

    Yields:
        The values, which are filled in by each forward pass.
    """
    values: dict[str, Tensor] = {}
    modules = {
        name.replace("_layers.", "."): module
        for name, module in model.named_modules()
        if hasattr(module, "record")
    }
    before = {name: module.record for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.record = _record(values, f"{name}." if name else "")
        yield values
    finally:
        for name, module in modules.items():
            module.record = before[name]


def _record(values: dict[str, Tensor], prefix: str) -> Record:
    """Return a receiver that stores values under their names after a prefix."""

    def record(**received: Tensor) -> None:
        values.update({prefix + name: value.detach() for name, value in received.items()})

    return record
