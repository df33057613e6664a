"""A training run from its settings to a model on disk; shows and saves what the loop yields."""

import dataclasses
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tfm_cli.config.settings import RunConfig
from tfm_cli.console import counted, seconds_text
from tfm_cli.corpus.batching import BatchOrder, padding_share
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.device import resolve_device
from tfm_cli.errors import DivergedError, Interrupted
from tfm_cli.files.layout import CHECKPOINTS
from tfm_cli.model.arithmetic import (
    precision_name,
    ran_out_of_memory,
    resolve_precision,
    set_cpu_threads,
    set_deterministic,
    validation_precision,
)
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.model_directory.weights import weights_facts
from tfm_cli.parallel import Parallel
from tfm_cli.training import checkpoint, run_directory
from tfm_cli.training.artifacts import RunWriter
from tfm_cli.training.batches import Planner
from tfm_cli.training.data import Corpora, load_corpora
from tfm_cli.training.events import CheckpointDue, Stopped
from tfm_cli.training.initialization import (
    check_same_text,
    initialize_model,
    load_initial_parts,
    with_bleu_tokenizer,
)
from tfm_cli.training.interruption import interruption, record_signals
from tfm_cli.training.loop import train
from tfm_cli.training.memory import fit, initial_micro_batch, out_of_memory, resolve_batch_size
from tfm_cli.training.optimizer import MovingAverage, make_optimizer
from tfm_cli.training.parallel_model import ParallelModel, compile_layers, should_compile
from tfm_cli.training.progress import Display, score_text
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
from tfm_cli.training.state import TrainState
from tfm_cli.training.time_limit import TimeLimit
from tfm_cli.training.validation import (
    Validation,
    translator_factory,
    uses_native_engine,
    validator,
)
from tfm_cli.translation.search_engine import SearchOptions

logger = logging.getLogger(__name__)


def run(
    config: RunConfig,
    output: Path,
    *,
    resume: bool,
    parallel: Parallel | None = None,
    limit: TimeLimit | None = None,
) -> None:
    """Train as the settings say until there is a reason to stop.

    Args:
        config: all settings.
        output: becomes a model directory, of rank 0, who alone writes.
        resume: whether it holds a run to go on with, as `output_dir.can_resume` found; else what
            is left of another model in it is removed. Rank 0 decides.
        parallel: the processes that train together, connected.
        limit: when the command has to end; by default counted from now.

    Raises:
        ConfigError: the text is not the one the run began with, or processes do not agree.
        DataError: the text cannot be learned from.
        ModelError: no checkpoint is whole, or the model to start from cannot be used.
        ResourceError: memory, disk or device do not suffice.
        DivergedError: loss or gradient was no finite number.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; a checkpoint was saved.
    """
    limit = limit or TimeLimit(config.training.max_time)
    parallel = parallel or Parallel()
    set_deterministic(config.training.deterministic)
    device = torch.device(str(resolve_device(parallel.device(config.training.device))))
    dtype = resolve_precision(config.training.precision, device)
    set_cpu_threads(config.training.cpu_threads)
    config = with_settings_of_rank_0(config, parallel)
    facts = {"the device": device.type, "the arithmetic": str(dtype), **setting_facts(config)}
    check_ranks_agree(facts | code_versions(parallel), parallel)

    (resume,) = map(bool, parallel.all_max([resume and parallel.is_main]))
    saved, settled, model = None, None, None
    if parallel.is_main:
        saved = checkpoint.newest(output / CHECKPOINTS) if resume else None
        settled, model = load_initial_parts(config, output, resume=resume)
    corpora = load_corpora_on_all_ranks(
        partial(load_corpora, config, output=output), settled, parallel
    )
    tokenizers = corpora.tokenizers
    references = [target for _, target in corpora.valid_pairs]
    config = with_bleu_tokenizer(config, output, references, resume=resume, parallel=parallel)
    if model is None:
        model = initialize_model(config, tokenizers)
    model.recomputes_activations = config.training.activation_checkpointing
    if should_compile(config.training, device):
        compile_layers(model)
    parallel_model = ParallelModel(
        model,
        label_smoothing=config.training.label_smoothing,
        strategy=config.parallel.strategy,
        parallel=parallel,
        device=device,
    )
    optimizer = make_optimizer(model, config.training)
    average = MovingAverage(model, config.training.ema_decay)
    if saved is not None:
        check_same_text(output, saved.text_sha256, corpora.sha256())
    if resume:
        checkpoint.restore(saved, model, average, optimizer, parallel)
    state = broadcast_state(TrainState() if saved is None else saved.state, parallel)
    if parallel.is_main:
        if not resume:
            run_directory.clear(output, keep=tokenizers.files())
        run_directory.begin(output)
        save_config(output, config, tokenizers)
        run_directory.unmark(output)
        parallel.set_flag("begun")
    if parallel.local_rank == 0:  # each machine has prepared its own
        corpora.forget_older()

    keeper = RunWriter(
        config,
        output,
        corpora,
        parallel_model,
        average,
        optimizer,
        state,
        arithmetic=f"{precision_name(dtype)} on {device.type}",
    )
    planner = _planner(config, corpora, corpora.train, device, parallel, before=state.micro_batch)
    if (
        not parallel_model.is_sharded
    ):  # there, a process that ran out of memory would leave others waiting
        may_shrink = not config.training.micro_batch
        planner = fit(
            planner,
            model,
            may_shrink=may_shrink,
            has_moments=resume,
            device=device,
            dtype=dtype,
        )
    planner = with_smallest_micro_batch(planner, parallel)
    _say_what_begins(config, planner, model, device, dtype)
    if resume:
        logger.info("going on after update %d of `%s`", state.update, output)
        log_batches_per_update(state, config.training.update_freq, parallel.world)
    limit.disarm()  # from here on there is something to save
    with record_signals(parallel.world) as signalled:
        events = train(
            parallel_model,
            planner,
            optimizer,
            average,
            state,
            config,
            validate=_validation(config, corpora, parallel_model, device, limit),
            interrupted=interruption(
                state,
                signalled,
                max_time=config.training.max_time,
                began=limit.began,
                parallel=parallel,
                saving_seconds=lambda: limit.saving_seconds,
            ),
            device=device,
            dtype=dtype,
        )
        total = config.training.max_updates or None
        stopped = None
        with Display(total=total, done=state.update) as display:
            try:
                for event in events:
                    if isinstance(event, Stopped):
                        stopped = event
                        continue
                    began = time.monotonic()
                    keeper.keep(event, display)
                    if isinstance(event, CheckpointDue):
                        limit.saving_seconds = time.monotonic() - began
            except DivergedError as error:
                if parallel.is_main:
                    error.hint = f"{error.hint}; {keeper.last_good(error.since)}"
                raise
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                raise out_of_memory(device) from error
        (signal_number,) = parallel.all_max([signalled()])  # rank 0 has written all by then
    assert stopped is not None
    line = stopped.reason
    if parallel.is_main:
        line = _what_ended(output, config.validation.metrics[0], state, stopped)
    if signal_number and not stopped.is_complete:
        raise Interrupted(line, signal_number=signal_number)
    logger.info("%s", line)


