"""The training loop: a generator of what happened, for others to show and to save."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tfm_cli.config import RunConfig
from tfm_cli.errors import DivergedError
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.wrapping import local
from tfm_cli.training.learner import Learner
from tfm_cli.training.optim import MovingAverage
from tfm_cli.training.plan import Planner, made_ready
from tfm_cli.training.state import TrainState
from tfm_cli.training.update import UpdateStats, refuse_diverged, update
from tfm_cli.training.validate import Validation, is_better


@dataclass(frozen=True, slots=True)
class Logged:
    """Progress since the line before it."""

    update: int
    epoch: int  # from 1
    loss: float  # negative log-likelihood of a target piece
    learn_rate: float
    pieces_per_second: float  # target pieces, validation excluded
    gradient_norm: float
    seconds: float  # trained so far, over all runs


@dataclass(frozen=True, slots=True)
class Validated:
    """The model was judged."""

    update: int
    epoch: int  # from 1
    validation: Validation
    is_best: bool
    counted: bool  # False off schedule: it leaves patience and best score as they were
    seconds: float  # trained so far, over all runs


@dataclass(frozen=True, slots=True)
class SaveDue:
    """Now is the time to write a checkpoint; the state is what it should hold."""

    update: int
    is_last: bool = False  # whether training ends after it


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why training ended, in words; it is the last event."""

    reason: str
    is_complete: bool  # False where the same command would go on
    validate_first: bool  # whether to judge the last weights before the end


Event = Logged | Validated | SaveDue | Stopped


def train(
    learner: Learner,
    planner: Planner,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage,
    state: TrainState,
    config: RunConfig,
    *,
    validate: Callable[[], Validation] | None,
    interrupted: Callable[[], Stopped | None],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Event]:
    """Train until a reason to stop, yielding what happened after it happened.

    Between two updates the order is: progress, validation, checkpoint, stop. All that decides on
    results is in `state`, so going on from a checkpoint equals never having stopped.

    Args:
        learner: its model is trained in place. Where it has several processes, each of them runs
            this and yields the same events, but for times.
        planner: gives the batches of each update.
        optimizer: of the model's parameters.
        average: moving average of the weights, which is what gets validated.
        state: where the run stands; changed in place.
        config: all settings.
        validate: judges the model's present weights; None without validation text.
        interrupted: why to stop now, such as a signal; None to go on.
        device: where the model is.
        dtype: arithmetic of the matrix products.
    """
    settings, metric = config.training, config.validation.metrics[0]
    window = _Window(state, optimizer, learner.parallel)
    # What a CPU computed can be looked at for nothing.
    diverged = None if device.type == "cpu" else torch.zeros((), device=device)
    saved_at = state.update

    def judged(*, counted: bool) -> Validated:
        assert validate is not None
        window.settle()
        refuse_non_finite(state.update, learner, average, optimizer)
        began = time.monotonic()
        with learner.judging(average):
            validation = validate()
        state.train_seconds += time.monotonic() - began
        state.validated_update = state.update
        score = validation.values[metric]
        better = is_better(metric, score, state.best_score)
        if counted and better:
            state.best_score, state.best_update, state.stalled = score, state.update, 0
        elif counted:
            state.stalled += 1
        return Validated(
            state.update, state.epoch + 1, validation, better, counted, state.train_seconds
        )

    def save_due(*, is_last: bool = False) -> SaveDue:
        window.settle()
        refuse_non_finite(state.update, learner, average, optimizer)
        return SaveDue(state.update, is_last)

    learner.model.train()
    with made_ready(lambda: planner.updates(state)) as plans:
        began = time.monotonic()
        for plan in plans:
            state.epoch, state.pool, state.position = plan.epoch, plan.pool, plan.position
            stop = _completed(state, config) or interrupted()
            if stop is not None:
                if stop.validate_first and validate and state.validated_update < state.update:
                    yield judged(counted=False)
                    saved_at = -1  # what was saved does not know of this validation
                if saved_at < state.update:
                    yield save_due(is_last=True)
                yield stop
                return
            stats = update(
                learner,
                plan.micro_batches,
                optimizer,
                average,
                target_pieces=plan.target_pieces,
                number=state.update + 1,
                peak_rate=settings.learn_rate,
                warmup=settings.lr_warmup,
                clip_norm=settings.clip_norm,
                seed=settings.seed,
                device=device,
                dtype=dtype,
                diverged=diverged,
            )
            state.update += 1
            state.world = learner.parallel.world
            state.batches_per_update = planner.batches_per_update
            state.micro_batch = planner.micro_batch
            state.position += plan.num_batches
            state.target_pieces += stats.target_pieces
            seconds = time.monotonic() - began
            state.train_seconds += seconds
            window.add(stats, seconds)

            if state.update % settings.disp_freq == 0:
                yield window.logged()
            if validate is not None and state.update % config.validation.freq == 0:
                yield judged(counted=True)
            if state.update % settings.save_freq == 0:
                saved_at = state.update
                yield save_due()
            began = time.monotonic()


