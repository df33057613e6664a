"""Fitting batches into memory: micro-batch sizes, and the limit that out-of-memory errors lower.

The largest micro-batches are tried before the first update.
"""

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tfm_cli.config.presets import PRESETS, SAMPLE
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.batch import Batch
from tfm_cli.errors import ResourceError
from tfm_cli.model.precision import autocast, ran_out_of_memory
from tfm_cli.model.transformer import Transformer
from tfm_cli.parallel import Parallel
from tfm_cli.training.batches import BatchSampler
from tfm_cli.training.consistency import (
    NUM_VIEWS,
    Consistency,
    consistency_loss,
    consistency_of,
)
from tfm_cli.training.parallel_model import batch_loss, undo_compilation

logger = logging.getLogger(__name__)

# On a CPU larger products are no faster, and smaller batches need less padding and memory.
CPU_MICRO_BATCH = 2048
_UNLIMITED = 1 << 40  # positions, more than any memory holds


def resolve_batch_size(settings: TrainingConfig, preset: str) -> TrainingConfig:
    """Return the settings with `max_tokens` as a number.

    0 means the preset's size, with all batches of an update merged into one. The size of an update
    does not change, and only memory limits the size of micro-batches.
    """
    if settings.max_tokens:
        return settings
    base = "tiny" if preset == SAMPLE else preset
    tokens = PRESETS[base]["training"].get("max_tokens", TrainingConfig.max_tokens)
    assert isinstance(tokens, int)
    tokens *= settings.update_freq
    return dataclasses.replace(settings, max_tokens=tokens, update_freq=1)


def initial_micro_batch(settings: TrainingConfig, device: torch.device, *, before: int = 0) -> int:
    """Return the initial size of micro-batches in target tokens: as set, or an estimate.

    Args:
        settings: with `max_tokens` resolved.
        device: the device that computes.
        before: the size that the resumed run used, 0 for a new run. A GPU keeps it, since dropout
            depends on it and the free memory may differ.
    """
    if settings.micro_batch:
        return settings.micro_batch
    if device.type != "cpu":
        return before or settings.max_tokens
    return CPU_MICRO_BATCH if consistency_of(settings) is None else CPU_MICRO_BATCH // NUM_VIEWS