def _validation(
    config: RunConfig,
    corpora: Corpora,
    parallel_model: ParallelModel,
    device: torch.device,
    limit: TimeLimit,
) -> Callable[[], Validation] | None:
    if corpora.valid is None:
        return None
    dtype = validation_precision(config.training.precision, device)
    planner = _planner(config, corpora, corpora.valid, device)
    batches = [
        planner.batch(part)
        for pool in range(planner.order.num_pools)
        for pairs in planner.order.batches(0, pool)
        for part in planner.parts(pairs)
    ]
    search = dataclasses.replace(config.search, beam_size=config.validation.beam_size, n_best=1)
    model = parallel_model.eval_model
    options = SearchOptions(settings=search, scores=False, stops_loops=True, check=limit.check)
    tokenizers = corpora.tokenizers
    return validator(
        model,
        batches,
        [source for source, _ in corpora.valid_pairs],
        [target for _, target in corpora.valid_pairs],
        translator_factory(model, tokenizers, config, options, device=device, dtype=dtype),
        metrics=config.validation.metrics,
        tokenize=config.validation.tokenize,
        device=device,
        dtype=dtype,
        parallel=parallel_model.parallel,
        check=limit.check,
        threads=torch.get_num_threads() if uses_native_engine(device) else 1,
    )


def _planner(
    config: RunConfig,
    corpora: Corpora,
    store: CorpusStore,
    device: torch.device,
    parallel: Parallel | None = None,
    *,
    before: int = 0,
) -> Planner:
    parallel = parallel or Parallel()
    settings = resolve_batch_size(config.training, config.preset)
    order = BatchOrder(
        store.source.lengths,
        store.target.lengths,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        spans=store.spans,
    )
    return Planner(
        store=store,
        order=order,
        batches_per_update=settings.update_freq * parallel.world,
        micro_batch=initial_micro_batch(settings, device, before=before),
        pins=device.type == "cuda",
        start_id=corpora.tokenizers.target.start_id,
        eos_id=corpora.tokenizers.target.eos_id,
        source_eos_id=corpora.tokenizers.source.eos_id,
        rank=parallel.rank,
        world=parallel.world,
    )


def _say_what_begins(
    config: RunConfig,
    planner: Planner,
    model: Transformer,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    store, order = planner.store, planner.order
    plan = order.batches(0, 0)
    parts = [part for pairs in plan for part in planner.parts(pairs)]
    many = counted(len(plan) * order.num_pools, "batch", "batches")
    many = many if order.num_pools == 1 else f"about {many}"
    place = f"{device}"
    if planner.world > 1:
        strategy = "fsdp" if config.parallel.strategy == "fsdp" else "ddp"
        place = f"{planner.world} processes ({strategy}), {device.type} each"
    logger.info(
        "model: %s, %s parameters, %s on %s; %s an epoch, %.1f %% padding",
        config.preset,
        f"{sum(p.numel() for p in model.parameters()):,}",
        precision_name(dtype),
        place,
        many,
        100 * padding_share(parts, store.source.lengths, store.target.lengths),
    )
    if device.type != "cpu" and not config.training.deterministic:
        logger.info(
            "%s: the same run again may differ in the last digits; not with `--deterministic`",
            device,
        )


def _what_ended(output: Path, metric: str, state: TrainState, stopped: Stopped) -> str:
    """The closing line: why, how good, how long, where."""
    words = [f"stopped after update {state.update}: {stopped.reason}"]
    kept = weights_facts(output)
    if kept is not None and metric in kept.scores:
        words.append(f"best {score_text(metric, kept.scores[metric])} at update {kept.update}")
    if state.refused:
        words.append(f"{state.refused} times no finite gradient")
    words.append(f"trained {seconds_text(state.train_seconds)}")
    words.append(f"model in `{output}`" if kept else f"no model in `{output}` yet")
    if not stopped.is_complete:
        is_saved = bool(checkpoint.all_paths(output / CHECKPOINTS))
        words.append(f"the same command {'goes on' if is_saved else 'begins anew'}")
    return "; ".join(words)
