"""Learning-rate schedules: the rate of an update as a function of its number.

Nothing here imports NumPy or PyTorch.
"""

import json
import math
import zlib
from dataclasses import dataclass

from tfm_cli.config.settings import (
    INVERSE_SQRT,
    WARMUP_STABLE_DECAY,
    RunConfig,
    TrainingConfig,
)
from tfm_cli.errors import ConfigError
from tfm_cli.training.state import TrainState


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A linear warm-up to the peak rate, and a decay.

    Args:
        name: the shape of the decay: `inverse-sqrt`, `linear`, `cosine` or `warmup-stable-decay`.
        peak: the rate at the end of the warm-up.
        warmup: updates of the warm-up, at least 1.
        decay_start: the last update at the peak rate, if the decay has an end.
        last_update: the last update of the run, if the decay has an end. The rate would be 0 at
            the next one.
    """

    name: str = INVERSE_SQRT
    peak: float
    warmup: int
    decay_start: int = 0
    last_update: int = 0

    def rate(self, update: int) -> float:
        """Return the learning rate of update 1, 2, ….

        With the inverse square root and peak = width**-0.5 * warmup**-0.5, it is the rate of
        Vaswani et al. 2017, equation 3: width**-0.5 * min(update**-0.5, update * warmup**-1.5).

        Sources: cosine: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts;
        warmup-stable-decay: Hu et al. 2024, arXiv:2404.06395, with the decay 1 - sqrt of Hägele et
        al. 2024, arXiv:2405.18392, which they found better than a linear one.
        """
        if update <= self.warmup:
            return self.peak * (update / self.warmup)
        if self.name == INVERSE_SQRT:
            return self.peak * math.sqrt(self.warmup / update)
        if update <= self.decay_start or not self.last_update:
            return self.peak
        update = min(update, self.last_update)
        done = (update - self.decay_start) / (self.last_update + 1 - self.decay_start)
        if self.name == "linear":
            return self.peak * (1 - done)
        if self.name == "cosine":
            return self.peak * (1 + math.cos(math.pi * done)) / 2
        return self.peak * (1 - math.sqrt(done))


def schedule_of(settings: TrainingConfig, state: TrainState) -> Schedule:
    """Return the schedule of a run, as its settings and its plan determine it."""
    last = min(
        filter(None, (settings.max_updates, planned_last_update(settings, state))), default=0
    )
    decay_start = settings.lr_warmup
    if settings.schedule == WARMUP_STABLE_DECAY:
        planned = state.decay_start if _is_planned(settings, state) else 0
        decay_start = max(decay_start, planned or last - round(settings.decay_ratio * last))
    return Schedule(
        name=settings.schedule,
        peak=settings.learn_rate,
        warmup=settings.lr_warmup,
        decay_start=decay_start,
        last_update=last if last > decay_start else 0,
    )


def planned_last_update(settings: TrainingConfig, state: TrainState) -> int:
    """Return the last update that epochs or the time limit have fixed; 0 if there is none."""
    return state.last_update if _is_planned(settings, state) else 0


def ends_by_time(settings: TrainingConfig) -> bool:
    """Return True if the decay has its end by the time limit, and not by updates or epochs."""
    by_count = settings.max_updates or settings.max_epochs
    return settings.schedule == WARMUP_STABLE_DECAY and not by_count


def check_has_end(settings: TrainingConfig, state: TrainState) -> None:
    """Raise a ConfigError if the decay needs the end of the run, and there is none."""
    has_end = settings.max_updates or settings.max_epochs or planned_last_update(settings, state)
    by_time = ends_by_time(settings)
    if settings.schedule == INVERSE_SQRT or has_end or (by_time and settings.max_time):
        return
    flags = "`--max-updates` or `--max-epochs`"
    if by_time:
        flags = "`--max-updates`, `--max-epochs` or `--max-time`"
    raise ConfigError(
        f"the schedule `{settings.schedule}` decays until the end of the run, and no end is given",
        hint=f"give it with {flags}",
    )


def plan_end(
    state: TrainState, config: RunConfig, *, updates_per_epoch: int, epochs: float, batches: int
) -> None:
    """Fix the last update of a run that ends by epochs, in its state; all ranks fix the same.

    What was fixed before holds as long as nothing changes that it depends on.

    Args:
        state: of the run; changed in place.
        config: all settings.
        updates_per_epoch: of the whole corpus; estimated in a corpus of several pools.
        epochs: passes over the corpus so far, with the part of the current one.
        batches: per update, on all ranks.
    """
    settings = config.training
    same_batches = not settings.max_epochs or state.batches_per_update in (0, batches)
    if _is_planned(settings, state) and same_batches:
        return
    state.plan_crc, state.decay_start, state.last_update = _plan_crc(settings, state), 0, 0
    if settings.schedule != INVERSE_SQRT and settings.max_epochs:
        left = max(0.0, settings.max_epochs - epochs)
        state.last_update = state.update + math.ceil(left * updates_per_epoch)


def _is_planned(settings: TrainingConfig, state: TrainState) -> bool:
    """Return True if the plan in the state is one for these settings."""
    return state.plan_crc == _plan_crc(settings, state)


def _plan_crc(settings: TrainingConfig, state: TrainState) -> int:
    """Return the CRC-32 of what the plan depends on; 0 if there is nothing to plan."""
    if settings.schedule == INVERSE_SQRT:
        return 0
    values = [settings.schedule, settings.max_updates, settings.max_epochs, settings.decay_ratio]
    if settings.max_epochs:  # its updates depend on the size of the batches
        values.append(state.batch_tokens)
    return zlib.crc32(json.dumps(values).encode())
