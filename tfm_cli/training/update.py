"""One optimizer update: batches → gradients → clip → step."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tfm_cli.corpus.batch import Batch
from tfm_cli.corpus.random_key import random_key
from tfm_cli.files.faults import reach
from tfm_cli.model.precision import ran_out_of_memory
from tfm_cli.parallel.data_parallel import full_tensor
from tfm_cli.training.batches import MicroBatch, UpdateBatches
from tfm_cli.training.memory import MemoryLimit, out_of_memory_error
from tfm_cli.training.parallel_model import ParallelModel


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOptions:
    """The settings of one update.

    Args:
        number: the number of the update, from 1; it seeds dropout together with `seed`.
        learn_rate: the learning rate.
        clip_norm: the largest gradient norm; 0 for no limit.
        seed: the seed of the run.
        attempt: the number of earlier attempts at this update; each has its own dropout.
        wait_for_gradient: check the gradient before the step. Otherwise the fused optimizer checks
            it on the device, and the CPU does not wait for a GPU.
    """

    number: int
    learn_rate: float
    clip_norm: float
    seed: int
    attempt: int = 0
    wait_for_gradient: bool = True


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """The results of one update."""

    number: int
    target_tokens: int
    nll: Tensor  # scalar: summed negative log-likelihood on this rank
    gradient_norm: Tensor  # scalar, before clipping
    learn_rate: float
    divergence: Tensor | None = None  # scalar: summed on this rank, of consistency training

    def is_finite(self) -> bool:
        """Return True if the gradient is finite, False if the update was skipped.

        This waits for the device. A non-finite loss makes the gradient non-finite, and all ranks
        have the same gradient.
        """
        return bool(self.gradient_norm.isfinite())


def update(
    parallel_model: ParallelModel,
    batches: UpdateBatches,
    optimizer: torch.optim.Optimizer,
    options: UpdateOptions,
    memory_limit: MemoryLimit | None = None,
) -> UpdateStats:
    """Make one optimizer update, weighting every target token alike.

    Losses are summed and divided by the number of target tokens on all ranks: a mean of per-batch
    means would give the tokens of short batches more weight.

    An update whose loss or gradient is not finite is skipped: weights and moments do not change.

    Args:
        parallel_model: in training mode.
        batches: of the update; the gradients of all ranks are summed.
        optimizer: the optimizer of the model's parameters.
        options: see UpdateOptions.
        memory_limit: the limit on positions per pass, lowered if a batch does not fit.

    Raises:
        ResourceError: memory does not suffice for a single pair or, with sharded weights, for a
            micro-batch.
    """
    gradients = _Gradients(parallel_model, batches.target_tokens, memory_limit or MemoryLimit())
    key = ("dropout", options.seed, options.number)
    retried = (options.attempt,) if options.attempt else ()
    keys = [random_key(*key, each.number, *retried) for each in batches.micro_batches]
    sums = gradients.accumulate(batches.micro_batches, keys)
    parallel_model.all_reduce_gradients()
    norm = _clip(parallel_model.model, options.clip_norm)
    stats = UpdateStats(
        options.number,
        batches.target_tokens,
        sums.nll,
        norm,
        options.learn_rate,
        sums.divergence,
    )
    for group in optimizer.param_groups:
        group["lr"] = options.learn_rate
    if not options.wait_for_gradient:
        # A fused optimizer changes nothing if `found_inf` is not zero.
        is_non_finite = (~stats.gradient_norm.isfinite()).to(torch.float32)
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = is_non_finite  # type: ignore[attr-defined]
    if not options.wait_for_gradient or stats.is_finite():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return stats


class _Sums(NamedTuple):
    """Sums over target tokens; see `ParallelModel.loss`."""

    nll: Tensor
    divergence: Tensor | None

    def plus(self, other: "_Sums") -> "_Sums":
        nll = self.nll + other.nll
        if self.divergence is None or other.divergence is None:
            return _Sums(nll, None)
        return _Sums(nll, self.divergence + other.divergence)


@dataclass(frozen=True, slots=True)
class _Gradients:
    """The gradients of an update, computed in micro-batches that fit into memory."""

    parallel_model: ParallelModel
    target_tokens: int
    memory_limit: MemoryLimit

    def accumulate(self, micro_batches: Sequence[MicroBatch], keys: Sequence[int]) -> _Sums:
        """Accumulate gradients in the model, and return the sums over the target tokens.

        If memory does not suffice for a micro-batch, all gradients are computed again with a lower
        limit, since an interrupted backward pass leaves incomplete ones. Without sharding, ranks do
        not communicate here, so none waits for another that starts over.
        """
        while True:
            sums = self._try_to_accumulate(micro_batches, keys)
            if sums is not None:
                return sums
            self.parallel_model.model.zero_grad(set_to_none=True)
            if self.parallel_model.device.type == "cuda":
                torch.cuda.empty_cache()

    def _try_to_accumulate(
        self, micro_batches: Sequence[MicroBatch], keys: Sequence[int]
    ) -> _Sums | None:
        """Return the sums; if memory did not suffice, lower the limit and return None."""
        zero = torch.zeros((), device=self.parallel_model.device)
        total = _Sums(zero, None if self.parallel_model.consistency is None else zero)
        token_weight = self.parallel_model.num_averaged / self.target_tokens
        fault = math.nan if reach("gradient") == "nan" else 1.0
        for index, (micro_batch, key) in enumerate(zip(micro_batches, keys, strict=True), 1):
            batch = micro_batch.batch
            with self.parallel_model.accumulate_gradients(is_last=index == len(micro_batches)):
                for start, stop in self._split(batch):
                    weight = token_weight if micro_batch.counts else 0.0
                    sums = self._backward(batch, start, stop, key, weight * fault)
                    if sums is None:
                        device = self.parallel_model.device
                        self.memory_limit.lower(batch, stop - start, device)
                        return None
                    if micro_batch.counts:
                        total = total.plus(sums)
        return total

    def _split(self, batch: Batch) -> list[tuple[int, int]]:
        if self.parallel_model.is_sharded:  # all ranks must compute the same number of parts
            return [(0, len(batch.source))]
        return list(self.memory_limit.split(batch))

    def _backward(
        self, batch: Batch, start: int, stop: int, key: int, weight: float
    ) -> _Sums | None:
        """Add the gradients of some rows, and return their sums.

        The result is None if memory does not suffice for them.
        """
        noise, num_rows = self.parallel_model.model.noise, len(batch.source)
        views = self.parallel_model.num_views
        is_whole = stop - start == num_rows
        noise.seed(key, self.parallel_model.device)
        try:
            reach("micro_batch")
            part = noise.part(views * start, views * stop, of=views * num_rows)
            with contextlib.nullcontext() if is_whole else part:
                rows = batch if is_whole else batch.rows(start, stop)
                loss, nll, divergence = self.parallel_model.loss(
                    rows.to(self.parallel_model.device)
                )
                # `nll * 0` carries a non-finite loss into the gradient, where all ranks see it.
                # PyTorch declares `backward` without types.
                loss.backward(nll * 0 + weight)  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if self.parallel_model.is_sharded:  # the other ranks are in the same batch
                raise out_of_memory_error(self.parallel_model.device) from error
            return None
        return _Sums(nll, divergence)


def _clip(model: nn.Module, clip_norm: float) -> Tensor:
    """Clip the gradients to `clip_norm` unless it is 0, and return their norm before clipping."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = full_tensor(nn.utils.get_total_norm(gradients))
    if clip_norm:
        nn.utils.clip_grads_with_norm_(list(model.parameters()), clip_norm, norm)
    return norm
