"""Data parallelism: replicated weights (`ddp`) or sharded weights (`fsdp`), and their gradients.

`ddp` keeps all weights on every rank, and `all_reduce_gradients` sums the gradients. `fsdp`
(FSDP2) keeps a shard of each weight, gathers them layer by layer while they are needed, and so
trains models that no single device could hold. FSDP2 takes one or two seconds to import, so it is
imported only where weights are sharded.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tfm_cli.parallel.process_group import Parallel

# The maximum number of values in one all-reduce: small gradients share a message, and the copy of a
# message needs little memory.
_MAX_BUCKET_VALUES = 1 << 23


def distribute(
    module: nn.Module,
    *,
    layers: Sequence[nn.Module],
    strategy: str,
    parallel: Parallel,
    device: torch.device,
) -> nn.Module:
    """Copy the weights of rank 0 to all ranks, shard them with `fsdp`, and return the module.

    With `fsdp` gradients are averaged over the ranks; with `ddp` each rank has those of its own
    batches until `all_reduce_gradients`.

    Args:
        module: must be on `device`, except with `fsdp`, which moves its parameters as shards.
        layers: parts of it whose weights are gathered one after the other.
        strategy: `ddp` or `fsdp`.
        parallel: the processes.
        device: the device that computes.
    """
    group = parallel.gradient_group(device)
    if group is None:
        return module
    for parameter in module.parameters():
        copy_from_rank_0(parameter.detach(), parameter.detach(), parallel)
    if strategy == "ddp":
        return module
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(group, device.type)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


@contextlib.contextmanager
def accumulate_gradients(module: Any, *, is_last: bool) -> Iterator[None]:
    """Accumulate gradients locally inside the block; sharded ones are reduced by the last pass."""
    if hasattr(module, "set_requires_gradient_sync"):  # an FSDPModule
        module.set_requires_gradient_sync(is_last)
    yield


def local_shard(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, or all of an unsharded one; memory is shared."""
    detached: Any = tensor.detach()
    shard: Tensor = detached.to_local() if _is_sharded(detached) else detached
    return shard


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor of a parameter; all ranks must call this together if it is sharded."""
    detached: Any = tensor.detach()
    full: Tensor = detached.full_tensor() if _is_sharded(detached) else detached
    return full


@torch.no_grad()
def copy_from_rank_0(tensor: Tensor, values: Tensor | None, parallel: Parallel) -> None:
    """Copy the values of rank 0 into a tensor, full or sharded, on every rank.

    Args:
        tensor: changed in place.
        values: the full tensor on rank 0; ignored on the other ranks.
        parallel: the processes, all of which must call this.
    """
    if parallel.world_size > 1:
        if values is None or not parallel.is_main:
            values = torch.empty(tensor.shape, dtype=tensor.dtype)
        values = values.to("cpu", tensor.dtype).contiguous()
        parallel.broadcast(values)
    assert values is not None
    if _is_sharded(tensor):
        values = _shard_like(tensor, values.to(tensor.device))
    local_shard(tensor).copy_(local_shard(values))


def _shard_like(tensor: Any, values: Tensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)


def _is_sharded(tensor: Tensor) -> bool:
    """Return True for a DTensor."""
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def all_reduce_gradients(parameters: Iterable[nn.Parameter], group: Any) -> None:
    """Replace each gradient by its sum over all ranks, which must call this together.

    This is the only collective operation of an update. A rank that runs out of memory may therefore
    split its batches further while the others wait here.

    Args:
        parameters: the same on all ranks; one without a gradient on this rank adds zeros.
        group: the process group, from `Parallel.gradient_group`.
    """
    import torch.distributed as dist

    for bucket in _buckets(parameters):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        sizes = [gradient.numel() for gradient in gradients]
        totals = torch.split(flat, sizes)
        for parameter, gradient, total in zip(bucket, gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))
            parameter.grad = gradient


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield runs of parameters of one dtype that fit into one all-reduce."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        num_values = sum(map(Tensor.numel, bucket)) + parameter.numel()
        if bucket and (num_values > _MAX_BUCKET_VALUES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
