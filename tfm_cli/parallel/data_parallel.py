"""A model that several processes train: its tensors whole or in shards.

`ddp` keeps all weights on every process, and the gradients are added up by `gradients.add_up`;
`fsdp` (FSDP2) keeps a part of each, brings them together layer by layer while they are needed, and
so trains what no single device could hold. What it needs of PyTorch takes a second or two to
import, and is imported where shards are made.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tfm_cli.parallel.process_group import Parallel


def wrapped(
    module: nn.Module,
    *,
    layers: Sequence[nn.Module],
    strategy: str,
    parallel: Parallel,
    device: torch.device,
) -> nn.Module:
    """What to call instead of a module that all processes train.

    All begin with the weights of rank 0. In shards, its gradients are averaged over the processes;
    else each has those of its own batches.

    Args:
        module: on `device`, or with `fsdp` anywhere; there its parameters become shards on it.
        layers: parts of it whose weights are brought together one after the other.
        strategy: `ddp` or `fsdp`.
        parallel: the processes.
        device: where to compute.
    """
    group = parallel.gradient_group(device)
    if group is None:
        return module
    for parameter in module.parameters():
        fill(parameter.detach(), parameter.detach(), parallel)
    if strategy == "ddp":
        return module  # all weights are equal already
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(group, device.type)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


@contextlib.contextmanager
def accumulating(module: Any, *, is_last: bool) -> Iterator[None]:
    """Inside, gradients are added up here; in shards, those of the last pass are averaged."""
    if hasattr(module, "set_requires_gradient_sync"):  # an FSDPModule
        module.set_requires_gradient_sync(is_last)
    yield


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has, all of it where it is whole; shares memory."""
    detached: Any = tensor.detach()
    part: Tensor = detached.to_local() if _is_sharded(detached) else detached
    return part


def full(tensor: Tensor) -> Tensor:
    """A tensor as a whole; where it is in shards, all processes have to ask for it together."""
    detached: Any = tensor.detach()
    whole: Tensor = detached.full_tensor() if _is_sharded(detached) else detached
    return whole


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor | None, parallel: Parallel) -> None:
    """Give a tensor, whole or in shards, the values that rank 0 has for it.

    Args:
        tensor: changed in place.
        values: all of them; what ranks but 0 bring does not matter.
        parallel: the processes, all of which have to come here.
    """
    if parallel.world > 1:
        if values is None or not parallel.is_main:
            values = torch.empty(tensor.shape, dtype=tensor.dtype)
        values = values.to("cpu", tensor.dtype).contiguous()
        parallel.broadcast(values)
    assert values is not None
    if _is_sharded(tensor):
        values = _in_shards(values.to(tensor.device), tensor)
    local(tensor).copy_(local(values))


def _in_shards(values: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)


def _is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "full_tensor")


# Gradients that several processes computed, each by itself, added up.

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
