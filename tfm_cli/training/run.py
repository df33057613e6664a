"""A training run from its settings to a model on disk; shows and saves what the loop yields."""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tfm_cli.config import ModelConfig, RunConfig
from tfm_cli.corpus.batching import BatchOrder, padding_share
from tfm_cli.corpus.store import PieceStore
from tfm_cli.device import resolve_device, resolve_precision, set_cpu_threads
from tfm_cli.errors import ConfigError, DivergedError, Interrupted
from tfm_cli.log import seconds_text
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_config import load_config, load_tokenizers, save_config
from tfm_cli.model_dir import build_transformer, load_model, weights_facts
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.training import checkpoint, output_dir
from tfm_cli.training.compiling import compile_layers, should_compile
from tfm_cli.training.corpora import Corpora, load_corpora
from tfm_cli.training.fitting import (
    first_micro_batch,
    fit,
    out_of_memory,
    ran_out_of_memory,
    settled_batches,
)
from tfm_cli.training.interruption import interruption, remember_signals
from tfm_cli.training.keeper import Keeper
from tfm_cli.training.loop import Stopped, train
from tfm_cli.training.optim import MovingAverage, make_optimizer
from tfm_cli.training.plan import Planner
from tfm_cli.training.report import Display, score_text
from tfm_cli.training.state import TrainState
from tfm_cli.training.validate import Validation, validator
from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)


def run(config: RunConfig, output: Path, *, goes_on: bool) -> None:
    """Train as the settings say until there is a reason to stop.

    Args:
        config: all settings.
        output: becomes a model directory.
        goes_on: whether it holds a run to go on with, as `output_dir.has_run` found; else what
            is left of another model in it is removed.

    Raises:
        ConfigError: the text is not the one the run began with.
        DataError: the text cannot be learned from.
        ModelError: no checkpoint is whole, or the model to start from cannot be used.
        ResourceError: memory, disk or device do not suffice.
        DivergedError: loss or gradient was no finite number.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    began = time.monotonic()
    device = resolve_device(config.training.device)
    dtype = resolve_precision(config.training.precision, device)
    set_cpu_threads(config.training.cpu_threads)

    saved = checkpoint.newest(output / output_dir.CHECKPOINTS) if goes_on else None
    settled, model = _start(config, output, goes_on=goes_on)
    corpora = load_corpora(config, settled, output)
    tokenizers = corpora.tokenizers
    if model is None:
        model = _fresh_model(config, tokenizers)
    model.recomputes_activations = config.training.activation_checkpointing
    model.to(device)
    if should_compile(config.training, device):
        compile_layers(model)
    optimizer = make_optimizer(model, config.training)
    average = MovingAverage(model, config.training.ema_decay)
    state = TrainState()
    if saved is not None:
        _check_same_text(output, saved.text_sha256, corpora.sha256())
        checkpoint.restore(saved, model, average, optimizer)
        state = saved.state
    else:
        output_dir.clear(output)
    output_dir.begin(output)
    corpora.forget_older()
    save_config(output, config, tokenizers)

    keeper = Keeper(config, output, corpora, model, average, optimizer, state)
    planner = _planner(config, corpora, corpora.train, device)
    may_shrink = not config.training.micro_batch
    planner = fit(planner, model, may_shrink=may_shrink, device=device, dtype=dtype)
    _say_what_begins(config, planner, model, device, dtype)
    if saved is not None:
        logger.info("going on after update %d of `%s`", state.update, output)
    with remember_signals() as signalled:
        events = train(
            model,
            planner,
            optimizer,
            average,
            state,
            config,
            validate=_validation(config, corpora, model, device, dtype),
            interrupted=interruption(
                state, signalled, max_time=config.training.max_time, began=began
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
                    else:
                        keeper.keep(event, display)
            except DivergedError as error:
                error.hint = f"{error.hint}; {keeper.last_good()}"
                raise
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                raise out_of_memory(device) from error
    assert stopped is not None
    line = _what_ended(output, config.validation.metrics[0], state, stopped)
    if signalled() and not stopped.is_complete:
        raise Interrupted(line, signal_number=signalled())
    logger.info("%s", line)


def _start(
    config: RunConfig, output: Path, *, goes_on: bool
) -> tuple[TokenizerPair | None, Transformer | None]:
    """Tokenizers and weights that are settled before any text is read."""
    if goes_on:
        return load_tokenizers(output, load_config(output)), None
    if not config.training.pretrained_model:
        return None, None
    directory = Path(config.training.pretrained_model)
    pretrained = load_model(directory, torch.device("cpu"))
    _check_same_shape(directory, pretrained.config.model, config.model)
    model = build_transformer(config.model, pretrained.tokenizers.vocab_sizes)
    model.load_state_dict(pretrained.transformer.state_dict())
    logger.info("starting from the weights and the tokenizers of `%s`", directory)
    return pretrained.tokenizers, model


def _fresh_model(config: RunConfig, tokenizers: TokenizerPair) -> Transformer:
    """A model with weights that are drawn by the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return build_transformer(config.model, tokenizers.vocab_sizes)


