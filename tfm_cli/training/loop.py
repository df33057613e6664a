"""The training loop: a generator of events that its caller displays and saves."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import torch

from tfm_cli.config.settings import RunConfig
from tfm_cli.console import counted
from tfm_cli.decoding.interface import NonFiniteScoresError
from tfm_cli.errors import DivergedError, OutOfTime, SignalReceived
from tfm_cli.files.faults import reach
from tfm_cli.parallel.data_parallel import local_shard
from tfm_cli.training.batches import BatchSampler, UpdateBatches, prefetched
from tfm_cli.training.events import (
    CheckpointDue,
    DecayBegan,
    Event,
    Logged,
    Stopped,
    Unvalidated,
    Updated,
    Validated,
)
from tfm_cli.training.memory import MemoryLimit
from tfm_cli.training.optimizer import MovingAverage
from tfm_cli.training.parallel_model import ParallelModel
from tfm_cli.training.rank_checks import check_weights_agree
from tfm_cli.training.schedule import planned_last_update, schedule_of
from tfm_cli.training.state import TrainState
from tfm_cli.training.statistics import HINT, TrainingStatistics
from tfm_cli.training.update import UpdateOptions, UpdateStats, update
from tfm_cli.training.validation import Validation, is_better

# A learning rate that was halved is doubled again after this many good updates in a row.
RECOVERY_UPDATES = 1000


def train(
    parallel_model: ParallelModel,
    sampler: BatchSampler,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage,
    state: TrainState,
    config: RunConfig,
    *,
    validate: Callable[[], Validation] | None,
    interrupted: Callable[[], Stopped | None],
) -> Iterator[Event]:
    """Train until there is a reason to stop, and yield each event after it happened.

    Between two updates the order is: progress, validation, checkpoint, stop. All counters on which
    results depend are in `state`, so a resumed run equals an uninterrupted one.

    Args:
        parallel_model: trained in place. With several processes, each runs this loop and yields
            the same events, except for times.
        sampler: provides the batches of each update.
        optimizer: the optimizer of the model's parameters.
        average: the moving average of the weights, which is validated instead of them.
        state: the position and counters of the run; changed in place.
        config: all settings.
        validate: validates the model's current weights; None without validation text. If it raises
            OutOfTime, training ends as if the validation had not begun, and the resumed run starts
            with it if it was due.
        interrupted: returns the reason to stop now, such as a signal; None to continue.
    """
    statistics = TrainingStatistics(
        state,
        config.training,
        parallel_model.parallel,
        vocab_size=parallel_model.model.output_weight.shape[0],
    )
    loop = _Loop(
        parallel_model=parallel_model,
        sampler=sampler,
        optimizer=optimizer,
        average=average,
        state=state,
        config=config,
        validate=validate,
        interrupted=interrupted,
        statistics=statistics,
        memory_limit=MemoryLimit(state.max_positions_per_pass, state.memory_splits),
        first_update=state.update,
        saved_update=state.update,
    )
    yield from loop.run()


@dataclass(slots=True, kw_only=True)
class _Loop:
    """The state of a training loop; see `train` for its arguments."""

    parallel_model: ParallelModel
    sampler: BatchSampler
    optimizer: torch.optim.Optimizer
    average: MovingAverage
    state: TrainState
    config: RunConfig
    validate: Callable[[], Validation] | None
    interrupted: Callable[[], Stopped | None]
    statistics: TrainingStatistics
    memory_limit: MemoryLimit
    first_update: int  # `state.update` at the start of this process
    saved_update: int  # of the newest checkpoint; -1 if it lacks a later validation
    began: float = field(default_factory=time.monotonic)  # start of the current update

    def run(self) -> Iterator[Event]:
        """Yield the events of all updates."""
        self.parallel_model.model.train()
        with prefetched(lambda: self.sampler.updates(self.state)) as updates:
            try:
                yield from self._train(updates)
            except OutOfTime as error:
                yield from self._stop_during_validation(error)

    def _train(self, updates: Iterator[UpdateBatches]) -> Iterator[Event]:
        state, parallel = self.state, self.parallel_model.parallel
        if self._has_pending_validation():
            yield self._validate(counted=True)
            yield self._checkpoint()  # the newest one lacks the validation
        self.began = time.monotonic()
        for batches in updates:
            parallel.set_activity(f"in update {state.update + 1}", has_deadline=True)
            state.epoch, state.pool, state.position = batches.epoch, batches.pool, batches.position
            former_end = state.last_update
            stop = completed(state, self.config) or self.interrupted()
            if state.last_update != former_end:
                yield from self._begin_decay()
            if stop is not None:
                parallel.set_activity(f"at the end, after update {state.update}")
                yield from self._stop(stop)
                return
            reach("update")
            is_skipped = yield from self._update(batches)
            yield from self._report(is_skipped=is_skipped)
            self.began = time.monotonic()

    def _update(self, batches: UpdateBatches) -> Generator[Event, None, bool]:
        """Make an update, and return True if it was skipped."""
        state = self.state
        retries = self.config.training.bad_updates == "retry"
        waits = retries or state.rate_halvings > 0 or _is_check_free(self.parallel_model.device)
        stats = self._attempt(batches, waits=waits)
        if retries and not stats.is_finite():
            self.statistics.add(stats, batches, 0.0, is_retried=True)
            yield from self.statistics.flush()
            state.rate_halvings += 1
            stats = self._attempt(batches, waits=waits, attempt=1)
        is_skipped = waits and not stats.is_finite()
        _adapt_rate(state, is_skipped=is_skipped, retries=retries)
        state.update += 1
        # Skipped updates count too: to detect them, the CPU would have to wait for the GPU.
        self.average.include(state.update)
        state.world_size = self.parallel_model.parallel.world_size
        state.batches_per_update = self.sampler.batches_per_update
        state.micro_batch = self.sampler.micro_batch
        state.position += batches.num_batches
        seconds = time.monotonic() - self.began
        state.train_seconds += seconds
        self.statistics.add(stats, batches, seconds)
        yield self._updated(stats, batches, seconds)
        return is_skipped

    def _updated(self, stats: UpdateStats, batches: UpdateBatches, seconds: float) -> Updated:
        """Return the event of an update; reading it must not make the CPU wait for a GPU."""
        parallel_model, loss = self.parallel_model, None
        if parallel_model.parallel.world_size == 1 and _is_check_free(parallel_model.device):
            mean = float(stats.nll) / stats.target_tokens
            loss = mean if math.isfinite(mean) else None
        return Updated(
            update=self.state.update,
            epoch=batches.epoch + 1,
            target_tokens=stats.target_tokens,
            loss=loss,
            update_seconds=seconds,
            seconds=self.state.train_seconds,
        )

    def _attempt(self, batches: UpdateBatches, *, waits: bool, attempt: int = 0) -> UpdateStats:
        state, settings = self.state, self.config.training
        number = state.update + 1
        options = UpdateOptions(
            number=number,
            learn_rate=schedule_of(settings, state).rate(number) * 0.5**state.rate_halvings,
            clip_norm=settings.clip_norm,
            seed=settings.seed,
            attempt=attempt,
            wait_for_gradient=waits,
        )
        stats = update(self.parallel_model, batches, self.optimizer, options, self.memory_limit)
        # All ranks use the same limit, since a checkpoint holds only one.
        parallel = self.parallel_model.parallel
        if parallel.world_size > 1 and not self.parallel_model.is_sharded:
            self.memory_limit.share(parallel)
        state.max_positions_per_pass = self.memory_limit.max_positions_per_pass
        state.memory_splits = self.memory_limit.num_splits
        return stats

    def _report(self, *, is_skipped: bool) -> Iterator[Event]:
        """Yield the events that are due after an update."""
        state, settings = self.state, self.config.training
        logs = state.update % settings.disp_freq == 0
        validates = self.validate is not None and state.update % self.config.validation.freq == 0
        # A checkpoint may be overdue, since bad updates postpone it.
        saves = state.update // settings.save_freq > self.saved_update // settings.save_freq
        saves = saves or (validates and settings.keep_best > 0)
        if is_skipped or logs or validates or saves:
            yield from self.statistics.flush()
        if logs:
            yield self._logged()
        if validates:
            yield self._validate(counted=True)
        # In a series of bad updates, a checkpoint would displace one from before them.
        if saves and not (state.high_loss_in_a_row or state.nonfinite_in_a_row):
            self.saved_update = state.update
            yield self._checkpoint()

    def _logged(self) -> Logged:
        state, last = self.state, self.statistics.last
        assert last is not None
        tokens = state.window_tokens
        has_divergence = self.parallel_model.consistency is not None
        event = Logged(
            update=state.update,
            epoch=state.epoch + 1,
            loss=state.window_nll / tokens if tokens else math.nan,
            learn_rate=last.learn_rate,
            tokens_per_second=tokens / max(state.window_seconds, 1e-9),
            gradient_norm=float(last.gradient_norm),
            seconds=state.train_seconds,
            consistency=state.window_divergence / tokens if has_divergence and tokens else None,
        )
        state.window_divergence = 0.0
        state.window_nll, state.window_tokens, state.window_seconds = 0.0, 0, 0.0
        return event

    def _validate(self, *, counted: bool) -> Validated:
        """Validate the averaged weights.

        Raises:
            DivergedError: weights or scores are not finite.
            OutOfTime: the time was up before the validation ended.
        """
        state = self.state
        assert self.validate is not None
        self.parallel_model.parallel.set_activity(f"in the validation after update {state.update}")
        self._check_weights()
        began = time.monotonic()
        try:
            with self.parallel_model.averaged_weights(self.average):
                validation = self.validate()
        except NonFiniteScoresError as error:
            raise DivergedError(
                f"the validation after update {state.update}: {error}",
                hint=HINT,
                since=state.update,
            ) from error
        state.validation_seconds = time.monotonic() - began
        state.train_seconds += state.validation_seconds
        state.validated_update = state.update
        is_best = is_better(validation.values, state.best_score, state.best_others)
        if counted:
            state.scored_update, state.last_scores = state.update, [*validation.values.values()]
        if counted and is_best:
            state.best_score, *state.best_others = validation.values.values()
            state.best_update, state.stalled = state.update, 0
        elif counted:
            state.stalled += 1
        return Validated(
            state.update, state.epoch + 1, validation, is_best, counted, state.train_seconds
        )

    def _checkpoint(self, *, is_last: bool = False) -> CheckpointDue:
        update = self.state.update
        self.parallel_model.parallel.set_activity(f"at the checkpoint after update {update}")
        self._check_weights()
        return CheckpointDue(update, is_last)

    def _check_weights(self) -> None:
        parts = self.parallel_model, self.average, self.optimizer
        check_finite(self.state.update, *parts)
        check_weights_agree(self.state.update, *parts)

    def _stop(self, stop: Stopped) -> Iterator[Event]:
        """Yield the last validation and checkpoint, if they are due, and the reason to stop."""
        state = self.state
        if stop.validate_first and self.validate and state.validated_update < state.update:
            yield from self.statistics.flush()
            yield self._validate(counted=False)
            self.saved_update = -1
        if self.saved_update < state.update:
            yield from self.statistics.flush()
            yield self._checkpoint(is_last=True)
        yield stop

    def _stop_during_validation(self, error: OutOfTime) -> Iterator[Event]:
        """Yield a checkpoint of the state before the validation, and the reason to stop."""
        state = self.state
        is_late = not isinstance(error, SignalReceived)
        needs_more = ", which needs more" if is_late and state.update == self.first_update else ""
        if state.best_score is None:
            yield Unvalidated(state.update)
        if self.saved_update < state.update:
            yield self._checkpoint(is_last=True)
        reason = f"{error} during the validation{needs_more}"
        yield Stopped(reason, is_complete=False, validate_first=False)

    def _begin_decay(self) -> Iterator[Event]:
        """Yield the event of a decay that begins now, and a checkpoint, so that it stays the same.

        The checkpoint is put off in a series of bad updates, as in `_report`.
        """
        state = self.state
        yield from self.statistics.flush()
        yield DecayBegan(state.update, state.epoch + 1, state.last_update, state.train_seconds)
        if not (state.high_loss_in_a_row or state.nonfinite_in_a_row):
            self.saved_update = state.update
            yield self._checkpoint()

    def _has_pending_validation(self) -> bool:
        """Return True if the run stopped during a validation that was due by schedule."""
        state, freq = self.state, self.config.validation.freq
        is_due = state.update > 0 and state.update % freq == 0
        return self.validate is not None and is_due and state.validated_update < state.update


def _is_check_free(device: torch.device) -> bool:
    """Return True if a gradient can be checked without waiting for the device."""
    return device.type == "cpu"


def _adapt_rate(state: TrainState, *, is_skipped: bool, retries: bool) -> None:
    """Halve the learning rate after a skipped update; double it again after many good ones."""
    if is_skipped:
        state.rate_halvings += retries
        state.good_since_halving = 0
    elif state.rate_halvings:
        state.good_since_halving += 1
        if state.good_since_halving == RECOVERY_UPDATES:
            state.rate_halvings -= 1
            state.good_since_halving = 0


def completed(state: TrainState, config: RunConfig) -> Stopped | None:
    """Return the reason why a run is complete in this state; None if it is not."""
    settings, patience = config.training, config.validation.early_stopping
    reason, made = "", counted(state.update, "update")
    # A decay ends with the updates that were planned for the epochs.
    planned = planned_last_update(settings, state)
    if settings.max_updates and state.update >= settings.max_updates:
        reason = f"{made} made (--max-updates)"
    elif planned and state.update >= planned:
        flag = "--max-epochs" if settings.max_epochs else "--max-time"
        reason = f"{made} made ({flag})"
    elif settings.max_epochs and not planned and state.epoch >= settings.max_epochs:
        reason = f"{counted(state.epoch, 'epoch')} made (--max-epochs)"
    elif patience and state.stalled >= patience:
        metric = config.validation.metrics[0]
        stalled = counted(state.stalled, "validation")
        reason = f"{stalled} without a better {metric} (--early-stopping)"
    return Stopped(reason, is_complete=True, validate_first=True) if reason else None


def check_finite(
    update: int,
    parallel_model: ParallelModel,
    average: MovingAverage,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Raise a DivergedError, on all ranks, if a weight, an average or a moment is not finite.

    Such weights must be neither validated nor saved.
    """
    tensors = [*parallel_model.model.parameters(), *average.weights.values()]
    tensors += [moment for table in optimizer.state.values() for moment in table.values()]
    are_finite = torch.stack([local_shard(tensor).isfinite().all() for tensor in tensors])
    if any(parallel_model.parallel.all_max([not bool(are_finite.all())])):
        raise DivergedError(f"update {update}: there are non-finite weights", hint=HINT)