def fit_micro_batch(
    sampler: BatchSampler,
    model: Transformer,
    *,
    may_shrink: bool,
    has_moments: bool = False,
    device: torch.device,
    dtype: torch.dtype,
    consistency: Consistency | None = None,
) -> BatchSampler:
    """Return the sampler with a micro-batch size that fits into memory.

    The size is halved until the largest micro-batches fit. Each try is a forward and a backward
    pass, with memory allocated for the optimizer's moments; weights do not change.

    Args:
        sampler: with the initial micro-batch.
        model: the model on the device, before its first update in this process.
        may_shrink: halve the size if it does not fit; otherwise raise.
        has_moments: the optimizer's moments are in memory already.
        device: the device of the model.
        dtype: precision of the matrix products.
        consistency: the consistency training; None for none.

    Raises:
        ResourceError: the micro-batch does not fit, or not even a single pair does.
    """
    while True:
        batches = largest_micro_batches(sampler)
        try:
            for batch in batches:
                _try(model, batch, consistency, has_moments=has_moments, device=device, dtype=dtype)
            return sampler
        except (RuntimeError, MemoryError) as error:
            model.zero_grad(set_to_none=True)
            if not ran_out_of_memory(error):
                if undo_compilation(model, error):
                    continue
                raise
            smallest = max(batch.target_out.shape[1] for batch in batches)
            if not may_shrink or sampler.micro_batch <= smallest:
                raise out_of_memory_error(device) from error
        sampler = dataclasses.replace(sampler, micro_batch=sampler.micro_batch // 2)
        logger.info(
            "%s: out of memory; using micro-batches of %d target tokens",
            device,
            sampler.micro_batch,
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()


def largest_micro_batches(sampler: BatchSampler) -> list[Batch]:
    """Return the micro-batches of the first pool with most positions or most attention scores."""
    text = sampler.text(0, 0)
    source, target = text.source.lengths, text.target.lengths
    parts = [
        part
        for batch in sampler.order.batches(0, 0)
        for part in sampler.split(batch, text)
    ]  # fmt: skip
    sizes = [(len(part), int(source[part].max()), int(target[part].max())) for part in parts]
    if not parts:  # the weights of the corpora may leave no pair for this epoch
        return []
    positions = [rows * (s + t) for rows, s, t in sizes]
    scores = [rows * (s * s + t * t + s * t) for rows, s, t in sizes]
    largest = {positions.index(max(positions)), scores.index(max(scores))}
    return [sampler.batch(parts[index], text) for index in sorted(largest)]


def out_of_memory_error(device: torch.device) -> ResourceError:
    """Return the error for a device without enough memory."""
    hint = (
        "use smaller micro-batches, such as `--set training.micro_batch=1024`; updates keep their "
        "size"
    )
    return ResourceError(f"{device}: out of memory", hint=hint)


def _try(
    model: Transformer,
    batch: Batch,
    consistency: Consistency | None,
    *,
    has_moments: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    num_moments = 0 if has_moments else 2  # Adam's mean and variance
    moments = [torch.empty_like(p) for p in model.parameters() for _ in range(num_moments)]
    model.noise.seed(0, device)
    with autocast(device, dtype):
        if consistency is None:
            loss, _ = batch_loss(model, batch.to(device), label_smoothing=0.1)
        else:
            loss, *_ = consistency_loss(model, batch.to(device), consistency, label_smoothing=0.1)
    loss.backward()  # type: ignore[no-untyped-call]  # PyTorch declares it without types
    model.zero_grad(set_to_none=True)
    del moments


@dataclass(slots=True)
class MemoryLimit:
    """The positions that fit into memory in one pass, lowered whenever a batch does not fit.

    A batch is halved, between pairs, until each part fits. The parts keep the padded width and the
    dropout of the batch, so their gradients add up to its own, up to rounding.
    """

    max_positions_per_pass: int = 0  # sum of both sides, padding included; 0 for no limit
    num_splits: int = 0  # the number of times that it was lowered

    def split(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """Yield the row range, as start and stop, of each part of a batch."""
        num_rows = len(batch.source)
        yield from self._halve(0, num_rows, _num_positions(batch) // num_rows)

    def lower(self, batch: Batch, rows: int, device: torch.device) -> None:
        """Lower the limit after `rows` rows of a batch did not fit; warn the first time.

        Raises:
            ResourceError: not even a single pair fits.
        """
        width = _num_positions(batch) // len(batch.source)
        if rows == 1:
            sides = f"{batch.source.shape[1]} source and {batch.target_out.shape[1]} target tokens"
            raise ResourceError(
                f"{device}: out of memory for a single pair, of {sides} with padding",
                hint="drop longer pairs by `--max-length`, or train a smaller model",
            )
        self.max_positions_per_pass = (rows + 1) // 2 * width
        if not self.num_splits:
            logger.warning("%s: out of memory; splitting batches, with the same results", device)
        self.num_splits += 1

    def share(self, parallel: Parallel) -> None:
        """Apply the lowest limit of all ranks to each of them."""
        limit, self.num_splits = parallel.all_max(
            [-(self.max_positions_per_pass or _UNLIMITED), self.num_splits]
        )
        self.max_positions_per_pass = -limit % _UNLIMITED

    def _halve(self, start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
        rows, limit = stop - start, self.max_positions_per_pass
        if rows == 1 or not limit or rows * width <= limit:
            yield start, stop
            return
        middle = start + (rows + 1) // 2
        yield from self._halve(start, middle, width)
        yield from self._halve(middle, stop, width)


def _num_positions(batch: Batch) -> int:
    return batch.source.numel() + batch.target_out.numel()
