"""The section `memory`: training splits batches that do not fit, with the same results."""

import os
from contextlib import AbstractContextManager

import torch

from tests.bench.train_sides import Tfm
from tests.bench.train_works import Shape
from tests.gpu.section import Job
from tests.gpu.updates import Batches, largest_difference, losses, training
from tfm_cli.files import faults
from tfm_cli.training.memory import fit_micro_batch

UPDATES = 10
# Gradients are added up in other parts, and Adam divides by small ones.
MAX_LOSS_DIFFERENCE = 1e-3
_SHARE = 0.6  # of the memory that a micro-batch needs, which the cap leaves
_DROPOUT = 0.1  # the parts of a micro-batch have its dropout


def report(job: Job) -> None:
    """Train without a cap and with one, and then fit the micro-batch before the first update.

    On a CPU, which has no such cap, a failpoint reports a lack of memory instead.
    """
    shape, max_tokens = Shape(512, 6, 8, 2048, 37_000, updates=UPDATES), 25_000
    if job.is_tiny:
        shape, max_tokens = Shape(32, 1, 2, 64, 500, updates=UPDATES), 256
    batches = Batches.draw(
        pairs=29_000 if max_tokens > 10_000 else 500,
        vocab_size=shape.vocab_size, max_tokens=max_tokens, number=4,
    )  # fmt: skip

    with _training(job, shape, batches, max_tokens) as side:
        expected = losses(side, 1)
        kept = _allocated(job)  # weights, moments, and what stays otherwise
        expected += losses(side, UPDATES - 1)
        peak = torch.cuda.max_memory_allocated() if job.is_gpu else 0
        job.add(
            what="without a cap", last_loss=expected[-1], splits=side.memory_limit.num_splits,
            peak_MiB=peak / (1 << 20) if job.is_gpu else None,
        )  # fmt: skip

    cap = kept + _SHARE * (peak - kept)
    if job.is_gpu:
        total = torch.cuda.get_device_properties(job.device).total_memory
        torch.cuda.set_per_process_memory_fraction(cap / total)
        torch.cuda.reset_peak_memory_stats()
    else:
        os.environ[faults.VARIABLE] = "micro_batch:3=memory,micro_batch:6=memory"
        faults.reset_faults()
    facts = {"cap_MiB": cap / (1 << 20) if job.is_gpu else None}
    with (
        job.attempt(what="capped", **facts),
        _training(job, shape, batches, max_tokens) as side,
    ):
        actual = losses(side, UPDATES)
        splits = side.memory_limit.num_splits
        difference = largest_difference(actual, expected)
        job.add(
            what="capped", last_loss=actual[-1], splits=splits,
            peak_MiB=torch.cuda.max_memory_allocated() / (1 << 20) if job.is_gpu else None, **facts,
            largest_difference=difference, bound=f"{MAX_LOSS_DIFFERENCE:g}, and at least one split",
            holds=splits > 0 and difference <= MAX_LOSS_DIFFERENCE,
        )  # fmt: skip
    if job.is_gpu:
        _fit(job, shape, batches, max_tokens)


def _training(
    job: Job, shape: Shape, batches: Batches, max_tokens: int
) -> AbstractContextManager[Tfm]:
    return training(
        shape, batches, device=job.device, precision="fp32", micro_batch=max_tokens,
        dropout=_DROPOUT,
    )  # fmt: skip


def _allocated(job: Job) -> int:
    if not job.is_gpu:
        return 0
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def _fit(job: Job, shape: Shape, batches: Batches, max_tokens: int) -> None:
    """Halve the micro-batch until it fits under the cap, as before the first update of a run."""
    what = "capped: size of micro-batches before the first update"
    with job.attempt(what=what), _training(job, shape, batches, max_tokens) as side:
        fitted = fit_micro_batch(
            side.sampler, side.model, may_shrink=True, device=side.device, dtype=torch.float32
        )
        job.add(
            what=what, bound=f"less than {max_tokens}", micro_batch=fitted.micro_batch,
            holds=0 < fitted.micro_batch < max_tokens,
        )  # fmt: skip
