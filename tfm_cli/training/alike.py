"""Whether all processes have the same weights, as they must when each of them has all."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from tfm_cli.errors import DivergedError
from tfm_cli.training.learner import Learner
from tfm_cli.training.optim import MovingAverage

_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The sum over the bits of each tensor, read as whole numbers; any single bit changes it."""
    sums = [
        tensor.detach().contiguous().view(_SAME_SIZE[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in tensors.values()
    ]
    found = torch.stack(sums).tolist() if sums else []  # a GPU is waited for once
    return dict(zip(tensors, found, strict=True))


def refuse_other_weights(
    update: int, learner: Learner, average: MovingAverage, optimizer: torch.optim.Optimizer
) -> None:
    """Raise a DivergedError if a process has other weights, averages or moments than rank 0.

    Equal gradients make equal weights, so memory or code is at fault. What was computed on since
    is worth nothing, and must be neither judged nor saved. All processes raise it.
    """
    parallel = learner.parallel
    if parallel.world == 1 or learner.is_sharded:  # each shard there is only once
        return
    tensors = {name: weight.detach() for name, weight in learner.model.named_parameters()}
    tensors |= {f"{name} (average)": weight for name, weight in average.weights.items()}
    for name, weight in learner.model.named_parameters():
        for key, moment in optimizer.state.get(weight, {}).items():
            tensors[f"{name} ({key})"] = moment
    mine = json.dumps(checksums(tensors)).encode()
    tables = [json.loads(each) for each in parallel.gathered(mine)]
    lines = []
    for rank, table in enumerate(tables):
        others = [name for name, value in tables[0].items() if table.get(name) != value]
        if others:
            more = f" and {len(others) - 1} more" if others[1:] else ""
            lines.append(f"rank {rank} of {parallel.world}: `{others[0]}`{more}")
    if lines:
        raise DivergedError(
            "\n  ".join([f"update {update}: there are other weights than on rank 0", *lines]),
            hint="start the same again, and have the memory of that machine tested",
        )
