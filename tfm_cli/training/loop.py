"""The training loop: a generator of what happened, for others to show and to save."""

import math
import time
from collections.abc import Callable, Iterator

import torch

from tfm_cli.config.settings import RunConfig
from tfm_cli.decoding.interface import NonFiniteScoresError
from tfm_cli.errors import DivergedError, OutOfTime
from tfm_cli.files.faults import reach
from tfm_cli.parallel.data_parallel import local_shard
from tfm_cli.training.batches import Planner, UpdatePlan, prefetched
from tfm_cli.training.events import CheckpointDue, Event, Logged, Stopped, Unvalidated, Validated
from tfm_cli.training.memory import MemoryLimit
from tfm_cli.training.optimizer import MovingAverage
from tfm_cli.training.parallel_model import ParallelModel
from tfm_cli.training.rank_checks import check_weights_agree
from tfm_cli.training.state import TrainState
from tfm_cli.training.statistics import HINT, Window
from tfm_cli.training.update import UpdateStats, update
from tfm_cli.training.validation import Validation, is_better

# After so many updates in a row that went well, a rate that was halved is doubled again.
RECOVERY_UPDATES = 1000


def train(
    parallel_model: ParallelModel,
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
        parallel_model: trained in place. With several processes, each runs this loop and yields
            the same events, except for times.
        planner: gives the batches of each update.
        optimizer: of the model's parameters.
        average: moving average of the weights, which is what gets validated.
        state: where the run stands; changed in place.
        config: all settings.
        validate: judges the model's present weights; None without validation text. Where it raises
            OutOfTime, training ends as if the validation had not begun, and the run that goes on
            makes it.
        interrupted: why to stop now, such as a signal; None to go on.
        device: where the model is.
        dtype: arithmetic of the matrix products.
    """
    settings = config.training
    vocab_size = parallel_model.model.output_weight.shape[0]
    window = Window(state, settings, parallel_model.parallel, vocab_size=vocab_size)
    room = MemoryLimit(state.most_places, state.memory_splits)
    first = saved_at = state.update
    cut: Stopped | None = None  # by the end of the time, amid a validation

    def made(plan: UpdatePlan, *, waits: bool, attempt: int = 0) -> UpdateStats:
        stats = update(
            parallel_model,
            plan.micro_batches,
            optimizer,
            average,
            target_pieces=plan.target_pieces,
            number=state.update + 1,
            peak_rate=settings.learn_rate * 0.5**state.rate_halvings,
            warmup=settings.lr_warmup,
            clip_norm=settings.clip_norm,
            seed=settings.seed,
            device=device,
            dtype=dtype,
            attempt=attempt,
            waits=waits,
            room=room,
        )
        # A run that goes on has one number for all of them.
        if parallel_model.parallel.world > 1 and not parallel_model.is_sharded:
            room.share(parallel_model.parallel)
        state.most_places, state.memory_splits = room.most_places, room.splits
        return stats

    def logged() -> Logged:
        assert window.last is not None
        pieces = state.window_pieces
        event = Logged(
            update=state.update,
            epoch=state.epoch + 1,
            loss=state.window_nll / pieces if pieces else math.nan,
            learn_rate=window.last.learn_rate,
            pieces_per_second=pieces / max(state.window_seconds, 1e-9),
            gradient_norm=float(window.last.gradient_norm),
            seconds=state.train_seconds,
        )
        state.window_nll, state.window_pieces, state.window_seconds = 0.0, 0, 0.0
        return event

    def judged(*, counted: bool) -> Validated | None:
        """Judge the weights; None where the time was up before it was done."""
        nonlocal cut
        assert validate is not None
        parallel_model.parallel.set_activity(f"in the validation after update {state.update}")
        check_finite(state.update, parallel_model, average, optimizer)
        check_weights_agree(state.update, parallel_model, average, optimizer)
        began = time.monotonic()
        try:
            with parallel_model.averaged_weights(average):
                validation = validate()
        except NonFiniteScoresError as error:
            raise DivergedError(
                f"the validation after update {state.update}: {error}",
                hint=HINT,
                since=state.update,
            ) from error
        except OutOfTime as stop:
            needs = "" if state.update > first else ", which needs more"
            cut = Stopped(
                f"{stop} amid the validation{needs}", is_complete=False, validate_first=False
            )
            return None
        state.train_seconds += time.monotonic() - began
        state.validated_update = state.update
        better = is_better(validation.values, state.best_score, state.best_others)
        if counted and better:
            state.best_score, *state.best_others = validation.values.values()
            state.best_update, state.stalled = state.update, 0
        elif counted:
            state.stalled += 1
        return Validated(
            state.update, state.epoch + 1, validation, better, counted, state.train_seconds
        )

    def save_due(*, is_last: bool = False) -> CheckpointDue:
        parallel_model.parallel.set_activity(f"at the checkpoint after update {state.update}")
        check_finite(state.update, parallel_model, average, optimizer)
        check_weights_agree(state.update, parallel_model, average, optimizer)
        return CheckpointDue(state.update, is_last)

    def cut_off() -> Iterator[Event]:
        """The end of the time amid a validation.

        What is saved stands where the validation began, at its update and in its epoch.
        """
        assert cut is not None
        if state.best_score is None:
            yield Unvalidated(state.update)
        if saved_at < state.update:
            yield save_due(is_last=True)
        yield cut

    parallel_model.model.train()
    with prefetched(lambda: planner.updates(state)) as plans:
        if validate is not None and _owes_validation(state, config.validation.freq):
            if (event := judged(counted=True)) is None:
                yield from cut_off()
                return
            yield event
            yield save_due()  # what was saved does not know of it
        began = time.monotonic()
        for plan in plans:
            parallel_model.parallel.set_activity(f"in update {state.update + 1}", has_deadline=True)
            state.epoch, state.pool, state.position = plan.epoch, plan.pool, plan.position
            stop = _completed(state, config) or interrupted()
            if stop is not None:
                parallel_model.parallel.set_activity(f"at the end, after update {state.update}")
                if stop.validate_first and validate and state.validated_update < state.update:
                    yield from window.settle()
                    if (event := judged(counted=False)) is None:
                        yield from cut_off()
                        return
                    yield event
                    saved_at = -1  # what was saved does not know of this validation
                if saved_at < state.update:
                    yield from window.settle()
                    yield save_due(is_last=True)
                yield stop
                return
            reach("update")
            retries = settings.bad_updates == "retry"
            waits = retries or state.rate_halvings > 0 or _can_look(device)
            stats = made(plan, waits=waits)
            if retries and not stats.is_finite():
                window.add(stats, plan, 0.0, is_retried=True)
                yield from window.settle()
                state.rate_halvings += 1
                stats = made(plan, waits=waits, attempt=1)
            is_refused = waits and not stats.is_finite()
            _adapt_rate(state, is_refused=is_refused, retries=retries)
            state.update += 1
            if is_refused:  # as where nobody has looked yet
                average.include(state.update)
            state.world = parallel_model.parallel.world
            state.batches_per_update = planner.batches_per_update
            state.micro_batch = planner.micro_batch
            state.position += plan.num_batches
            seconds = time.monotonic() - began
            state.train_seconds += seconds
            window.add(stats, plan, seconds)

            logs = state.update % settings.disp_freq == 0
            validates = validate is not None and state.update % config.validation.freq == 0
            # One may have been put off.
            saves = state.update // settings.save_freq > saved_at // settings.save_freq
            if is_refused or logs or validates or saves:
                yield from window.settle()
            if logs:
                yield logged()
            if validates:
                if (event := judged(counted=True)) is None:
                    yield from cut_off()
                    return
                yield event
            # While it goes wrong, a checkpoint would push out those from before.
            if saves and not (state.far_off_in_a_row or state.refused_in_a_row):
                saved_at = state.update
                yield save_due()
            began = time.monotonic()


def _owes_validation(state: TrainState, freq: int) -> bool:
    """Return True if the run stopped amid a validation that was due by schedule."""
    is_due = state.update > 0 and state.update % freq == 0
    return is_due and state.validated_update < state.update


def _can_look(device: torch.device) -> bool:
    """Whether what a device computed can be looked at for nothing."""
    return device.type == "cpu"


def _adapt_rate(state: TrainState, *, is_refused: bool, retries: bool) -> None:
    """Halve the learning rate after an update that was refused; double it again in time."""
    if is_refused:
        state.rate_halvings += retries
        state.good_since_halving = 0
    elif state.rate_halvings:
        state.good_since_halving += 1
        if state.good_since_halving == RECOVERY_UPDATES:
            state.rate_halvings -= 1
            state.good_since_halving = 0


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


def check_finite(
    update: int,
    parallel_model: ParallelModel,
    average: MovingAverage,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Raise a DivergedError if a weight, its average or a moment of it is no finite number.

    Such weights must be neither judged nor saved. All processes raise it, whoever has them.
    """
    tensors = [*parallel_model.model.parameters(), *average.weights.values()]
    tensors += [moment for table in optimizer.state.values() for moment in table.values()]
    found = torch.stack([local_shard(tensor).isfinite().all() for tensor in tensors])
    if any(parallel_model.parallel.all_max([not bool(found.all())])):
        raise DivergedError(
            f"update {update}: there are weights that are no finite numbers",
            hint=HINT,
        )
