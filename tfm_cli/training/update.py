"""One optimizer update: batches → gradients → clip → step."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tfm_cli.corpus.batch import Batch
from tfm_cli.corpus.random_key import random_key
from tfm_cli.files.faults import reach
from tfm_cli.model.arithmetic import arithmetic, ran_out_of_memory
from tfm_cli.parallel.data_parallel import full_tensor
from tfm_cli.training.batches import MicroBatch
from tfm_cli.training.memory import MemoryLimit, out_of_memory
from tfm_cli.training.optimizer import MovingAverage, learning_rate
from tfm_cli.training.parallel_model import ParallelModel


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one update did."""

    number: int
    target_pieces: int
    nll: Tensor  # scalar: summed negative log-likelihood of this process's part
    gradient_norm: Tensor  # scalar, before clipping
    learn_rate: float

    def is_finite(self) -> bool:
        """Whether the gradient was, or else the update was refused; a GPU is waited for.

        A loss that is no finite number makes the gradient none. All processes find the same, since
        the gradient is that of all of them.
        """
        return bool(self.gradient_norm.isfinite())


def update(
    parallel_model: ParallelModel,
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
    attempt: int = 0,
    waits: bool = True,
    room: MemoryLimit | None = None,
) -> UpdateStats:
    """One optimizer update over some batches, weighting every target piece alike.

    Losses are summed and divided by the pieces of all of them together: a mean of per-batch means
    would give the pieces of short batches more weight.

    Where loss or gradient is no finite number, the update is refused: weights and moments stay as
    they are.

    Args:
        parallel_model: its model is in training mode.
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
        attempt: how often this update was refused before; another one has other dropout.
        waits: look at the gradient before the step, and leave the average alone too if it is not
            finite. Else a fused optimizer looks, on the device, and a GPU need not be waited for;
            the average then takes in the weights once more.
        room: what memory is known to hold; changed where it holds less.

    Raises:
        ResourceError: memory does not suffice for a single pair, or in shards for a micro-batch.
    """
    key = ("dropout", seed, number)
    retried = (attempt,) if attempt else ()
    gradients = _Gradients(parallel_model, target_pieces, device, dtype, room or MemoryLimit())
    nll = gradients.of(micro_batches, [random_key(*key, m.number, *retried) for m in micro_batches])
    parallel_model.all_reduce_gradients()
    rate = learning_rate(number, peak=peak_rate, warmup=warmup)
    stats = UpdateStats(number, target_pieces, nll, _clip(parallel_model.model, clip_norm), rate)
    for group in optimizer.param_groups:
        group["lr"] = rate
    if not waits:
        # A fused optimizer leaves all as it is where `found_inf` is not zero.
        refused = (~stats.gradient_norm.isfinite()).to(torch.float32)
        optimizer.grad_scale, optimizer.found_inf = None, refused  # type: ignore[attr-defined]
    is_made = not waits or stats.is_finite()
    if is_made:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if is_made:
        average.include(number)
    return stats


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Where gradients are computed and what of."""

    parallel_model: ParallelModel
    target_pieces: int
    device: torch.device
    dtype: torch.dtype
    room: MemoryLimit

    def of(self, micro_batches: Sequence[MicroBatch], keys: Sequence[int]) -> Tensor:
        """The summed negative log-likelihood of batches, whose gradients the model has then.

        Where memory does not suffice for a batch, all gradients are computed anew, in parts of
        batches: what a backward pass has left that was broken off must not count. Processes that
        have all weights do nothing together here, so none waits for another that begins anew.
        """
        while True:
            nll = self._sum(micro_batches, keys)
            if nll is not None:
                return nll
            self.parallel_model.model.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _sum(self, micro_batches: Sequence[MicroBatch], keys: Sequence[int]) -> Tensor | None:
        """The same, or None where memory did not suffice; then there is less room from now on."""
        total = torch.zeros((), device=self.device)
        share = self.parallel_model.num_averaged / self.target_pieces
        fault = math.nan if reach("gradient") == "nan" else 1.0
        for index, (micro_batch, key) in enumerate(zip(micro_batches, keys, strict=True), 1):
            batch = micro_batch.batch
            with self.parallel_model.accumulating(is_last=index == len(micro_batches)):
                for start, stop in self._parts(batch):
                    weight = share if micro_batch.counts else 0.0
                    nll = self._part(batch, start, stop, key, weight * fault)
                    if nll is None:
                        self.room.make_smaller(batch, stop - start, self.device)
                        return None
                    if micro_batch.counts:
                        total = total + nll
        return total

    def _parts(self, batch: Batch) -> list[tuple[int, int]]:
        if self.parallel_model.is_sharded:  # all processes compute the same number of them
            return [(0, len(batch.source))]
        return list(self.room.parts(batch))

    def _part(self, batch: Batch, start: int, stop: int, key: int, weight: float) -> Tensor | None:
        """The negative log-likelihood of some rows, None where memory does not suffice for them.

        Their gradients are added to those that the model has.
        """
        noise, whole = self.parallel_model.model.noise, len(batch.source)
        is_whole = stop - start == whole
        noise.seed(key)
        try:
            reach("micro_batch")
            with contextlib.nullcontext() if is_whole else noise.part(start, stop, of=whole):
                rows = (batch if is_whole else batch.rows(start, stop)).to(self.device)
                with arithmetic(self.device, self.dtype):
                    loss, nll = self.parallel_model.loss(rows)
                # A loss that is no finite number makes the gradient none, which all processes see.
                # PyTorch declares `backward` without types.
                loss.backward(nll * 0 + weight)  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if self.parallel_model.is_sharded:  # the others are amid the same batch
                raise out_of_memory(self.device) from error
            return None
        return nll


def _clip(model: nn.Module, clip_norm: float) -> Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = full_tensor(nn.utils.get_total_norm(gradients))
    if clip_norm:
        nn.utils.clip_grads_with_norm_(list(model.parameters()), clip_norm, norm)
    return norm
