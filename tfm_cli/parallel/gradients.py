"""Gradients that several processes computed, each by itself, added up."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# One message for many small gradients, and none so large that its copy needs much memory.
_MOST_VALUES = 1 << 23


@torch.no_grad()
def add_up(parameters: Iterable[nn.Parameter], group: Any) -> None:
    """Give each parameter the sum of its gradients on all processes, which all call this together.

    It is the only thing that they do together in an update. So one of them may compute its part in
    as many steps as its memory asks for, and the others just wait.

    Args:
        parameters: the same on all; one that has no gradient here adds nothing.
        group: the processes, as `Parallel.gradient_group` gives them.
    """
    import torch.distributed as processes

    for some in _bucketed(parameters):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        processes.all_reduce(flat, group=group)
        sizes = [gradient.numel() for gradient in gradients]
        totals = torch.split(flat, sizes)
        for parameter, gradient, total in zip(some, gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))
            parameter.grad = gradient


def _bucketed(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one type, together of no more values than a message may have."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        values = sum(map(Tensor.numel, bucket)) + parameter.numel()
        if bucket and (values > _MOST_VALUES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
