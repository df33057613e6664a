"""A training run, from its settings to a model on the disk."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tfm_cli.config.loading import changeable_on_request, requested_changes
from tfm_cli.config.presets import preset_values
from tfm_cli.config.settings import DROPOUT_SETTINGS, ModelConfig, RunConfig, TrainingConfig
from tfm_cli.console import counted, seconds_text
from tfm_cli.corpus.batching import BatchOrder, Sampling, padding_share
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.device import resolve_device
from tfm_cli.errors import DivergedError, Interrupted, ModelError, ReportedElsewhere
from tfm_cli.files.layout import CHECKPOINTS, METRICS_FILE
from tfm_cli.model.precision import (
    precision_name,
    ran_out_of_memory,
    resolve_precision,
    set_cpu_threads,
    set_deterministic,
    validation_precision,
)
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.config_file import load_config, save_config
from tfm_cli.model_directory.weights import weights_facts
from tfm_cli.parallel import Parallel
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.training import checkpoint, run_directory
from tfm_cli.training.artifacts import RunWriter
from tfm_cli.training.batches import BatchSampler
from tfm_cli.training.consistency import consistency_of
from tfm_cli.training.data import Corpora, Pairs, load_corpora
from tfm_cli.training.events import Changed, CheckpointDue, Event, Stopped, Updated
from tfm_cli.training.initialization import (
    check_same_batch_size,
    check_same_text,
    initialize_model,
    load_initial_parts,
    with_bleu_tokenizer,
)
from tfm_cli.training.interruption import REQUESTED, interruption, record_signals, validation_check
from tfm_cli.training.loop import completed, train
from tfm_cli.training.memory import (
    fit_micro_batch,
    initial_micro_batch,
    out_of_memory_error,
    resolve_batch_size,
)
from tfm_cli.training.optimizer import MovingAverage, make_optimizer
from tfm_cli.training.parallel_model import ParallelModel, compile_layers, should_compile
from tfm_cli.training.progress import Display, MetricsFile, Plan, score_text
from tfm_cli.training.rank_checks import (
    broadcast_state,
    check_ranks_agree,
    code_versions,
    load_corpora_on_all_ranks,
    log_batches_per_update,
    setting_facts,
    with_settings_of_rank_0,
    with_smallest_micro_batch,
)
from tfm_cli.training.schedule import check_has_end, plan_end
from tfm_cli.training.state import TrainState
from tfm_cli.training.time_limit import TimeLimit
from tfm_cli.training.timed_decay import TimedDecay
from tfm_cli.training.validation import (
    Validation,
    ValidationOptions,
    ValidationText,
    translator_factory,
    uses_native_engine,
    validate,
)
from tfm_cli.translation.search import SearchOptions

logger = logging.getLogger(__name__)

# Until a validation was measured, it is assumed to take this many times as long for each target
# token as training: searching computes less, but a token at a time.
_FIRST_VALIDATION_FACTOR = 3.0
_BATCH_SIZE = "target tokens in a batch"  # as a change, where it follows from other settings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """The parts of a run that is ready to train."""

    config: RunConfig
    output: Path
    corpora: Corpora
    parallel_model: ParallelModel
    optimizer: torch.optim.Optimizer
    average: MovingAverage
    state: TrainState
    sampler: BatchSampler
    dtype: torch.dtype
    limit: TimeLimit
    updates_per_epoch: int  # estimated in a corpus of several pools


def run(
    config: RunConfig,
    output: Path,
    *,
    resume: bool,
    allow_change: bool = False,
    parallel: Parallel | None = None,
    limit: TimeLimit | None = None,
    tensorboard: Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> Stopped:
    """Train or resume a model until there is a reason to stop, and return it.

    Args:
        config: all settings.
        output: becomes a model directory; only rank 0 writes.
        resume: resume the run in `output`, as decided by `run_directory.can_resume`; otherwise
            remove the files of another model there. Only the value on rank 0 is used.
        allow_change: permit another batch size of a resumed run.
        parallel: the processes that train together, connected.
        limit: the time limit of the command; by default it starts now.
        tensorboard: directory for TensorBoard's event file; None for none.
        stop: returns True if the run should stop, called between updates; None to stop it by
            signals.

    Raises:
        ConfigError: the text is not the one the run began with, or the ranks differ.
        DataError: the text is missing, malformed, or without a usable pair.
        ModelError: no checkpoint is intact, or the model to start from cannot be used.
        ResourceError: memory, disk or device do not suffice.
        DivergedError: the loss or the gradient was not finite.
        Interrupted: SIGINT, SIGTERM or SIGHUP was received; a checkpoint was saved.
        ReportedElsewhere: the same, on all ranks but 0.
    """
    prepared = prepare(
        config,
        output,
        resume=resume,
        allow_change=allow_change,
        parallel=parallel or Parallel(),
        limit=limit or TimeLimit(config.training.max_time),
    )
    return train_and_record(prepared, tensorboard, stop)


def finished(config: RunConfig, output: Path) -> Stopped | None:
    """Return why a run in a directory is complete, and log it; None if text would be needed.

    Args:
        config: all settings.
        output: the directory of the run.
    """
    paths = checkpoint.checkpoint_paths(output / CHECKPOINTS)
    if not paths or weights_facts(output) is None:
        return None
    with contextlib.suppress(ModelError):  # a damaged checkpoint: an older one is resumed
        state, *_ = checkpoint.read_counters(paths[-1])
        stopped = completed(state, config)
        is_validated = not config.data.valid_source or state.validated_update == state.update
        if (
            stopped is not None
            and is_validated
            and load_config(output).settings.data == config.data
        ):
            line = _closing_line(output, config.validation.metrics[0], state, stopped)
            logger.info("%s", _finished_line(line))
            return stopped
    return None


def prepare(
    config: RunConfig,
    output: Path,
    *,
    resume: bool,
    allow_change: bool = False,
    parallel: Parallel,
    limit: TimeLimit,
) -> TrainingRun:
    """Load or create all parts of a run; see `run`."""
    set_deterministic(config.training.deterministic)
    device = torch.device(str(resolve_device(parallel.device(config.training.device))))
    dtype = resolve_precision(config.training.precision, device)
    set_cpu_threads(config.training.cpu_threads)
    config = with_settings_of_rank_0(config, parallel)
    facts = {"the device": device.type, "the precision": str(dtype), **setting_facts(config)}
    check_ranks_agree(facts | code_versions(parallel), parallel)

    (resume,) = map(bool, parallel.all_max([resume and parallel.is_main]))
    saved, tokenizers, model = None, None, None
    if parallel.is_main:
        saved = checkpoint.newest(output / CHECKPOINTS) if resume else None
        if saved is not None:
            check_same_batch_size(output, config, saved.state, allow_change=allow_change)
        tokenizers, model = load_initial_parts(config, output, resume=resume)
    corpora = load_corpora_on_all_ranks(
        partial(load_corpora, config, output=output), tokenizers, parallel
    )
    references = [target for _, target in corpora.valid_pairs]
    config = with_bleu_tokenizer(config, output, references, resume=resume, parallel=parallel)
    parallel_model = _parallel_model(
        model or initialize_model(config, corpora.tokenizers), config, parallel, device, dtype
    )
    optimizer = make_optimizer(parallel_model.model, config.training)
    average = MovingAverage(parallel_model.model, config.training.ema_decay)
    if saved is not None:
        check_same_text(output, saved.text_sha256, corpora.sha256())
    if resume:
        checkpoint.restore(saved, parallel_model.model, average, optimizer, parallel)
    state = TrainState() if saved is None else saved.state
    if parallel.is_main:
        check_has_end(config.training, state)  # before the settings are saved
        _convert_position(state, config, corpora)
        _begin_directory(config, output, corpora, state, resume=resume)
        parallel.set_flag("begun")
    state = broadcast_state(state, parallel)
    if parallel.local_rank == 0:  # each machine has prepared its own text
        corpora.remove_outdated()

    sampler = _fitted_sampler(config, corpora, parallel_model, state, resume=resume)
    updates_per_epoch = _log_start(config, sampler, parallel_model, dtype)
    _plan_end(state, config, sampler, updates_per_epoch)
    if resume:
        logger.info("resuming after update %d of `%s`", state.update, output)
        log_batches_per_update(state, config.training.update_freq, parallel.world_size)
    return TrainingRun(
        config=config,
        output=output,
        corpora=corpora,
        parallel_model=parallel_model,
        optimizer=optimizer,
        average=average,
        state=state,
        sampler=sampler,
        dtype=dtype,
        limit=limit,
        updates_per_epoch=updates_per_epoch,
    )


def _fitted_sampler(
    config: RunConfig,
    corpora: Corpora,
    parallel_model: ParallelModel,
    state: TrainState,
    *,
    resume: bool,
) -> BatchSampler:
    """Return the batches of the training text, in micro-batches that fit into memory."""
    parallel, device = parallel_model.parallel, parallel_model.device
    sampler = _batch_sampler(
        config, corpora.tokenizers, corpora.train, device, parallel,
        previous_micro_batch=state.micro_batch, sampling=corpora.sampling(config),
    )  # fmt: skip
    # With shards, a rank that ran out of memory would leave the others waiting.
    if not parallel_model.is_sharded:
        sampler = fit_micro_batch(
            sampler,
            parallel_model.model,
            may_shrink=not config.training.micro_batch,
            has_moments=resume,
            device=device,
            dtype=parallel_model.dtype,
            consistency=parallel_model.consistency,
        )
    return with_smallest_micro_batch(sampler, parallel)


def _parallel_model(
    model: Transformer,
    config: RunConfig,
    parallel: Parallel,
    device: torch.device,
    dtype: torch.dtype,
) -> ParallelModel:
    model.recomputes_activations = config.training.activation_checkpointing
    if should_compile(config.training, device):
        compile_layers(model)
    return ParallelModel(
        model,
        label_smoothing=config.training.label_smoothing,
        consistency=consistency_of(config.training),
        strategy=config.parallel.strategy,
        parallel=parallel,
        device=device,
        dtype=dtype,
    )


def _convert_position(state: TrainState, config: RunConfig, corpora: Corpora) -> None:
    """Convert the position to batches of the size in the settings, if it counts others.

    The run is resumed after the same share of the batches of the pool, so some pairs occur twice
    in that epoch and others not at all.
    """
    training = resolve_batch_size(config.training, config.preset)
    if state.batch_tokens not in (0, training.max_tokens):
        former = dataclasses.replace(training, max_tokens=state.batch_tokens)
        sampling = corpora.sampling(config)
        before, after = (
            len(_batch_order(each, corpora.train, sampling).batches(state.epoch, state.pool))
            for each in (former, training)
        )
        state.position = min(after, round(state.position * after / max(1, before)))
    state.batch_tokens = training.max_tokens


def _begin_directory(
    config: RunConfig, output: Path, corpora: Corpora, state: TrainState, *, resume: bool
) -> None:
    """Remove the files of another model unless the run is resumed, and save the settings.

    Changes on request are recorded before them, so that a killed run has a record of each. One that
    was recorded by a process that was killed before it saved the settings is removed.
    """
    if not resume:
        run_directory.clear(output, except_names=corpora.tokenizers.files())
    run_directory.begin(output)
    if resume:
        _record_changes(load_config(output).settings, config, output, state)
    save_config(output, config, corpora.tokenizers)
    run_directory.unmark(output)


def _record_changes(
    original: RunConfig, config: RunConfig, output: Path, state: TrainState
) -> None:
    """Write the changes on request to `metrics.jsonl`, on the disk."""
    metrics = MetricsFile(output / METRICS_FILE, update=state.update)
    metrics.drop_change_that_was_not_made(partial(_sha256_of_changeable, original))
    if changes := _changes_on_request(original, config):
        logger.info("changed on request: %s", "; ".join(changes))
        metrics.add(
            Changed(
                state.update,
                state.epoch + 1,
                state.train_seconds,
                tuple(changes),
                _sha256_of_changeable(config, changes),
            )
        )
        metrics.sync()


def _sha256_of_changeable(config: RunConfig, changes: Sequence[str]) -> str:
    """Return the SHA-256 of the values of what was changed, as `_changes_on_request` names it."""
    values: dict[str, Any] = {**changeable_on_request(config)}
    values[_BATCH_SIZE] = resolve_batch_size(config.training, config.preset).max_tokens
    names = sorted(change.partition(":")[0] for change in changes)
    return hashlib.sha256(json.dumps([values.get(name) for name in names]).encode()).hexdigest()


def _changes_on_request(original: RunConfig, config: RunConfig) -> list[str]:
    """Return the changes that may be made on request; another size of batches is among them."""
    changes = requested_changes(original, config)
    before, after = (
        resolve_batch_size(each.training, each.preset).max_tokens for each in (original, config)
    )
    if before != after and original.training.max_tokens == config.training.max_tokens:
        changes.append(f"{_BATCH_SIZE}: {before} → {after}")
    return changes


def train_and_record(
    run: TrainingRun,
    tensorboard: Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> Stopped:
    """Train, display and save the events of the loop; log and return the reason for the end.

    Args:
        run: the run.
        tensorboard: see `run`.
        stop: see `run`.

    Raises:
        Interrupted: a signal was received; a checkpoint was saved.
        ReportedElsewhere: the same, on all ranks but 0.
    """
    config, state, parallel = run.config, run.state, run.parallel_model.parallel
    first_update = state.update
    writer = RunWriter(
        config, run.output, run.corpora, run.parallel_model, run.average, run.optimizer, state,
        tensorboard,
    )  # fmt: skip
    run.limit.disarm()  # from here on there is something to save
    with _signals(parallel, stop) as signalled:
        events = train(
            run.parallel_model,
            run.sampler,
            run.optimizer,
            run.average,
            state,
            config,
            validate=_validation(run, validation_check(run.limit, signalled)),
            interrupted=_interrupted(run, signalled),
        )
        try:
            stopped = _record(run, events, writer, shows_bar=stop is None)
        except DivergedError as error:
            writer.stop(Stopped(str(error), is_complete=False, validate_first=False))
            if not parallel.is_main:
                raise
            hint = f"{error.hint}; {writer.last_good(error.since)}"
            raise DivergedError(str(error), hint=hint, since=error.since) from error
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            raise out_of_memory_error(run.parallel_model.device) from error
        line = stopped.reason
        if parallel.is_main:
            line = _closing_line(run.output, config.validation.metrics[0], state, stopped)
            if stopped.is_complete and state.update == first_update > 0:
                line = _finished_line(line)
        (signal_number,) = parallel.all_max([signalled()])  # rank 0 has written everything by then
    if signal_number not in (0, REQUESTED) and not stopped.is_complete:
        interrupted = Interrupted(line, signal_number=signal_number)
        if not parallel.is_main:
            raise ReportedElsewhere(line, exit_code=interrupted.exit_code)
        raise interrupted
    logger.info("%s", line)
    return stopped


def _interrupted(run: TrainingRun, signalled: Callable[[], int]) -> Callable[[], Stopped | None]:
    """Return a function that returns the reason to stop now, and begins a decay that ends by time.

    Args:
        run: the run.
        signalled: returns the number of the signal that was received, 0 for none.
    """
    state, parallel = run.state, run.parallel_model.parallel
    validation_seconds = partial(_validation_seconds, run)
    stop_reason = interruption(
        state,
        signalled,
        max_time=run.config.training.max_time,
        began=run.limit.began,
        parallel=parallel,
        saving_seconds=lambda: run.limit.saving_seconds,
        validation_seconds=validation_seconds,
    )
    decay = TimedDecay(
        state, run.config, run.limit, parallel=parallel, validation_seconds=validation_seconds
    )

    def interrupted() -> Stopped | None:
        stopped = stop_reason()
        if stopped is None:
            decay.plan()
        return stopped

    return interrupted


def _signals(
    parallel: Parallel, stop: Callable[[], bool] | None
) -> AbstractContextManager[Callable[[], int]]:
    """Return a context that yields a function, which returns the signal that was received, or 0."""
    if stop is None:
        return record_signals(parallel.world_size)
    return nullcontext(lambda: REQUESTED if stop() else 0)


def _record(
    run: TrainingRun, events: Iterator[Event], writer: RunWriter, *, shows_bar: bool
) -> Stopped:
    """Display and save all events, and return the last one."""
    stopped = None
    with Display(_plan(run), shows_bar=shows_bar) as display:
        for event in events:
            if isinstance(event, Updated):
                display.show_update(event)
                continue
            if isinstance(event, Stopped):
                stopped = event
                writer.stop(event)
                continue
            began = time.monotonic()
            writer.write(event, display)
            if isinstance(event, CheckpointDue):
                run.limit.saving_seconds = time.monotonic() - began
    assert stopped is not None
    return stopped


def _plan(run: TrainingRun) -> Plan:
    settings, limit = run.config.training, run.limit
    totals = [
        settings.max_updates,
        settings.max_epochs * run.updates_per_epoch,
        run.state.last_update,
    ]
    return Plan(
        made=run.state.update,
        total=min(filter(None, totals), default=0),
        updates_per_epoch=run.updates_per_epoch,
        max_time=settings.max_time,
        began=limit.began,
        deadline=limit.deadline,
    )


def _validation_seconds(run: TrainingRun) -> float:
    """Return the estimated duration of a validation; 0 without validation text."""
    state, valid = run.state, run.corpora.valid
    if valid is None or state.validation_seconds:
        return state.validation_seconds
    tokens_per_second = state.target_tokens / max(state.train_seconds, 1e-9)
    tokens = int(valid.target.lengths.sum())
    return _FIRST_VALIDATION_FACTOR * tokens / max(tokens_per_second, 1.0)


def _validation(run: TrainingRun, check: Callable[[], None]) -> Callable[[], Validation] | None:
    """Return a function that validates the current weights; None without validation text.

    Args:
        run: the run.
        check: called between the steps of a validation; raises OutOfTime to end it.
    """
    config, corpora, parallel_model = run.config, run.corpora, run.parallel_model
    if corpora.valid is None:
        return None
    return make_validation(
        config,
        corpora.tokenizers,
        corpora.valid,
        corpora.valid_pairs,
        parallel_model.eval_model,
        parallel_model.device,
        parallel=parallel_model.parallel,
        check=check,
    )


def make_validation(
    config: RunConfig,
    tokenizers: TokenizerPair,
    store: CorpusStore,
    pairs: Pairs,
    model: Transformer,
    device: torch.device,
    *,
    parallel: Parallel | None = None,
    check: Callable[[], None] = lambda: None,
) -> Callable[[], Validation]:
    """Return a function that validates the weights that a model has when it is called.

    Args:
        config: the settings of the run.
        tokenizers: of the model.
        store: the validation text, encoded.
        pairs: its lines.
        model: the model, on `device`.
        device: the device of the model.
        parallel: the processes, all with the same weights.
        check: called between the steps of a validation; raises OutOfTime to end it.
    """
    dtype = validation_precision(config.training.precision, device)
    sampler = _batch_sampler(config, tokenizers, store, device)
    batches = [
        sampler.batch(part)
        for pool in range(sampler.order.num_pools)
        for batch in sampler.order.batches(0, pool)
        for part in sampler.split(batch)
    ]
    text = ValidationText(batches, [source for source, _ in pairs], [target for _, target in pairs])
    search = dataclasses.replace(config.search, beam_size=config.validation.beam_size, n_best=1)
    search_options = SearchOptions(settings=search, scores=False, stops_loops=True, check=check)
    translators = translator_factory(
        model, tokenizers, config, search_options, device=device, dtype=dtype
    )
    options = ValidationOptions(
        metrics=config.validation.metrics,
        tokenize=config.validation.tokenize,
        device=device,
        dtype=dtype,
        check=check,
        threads=torch.get_num_threads() if uses_native_engine(device) else 1,
        num_samples=config.validation.samples,
    )
    return partial(validate, model, text, translators, options, parallel)


def _batch_sampler(
    config: RunConfig,
    tokenizers: TokenizerPair,
    store: CorpusStore,
    device: torch.device,
    parallel: Parallel | None = None,
    *,
    previous_micro_batch: int = 0,
    sampling: Sampling | None = None,
) -> BatchSampler:
    parallel = parallel or Parallel()
    settings = resolve_batch_size(config.training, config.preset)
    return BatchSampler(
        store=store,
        order=_batch_order(settings, store, sampling),
        batches_per_update=settings.update_freq * parallel.world_size,
        micro_batch=initial_micro_batch(settings, device, before=previous_micro_batch),
        pins=device.type == "cuda",
        start_id=tokenizers.target.start_id,
        eos_id=tokenizers.target.eos_id,
        source_eos_id=tokenizers.source.eos_id,
        rank=parallel.rank,
        world_size=parallel.world_size,
    )


def _batch_order(
    settings: TrainingConfig, store: CorpusStore, sampling: Sampling | None
) -> BatchOrder:
    return BatchOrder(
        store.source.lengths,
        store.target.lengths,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        spans=store.spans,
        sampling=sampling,
    )


def _plan_end(
    state: TrainState, config: RunConfig, sampler: BatchSampler, updates_per_epoch: int
) -> None:
    """Fix the last update of a run that ends by epochs, if its learning rate depends on it."""
    plan_end(
        state,
        config,
        updates_per_epoch=updates_per_epoch,
        epochs=sampler.epochs(state),
        batches=sampler.batches_per_update,
    )


def _log_start(
    config: RunConfig, sampler: BatchSampler, parallel_model: ParallelModel, dtype: torch.dtype
) -> int:
    """Log the size of the model, the devices, and the batches of an epoch; return its updates."""
    device = parallel_model.device
    order, text = sampler.order, sampler.text(0, 0)
    batches = order.batches(0, 0)
    parts = [part for pairs in batches for part in sampler.split(pairs, text)]
    num_batches = counted(len(batches) * order.num_pools, "batch", "batches")
    if order.num_pools > 1 or order.is_sampled:
        num_batches = f"about {num_batches}"
    devices = f"{device}"
    if sampler.world_size > 1:
        strategy = "fsdp" if config.parallel.strategy == "fsdp" else "ddp"
        devices = f"{sampler.world_size} processes ({strategy}), {device.type} each"
    logger.info(
        "model: %s, %s parameters, %s on %s; %s an epoch, %.1f %% padding",
        _shape_name(config),
        f"{sum(p.numel() for p in parallel_model.model.parameters()):,}",
        precision_name(dtype),
        devices,
        num_batches,
        100 * padding_share(parts, text.source.lengths, text.target.lengths),
    )
    if device.type != "cpu" and not config.training.deterministic:
        logger.info(
            "%s: repeated runs may differ in the last digits, unless with `--deterministic`", device
        )
    return math.ceil(len(batches) / sampler.batches_per_update) * order.num_pools


def _shape_name(config: RunConfig) -> str:
    """Return the preset that a model has its shape from, or else the shape."""
    shape = config.model
    dropouts = {name: getattr(shape, name) for name in DROPOUT_SETTINGS}
    values: dict[str, Any] = {**preset_values(config.preset, "model"), **dropouts}
    if shape == ModelConfig(**values):
        return config.preset
    return f"{shape.encoder_layers}+{shape.decoder_layers} layers, width {shape.width}"


def _finished_line(closing_line: str) -> str:
    return f"the run is finished: it {closing_line}"


def _closing_line(output: Path, metric: str, state: TrainState, stopped: Stopped) -> str:
    """Return the last log line: the reason to stop, the best score, the time and the directory."""
    parts = [f"stopped after update {state.update}: {stopped.reason}"]
    best = weights_facts(output)
    if best is not None and metric in best.scores:
        parts.append(f"best {score_text(metric, best.scores[metric])} at update {best.update}")
    if state.nonfinite_attempts:
        parts.append(f"{counted(state.nonfinite_attempts, 'update')} skipped or retried")
    parts.append(f"trained {seconds_text(state.train_seconds)}")
    parts.append(f"model in `{output}`" if best else f"no model in `{output}` yet")
    if not stopped.is_complete:
        is_saved = bool(checkpoint.checkpoint_paths(output / CHECKPOINTS))
        parts.append("repeat the command to resume" if is_saved else "the command would start over")
    return "; ".join(parts)
