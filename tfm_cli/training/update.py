"""One optimizer update: batches → gradients → clip → step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tfm_cli.corpus.batching import random_key
from tfm_cli.device import arithmetic
from tfm_cli.errors import DivergedError
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.wrapping import full
from tfm_cli.training.learner import Learner
from tfm_cli.training.optim import MovingAverage, learning_rate
from tfm_cli.training.plan import MicroBatch


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one update did."""

    number: int
    target_pieces: int
    nll: Tensor  # scalar: summed negative log-likelihood of this process's part
    gradient_norm: Tensor  # scalar, before clipping
    learn_rate: float


def update(
    learner: Learner,
    micro_batches: Sequence[MicroBatch],
    optimizer: torch.optim.Optimizer,
    average: MovingAverage,
    *,
    target_pieces: int,
    number: int,
    peak_rate: float,
    warmup: int,
    clip_norm: float,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    diverged: Tensor | None = None,
) -> UpdateStats:
    """One optimizer update over some batches, weighting every target piece alike.

    Losses are summed and divided by the pieces of all of them together: a mean of per-batch means
    would give the pieces of short batches more weight.

    Args:
        learner: its model is in training mode.
        micro_batches: of this process; the gradients of all processes' are summed.
        optimizer: of the model's parameters.
        average: takes in the new weights.
        target_pieces: of all micro-batches of the update, on all processes.
        number: of the update, from 1; with `seed` it decides on the dropout.
        peak_rate: highest learning rate.
        warmup: updates until it is reached.
        clip_norm: largest gradient norm; 0 for no limit.
        seed: of the run.
        device: where the model is.
        dtype: arithmetic of the matrix products.
        diverged: scalar on the device, which becomes 1 when loss or gradient is no finite number,
            and from then on no update touches the weights. So a GPU need not be waited for; who
            reads the results asks `refuse_diverged`. None asks at once.

    Raises:
        DivergedError: loss or gradient is no finite number; the weights were not touched. All
            processes raise it.
    """
    model, parallel = learner.model, learner.parallel
    nll = torch.zeros((), device=device)
    for index, micro_batch in enumerate(micro_batches, 1):
        model.noise.seed(random_key("dropout", seed, number, micro_batch.number))
        batch = micro_batch.batch.to(device)
        # Gradients are averaged over processes, and are wanted summed.
        share = parallel.world / target_pieces if micro_batch.counts else 0.0
        with learner.accumulating(is_last=index == len(micro_batches)):
            with arithmetic(device, dtype):
                loss, batch_nll = learner.loss(batch)
            # A loss that is no finite number makes the gradient none, which all processes see.
            # PyTorch declares `backward` without types.
            loss.backward(batch_nll * 0 + share)  # type: ignore[no-untyped-call]
        if micro_batch.counts:
            nll = nll + batch_nll
    rate = learning_rate(number, peak=peak_rate, warmup=warmup)
    stats = UpdateStats(number, target_pieces, nll, _clip(model, clip_norm), rate)
    if diverged is None:
        refuse_diverged([stats], optimizer, parallel)
    else:
        # A fused optimizer leaves all as it is where `found_inf` is not zero.
        finite = stats.gradient_norm.isfinite()
        torch.maximum(diverged, (~finite).to(diverged.dtype), out=diverged)
        optimizer.grad_scale, optimizer.found_inf = None, diverged  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average.include(number)
    return stats


def refuse_diverged(
    made: Sequence[UpdateStats], optimizer: torch.optim.Optimizer, parallel: Parallel
) -> None:
    """Raise a DivergedError if the loss or gradient of an update was no finite number.

    All processes find the same, since the gradient is that of all of them.
    """
    for stats in made:
        if bool(stats.gradient_norm.isfinite()):
            continue
        optimizer.zero_grad(set_to_none=True)
        (nll,) = parallel.sums([float(stats.nll)])
        raise DivergedError(
            f"update {stats.number}: the loss is {nll / stats.target_pieces:.4g} and "
            f"the gradient norm {float(stats.gradient_norm):.4g}; the weights were not touched",
            hint="lower `--learn-rate` or lengthen `--lr-warmup`, and start again",
        )


def _clip(model: nn.Module, clip_norm: float) -> Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = full(nn.utils.get_total_norm(gradients))
    if clip_norm:
        nn.utils.clip_grads_with_norm_(list(model.parameters()), clip_norm, norm)
    return norm
