"""The training loop: a generator of what happened, for others to show and to save."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tfm_cli.config import RunConfig
from tfm_cli.corpus.batch import Batch, make_batch
from tfm_cli.corpus.batching import epoch_batches
from tfm_cli.corpus.store import PieceStore
from tfm_cli.model.transformer import Transformer
from tfm_cli.training.optim import MovingAverage
from tfm_cli.training.state import TrainState
from tfm_cli.training.update import UpdateStats, update
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


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why training ended, in words; it is the last event."""

    reason: str
    is_complete: bool  # False where the same command would go on
    validate_first: bool  # whether to judge the last weights before the end


Event = Logged | Validated | SaveDue | Stopped


def train(
    model: Transformer,
    store: PieceStore,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage,
    state: TrainState,
    config: RunConfig,
    *,
    start_id: int,
    eos_id: int,
    validate: Callable[[], Validation] | None,
    interrupted: Callable[[], Stopped | None],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Event]:
    """Train until a reason to stop, yielding what happened after it happened.

    Between two updates the order is: progress, validation, checkpoint, stop. All that decides on
    results is in `state`, so going on from a checkpoint equals never having stopped.

    Args:
        model: trained in place.
        store: the corpus.
        optimizer: of the model's parameters.
        average: moving average of the weights, which is what gets validated.
        state: where the run stands; changed in place.
        config: all settings.
        start_id: what target sides start from.
        eos_id: what they end in.
        validate: judges the model's present weights; None without validation text.
        interrupted: why to stop now, such as a signal; None to go on.
        device: where the model is.
        dtype: arithmetic of the matrix products.
    """
    settings, metric = config.training, config.validation.metrics[0]
    window = _Window()
    validated_at = saved_at = state.update

    def judged(*, counted: bool) -> Validated:
        assert validate is not None
        began = time.monotonic()
        with average.in_place():
            validation = validate()
        state.train_seconds += time.monotonic() - began
        score = validation.values[metric]
        better = is_better(metric, score, state.best_score)
        if counted and better:
            state.best_score, state.best_update, state.stalled = score, state.update, 0
        elif counted:
            state.stalled += 1
        return Validated(
            state.update, state.epoch + 1, validation, better, counted, state.train_seconds
        )

    model.train()
    for batches in _updates(store, state, config, start_id=start_id, eos_id=eos_id):
        stop = _completed(state, config) or interrupted()
        if stop is not None:
            if stop.validate_first and validate is not None and validated_at < state.update:
                yield judged(counted=False)
            if saved_at < state.update:
                yield SaveDue(state.update)
            yield stop
            return
        began = time.monotonic()
        stats = update(
            model,
            batches,
            optimizer,
            average,
            number=state.update + 1,
            peak_rate=settings.learn_rate,
            warmup=settings.lr_warmup,
            label_smoothing=settings.label_smoothing,
            clip_norm=settings.clip_norm,
            seed=settings.seed,
            device=device,
            dtype=dtype,
        )
        state.update += 1
        state.position += len(batches)
        state.target_pieces += stats.target_pieces
        seconds = time.monotonic() - began
        state.train_seconds += seconds
        window.add(stats, seconds)

        if state.update % settings.disp_freq == 0:
            yield window.logged(state)
            window = _Window()
        if validate is not None and state.update % config.validation.freq == 0:
            validated_at = state.update
            yield judged(counted=True)
        if state.update % settings.save_freq == 0:
            saved_at = state.update
            yield SaveDue(state.update)


def _updates(
    store: PieceStore, state: TrainState, config: RunConfig, *, start_id: int, eos_id: int
) -> Iterator[list[Batch]]:
    """The batches of each update, from where the state stands, epoch after epoch, for ever."""
    settings = config.training
    while True:
        plan = epoch_batches(
            store.source.lengths,
            store.target.lengths,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
            epoch=state.epoch,
        )
        while state.position < len(plan):
            chosen = plan[state.position : state.position + settings.update_freq]
            yield [_batch(store, pairs, start_id=start_id, eos_id=eos_id) for pairs in chosen]
        state.epoch += 1
        state.position = 0


def _batch(store: PieceStore, pairs: np.ndarray, *, start_id: int, eos_id: int) -> Batch:
    sources: Sequence[np.ndarray] = [store.source[i] for i in pairs]
    targets: Sequence[np.ndarray] = [store.target[i] for i in pairs]
    return make_batch(sources, targets, start_id=start_id, eos_id=eos_id)


def _completed(state: TrainState, config: RunConfig) -> Stopped | None:
    settings, patience = config.training, config.validation.early_stopping
    reason = ""
    if settings.max_updates and state.update >= settings.max_updates:
        reason = f"{state.update} updates were made (--max-updates)"
    elif settings.max_epochs and state.epoch >= settings.max_epochs:
        reason = f"{state.epoch} epochs were made (--max-epochs)"
    elif patience and state.stalled >= patience:
        metric = config.validation.metrics[0]
        reason = f"{state.stalled} validations brought no better {metric} (--early-stopping)"
    return Stopped(reason, is_complete=True, validate_first=True) if reason else None


class _Window:
    """Sums between two progress lines; on a GPU they are read only when a line is due."""

    def __init__(self) -> None:
        self._stats: list[UpdateStats] = []
        self._seconds = 0.0

    def add(self, stats: UpdateStats, seconds: float) -> None:
        self._stats.append(stats)
        self._seconds += seconds

    def logged(self, state: TrainState) -> Logged:
        pieces = sum(stats.target_pieces for stats in self._stats)
        last = self._stats[-1]
        return Logged(
            update=state.update,
            epoch=state.epoch + 1,
            loss=float(sum(float(stats.nll) for stats in self._stats)) / pieces,
            learn_rate=last.learn_rate,
            pieces_per_second=pieces / max(self._seconds, 1e-9),
            gradient_norm=float(last.gradient_norm),
            seconds=state.train_seconds,
        )