def _check_same_shape(directory: Path, found: ModelConfig, wanted: ModelConfig) -> None:
    changes = [
        f"model.{field.name}: {getattr(found, field.name)} → {getattr(wanted, field.name)}"
        for field in dataclasses.fields(ModelConfig)
        if field.name != "dropout" and getattr(found, field.name) != getattr(wanted, field.name)
    ]
    if changes:
        raise ConfigError(
            "\n  ".join([f"{directory}: its model has another shape than is asked for", *changes]),
            hint="leave these settings out: they are taken from the pretrained model",
        )


def _check_same_text(output: Path, then: dict[str, str], now: dict[str, str]) -> None:
    changed = [name for name, sha256 in now.items() if then.get(name) != sha256]
    if changed:
        verb = "are not those" if len(changed) > 1 else "is not the one"
        raise ConfigError(
            f"{output}: the {' and the '.join(changed)} {verb} this run began with",
            hint="restore the text, or start again with `--overwrite` or another `--output`",
        )


def _validation(
    config: RunConfig,
    corpora: Corpora,
    model: Transformer,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[], Validation] | None:
    if corpora.valid is None:
        return None
    planner = _planner(config, corpora, corpora.valid, device)
    batches = [
        planner.batch(part)
        for pool in range(planner.order.num_pools)
        for pairs in planner.order.batches(0, pool)
        for part in planner.parts(pairs)
    ]
    search = dataclasses.replace(config.search, beam_size=config.validation.beam_size, n_best=1)
    translator = Translator(model, corpora.tokenizers, search=search, device=device, dtype=dtype)
    return validator(
        model,
        batches,
        [source for source, _ in corpora.valid_pairs],
        [target for _, target in corpora.valid_pairs],
        translator,
        metrics=config.validation.metrics,
        device=device,
        dtype=dtype,
    )


def _planner(
    config: RunConfig, corpora: Corpora, store: PieceStore, device: torch.device
) -> Planner:
    settings = settled_batches(config.training, config.preset)
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
        batches_per_update=settings.update_freq,
        micro_batch=first_micro_batch(settings, device),
        pins=device.type == "cuda",
        start_id=corpora.tokenizers.target.start_id,
        eos_id=corpora.tokenizers.target.eos_id,
        source_eos_id=corpora.tokenizers.source.eos_id,
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
    many = f"{len(plan)}" if order.num_pools == 1 else f"about {len(plan) * order.num_pools}"
    logger.info(
        "model: %s, %s parameters, %s on %s; %s batches an epoch, %.1f %% padding",
        config.preset,
        f"{sum(p.numel() for p in model.parameters()):,}",
        str(dtype).removeprefix("torch."),
        device,
        many,
        100 * padding_share(parts, store.source.lengths, store.target.lengths),
    )


def _what_ended(output: Path, metric: str, state: TrainState, stopped: Stopped) -> str:
    """The closing line: why, how good, how long, where."""
    words = [f"stopped after update {state.update}: {stopped.reason}"]
    kept = weights_facts(output)
    if kept is not None and metric in kept.scores:
        words.append(f"best {score_text(metric, kept.scores[metric])} at update {kept.update}")
    words.append(f"trained {seconds_text(state.train_seconds)}")
    words.append(f"model in `{output}`" if kept else f"no model in `{output}` yet")
    if not stopped.is_complete:
        words.append("the same command goes on")
    return "; ".join(words)