def _completed(state: TrainState, config: RunConfig) -> Stopped | None:
    settings, patience = config.training, config.validation.early_stopping
    reason = ""
    if settings.max_updates and state.update >= settings.max_updates:
        reason = f"{_many(state.update, 'update')} made (--max-updates)"
    elif settings.max_epochs and state.epoch >= settings.max_epochs:
        reason = f"{_many(state.epoch, 'epoch')} made (--max-epochs)"
    elif patience and state.stalled >= patience:
        metric = config.validation.metrics[0]
        stalled = _many(state.stalled, "validation")
        reason = f"{stalled} without a better {metric} (--early-stopping)"
    return Stopped(reason, is_complete=True, validate_first=True) if reason else None


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def refuse_non_finite(
    update: int, learner: Learner, average: MovingAverage, optimizer: torch.optim.Optimizer
) -> None:
    """Raise a DivergedError if a weight, its average or a moment of it is no finite number.

    Such weights must be neither judged nor saved. All processes raise it, whoever has them.
    """
    tensors = [*learner.model.parameters(), *average.weights.values()]
    tensors += [moment for table in optimizer.state.values() for moment in table.values()]
    found = torch.stack([local(tensor).isfinite().all() for tensor in tensors])
    if any(learner.parallel.highest([not bool(found.all())])):
        raise DivergedError(
            f"update {update}: there are weights that are no finite numbers",
            hint="lower `--learn-rate` or lengthen `--lr-warmup`, and start again",
        )


class _Window:
    """Sums since the last progress line; they are read and added up only when they are needed."""

    def __init__(
        self, state: TrainState, optimizer: torch.optim.Optimizer, parallel: Parallel
    ) -> None:
        self._state = state
        self._parallel = parallel
        self._optimizer = optimizer
        self._unread: list[UpdateStats] = []
        self._last: UpdateStats | None = None

    def add(self, stats: UpdateStats, seconds: float) -> None:
        self._unread.append(stats)
        self._last = stats
        self._state.window_pieces += stats.target_pieces
        self._state.window_seconds += seconds

    def settle(self) -> None:
        """Bring the state up to date.

        Raises:
            DivergedError: an update since the last time was none.
        """
        refuse_diverged(self._unread, self._optimizer, self._parallel)
        for nll in self._parallel.sums([float(stats.nll) for stats in self._unread]):
            self._state.window_nll += nll
        self._unread.clear()

    def logged(self) -> Logged:
        """The progress line that is due; the next window begins."""
        assert self._last is not None
        self.settle()
        state = self._state
        event = Logged(
            update=state.update,
            epoch=state.epoch + 1,
            loss=state.window_nll / state.window_pieces,
            learn_rate=self._last.learn_rate,
            pieces_per_second=state.window_pieces / max(state.window_seconds, 1e-9),
            gradient_norm=float(self._last.gradient_norm),
            seconds=state.train_seconds,
        )
        state.window_nll, state.window_pieces, state.window_seconds = 0.0, 0, 0.0
        return event
