"""How much of a batch a device computes at once: tried on the largest batches before the first."""

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tfm_cli.config.presets import PRESETS, SAMPLE
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.batch import Batch
from tfm_cli.errors import ResourceError
from tfm_cli.model.arithmetic import arithmetic, ran_out_of_memory
from tfm_cli.model.transformer import Transformer
from tfm_cli.parallel import Parallel
from tfm_cli.training.batches import Planner
from tfm_cli.training.parallel_model import batch_loss, undo_compilation

logger = logging.getLogger(__name__)


# On a CPU larger products are no faster, while less padding and less memory are worth something.
CPU_MICRO_BATCH = 2048


def resolve_batch_size(settings: TrainingConfig, preset: str) -> TrainingConfig:
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


def initial_micro_batch(settings: TrainingConfig, device: torch.device, *, before: int = 0) -> int:
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
        parts = largest_micro_batches(planner)
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


def largest_micro_batches(planner: Planner) -> list[Batch]:
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


# How much is computed at once after memory did not suffice: batches in parts, to the same end.

_ANY = 1 << 40  # places, more than any memory holds


@dataclass(slots=True)
class MemoryLimit:
    """What memory was found to hold; it changes when something does not fit.

    A batch is cut between pairs, by halves. The parts stay as wide as the whole and have its
    dropout, so their gradients add up to those of the whole but for the order of sums.
    """

    most_places: int = 0  # of both sides, padding included; 0 for any number
    splits: int = 0  # how often it was made smaller

    def parts(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """The rows, from and to, that are computed at once."""
        rows = len(batch.source)
        yield from self._halves(0, rows, _places(batch) // rows)

    def make_smaller(self, batch: Batch, rows: int, device: torch.device) -> None:
        """Let as many rows of a batch not be computed at once again; says so the first time.

        Raises:
            ResourceError: it was a single pair.
        """
        width = _places(batch) // len(batch.source)
        if rows == 1:
            sides = f"{batch.source.shape[1]} source and {batch.target_out.shape[1]} target pieces"
            raise ResourceError(
                f"{device}: out of memory for a single pair, of {sides} with padding",
                hint="drop longer pairs by `--max-length`, or train a smaller model",
            )
        self.most_places = (rows + 1) // 2 * width
        if not self.splits:
            logger.warning("%s: out of memory; computing less at once, to the same end", device)
        self.splits += 1

    def share(self, processes: Parallel) -> None:
        """Let all processes have the room that the one with the least has, as if they went on."""
        most, self.splits = processes.all_max([-(self.most_places or _ANY), self.splits])
        self.most_places = -most % _ANY

    def _halves(self, start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
        rows = stop - start
        if rows == 1 or not self.most_places or rows * width <= self.most_places:
            yield start, stop
            return
        middle = start + (rows + 1) // 2
        yield from self._halves(start, middle, width)
        yield from self._halves(middle, stop, width)


def _places(batch: Batch) -> int:
    return batch.source.numel() + batch.target_out.numel()
