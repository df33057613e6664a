"""How much of a batch a device computes at once: tried on the largest batches before the first."""

import dataclasses
import logging

import torch

from tfm_cli.arithmetic import arithmetic, ran_out_of_memory
from tfm_cli.config import TrainingConfig
from tfm_cli.corpus.batch import Batch
from tfm_cli.errors import ResourceError
from tfm_cli.model.transformer import Transformer
from tfm_cli.presets import PRESETS, SAMPLE
from tfm_cli.training.compiling import undo_compilation
from tfm_cli.training.learner import batch_loss
from tfm_cli.training.plan import Planner

logger = logging.getLogger(__name__)

# On a CPU larger products are no faster, while less padding and less memory are worth something.
CPU_MICRO_BATCH = 2048


def settled_batches(settings: TrainingConfig, preset: str) -> TrainingConfig:
    """The settings with `max_tokens` as a number.

    0 takes the preset's, and all batches of an update as one, so that what is computed at once is
    bounded by the device alone while an update stays as large as it was.
    """
    if settings.max_tokens:
        return settings
    base = "tiny" if preset == SAMPLE else preset
    tokens = PRESETS[base]["training"].get("max_tokens", TrainingConfig.max_tokens)
    assert isinstance(tokens, int)
    tokens *= settings.update_freq
    return dataclasses.replace(settings, max_tokens=tokens, update_freq=1)


def first_micro_batch(settings: TrainingConfig, device: torch.device, *, before: int = 0) -> int:
    """The target pieces to compute at once, as asked for, or as a good guess.

    Args:
        settings: whose `max_tokens` is settled.
        device: where to compute.
        before: what fitted when the run was last going on, 0 if it was not. A GPU takes that, since
            dropout depends on it, and its free memory may be another now.
    """
    if settings.micro_batch:
        return settings.micro_batch
    return CPU_MICRO_BATCH if device.type == "cpu" else before or settings.max_tokens


def fit(
    planner: Planner,
    model: Transformer,
    *,
    may_shrink: bool,
    has_moments: bool = False,
    device: torch.device,
    dtype: torch.dtype,
) -> Planner:
    """The planner with micro-batches whose largest fits the memory of the device.

    They are tried forwards and backwards, with room for the optimizer's moments, and nothing is
    learned from them. Too large ones are halved.

    Args:
        planner: as it is asked for.
        model: on the device, before its first update in this process.
        may_shrink: halve what does not fit; else it is an error.
        has_moments: whether the optimizer's moments are in memory already.
        device: where the model is.
        dtype: arithmetic of the matrix products.

    Raises:
        ResourceError: they do not fit, or not even a single pair does.
    """
    while True:
        parts = largest_parts(planner)
        try:
            for batch in parts:
                _try(model, batch, has_moments=has_moments, device=device, dtype=dtype)
            return planner
        except (RuntimeError, MemoryError) as error:
            model.zero_grad(set_to_none=True)
            if not ran_out_of_memory(error):
                if undo_compilation(model, error):
                    continue
                raise
            smallest = max(batch.target_out.shape[1] for batch in parts)
            if not may_shrink or planner.micro_batch <= smallest:
                raise out_of_memory(device) from error
        planner = dataclasses.replace(planner, micro_batch=planner.micro_batch // 2)
        logger.info(
            "%s: out of memory; computing %d target pieces at once", device, planner.micro_batch
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()


def largest_parts(planner: Planner) -> list[Batch]:
    """The micro-batches of the first pool that need most memory: for layers, and for attention."""
    source, target = planner.store.source.lengths, planner.store.target.lengths
    parts = [
        part
        for batch in planner.order.batches(0, 0)
        for part in planner.parts(batch)
    ]  # fmt: skip
    sizes = [(len(part), int(source[part].max()), int(target[part].max())) for part in parts]
    if not parts:  # weights may leave nothing for this epoch
        return []
    places = [rows * (s + t) for rows, s, t in sizes]
    scores = [rows * (s * s + t * t + s * t) for rows, s, t in sizes]
    chosen = {places.index(max(places)), scores.index(max(scores))}
    return [planner.batch(parts[index]) for index in sorted(chosen)]


def out_of_memory(device: torch.device) -> ResourceError:
    """What a user should be told."""
    hint = "compute less at once, such as `--set training.micro_batch=1024`; updates stay as large"
    return ResourceError(f"{device}: out of memory", hint=hint)


def _try(
    model: Transformer, batch: Batch, *, has_moments: bool, device: torch.device, dtype: torch.dtype
) -> None:
    lacking = 0 if has_moments else 2  # Adam's mean and variance
    moments = [torch.empty_like(p) for p in model.parameters() for _ in range(lacking)]
    model.noise.seed(0)
    with arithmetic(device, dtype):
        loss, _ = batch_loss(model, batch.to(device), label_smoothing=0.1)
    loss.backward()  # type: ignore[no-untyped-call]  # PyTorch declares it without types
    model.zero_grad(set_to_none=True)
    del moments
