"""A training run from its settings to a model on disk; shows and saves what the loop yields."""

import contextlib
import dataclasses
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from tfm_cli.config import RunConfig
from tfm_cli.configfile import changed_settings, duration_seconds
from tfm_cli.corpus.batch import make_batch
from tfm_cli.corpus.batching import epoch_batches, padding_share
from tfm_cli.corpus.store import PieceStore
from tfm_cli.device import resolve_device, resolve_precision, set_cpu_threads
from tfm_cli.errors import ConfigError, DivergedError, Interrupted, ResourceError
from tfm_cli.log import seconds_text
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_dir import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    build_transformer,
    load_config,
    load_model,
    save_config,
    save_weights,
)
from tfm_cli.text import atomic_file, check_writable, remove_directory
from tfm_cli.tokenizer import Tokenizer
from tfm_cli.training import checkpoint
from tfm_cli.training.corpora import Corpora, load_corpora
from tfm_cli.training.loop import Logged, SaveDue, Stopped, Validated, train
from tfm_cli.training.model_card import model_card
from tfm_cli.training.optim import MovingAverage, make_optimizer
from tfm_cli.training.report import Display, MetricsFile
from tfm_cli.training.state import TrainState
from tfm_cli.training.validate import Validation, validator
from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.jsonl"
_OUR_FILES = (CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, CARD_FILE, METRICS_FILE)


def run(config: RunConfig, output: Path, *, overwrite: bool = False) -> None:
    """Train as the settings say; `output` becomes a model directory, or is gone on with.

    Raises:
        ConfigError: the directory holds something else, or a run with other settings.
        DataError: the text cannot be learned from.
        DivergedError: loss or gradient was no finite number.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    began = time.monotonic()
    check_writable(output)
    resumes = _resumes(config, output, overwrite=overwrite)
    device = resolve_device(config.training.device)
    dtype = resolve_precision(config.training.precision, device)
    set_cpu_threads(config.training.cpu_threads)

    corpora = load_corpora(config, _settled_tokenizer(config, output, resumes=resumes))
    tokenizer = corpora.tokenizer
    model = _fresh_model(config, tokenizer).to(device)
    optimizer = make_optimizer(model, config.training)
    average = MovingAverage(model, config.training.ema_decay)
    state = TrainState()
    corpus_sha256 = corpora.train.sha256()
    saved = checkpoint.newest(output / CHECKPOINTS) if resumes else None
    if saved is not None:
        if saved.corpus_sha256 != corpus_sha256:
            raise ConfigError(
                f"{output}: the training text is not the one this run began with",
                hint="restore the text, or start again with `--overwrite` or another `--output`",
            )
        checkpoint.restore(saved, model, average, optimizer)
        state = saved.state
    if not resumes:
        _clear(output)
    save_config(output, config, tokenizer)

    keeper = _Keeper(config, output, corpora, model, average, optimizer, state, corpus_sha256)
    _say_what_begins(keeper, device, dtype, resumed=saved is not None)
    with _signals() as signalled:
        events = train(
            model,
            corpora.train,
            optimizer,
            average,
            state,
            config,
            start_id=tokenizer.start_id,
            eos_id=tokenizer.eos_id,
            validate=_validation(config, corpora, model, device, dtype),
            interrupted=_interruption(config, state, signalled, began),
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
    assert stopped is not None
    _say_what_ended(keeper, stopped, signalled())


class _Keeper:
    """Writes what the loop's events ask for; a class because it holds all of the run's parts."""

    def __init__(
        self,
        config: RunConfig,
        output: Path,
        corpora: Corpora,
        model: Transformer,
        average: MovingAverage,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        corpus_sha256: str,
    ) -> None:
        self.config = config
        self.output = output
        self.corpora = corpora
        self.model = model
        self.state = state
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.best: Validated | None = None
        self._average = average
        self._optimizer = optimizer
        self._corpus_sha256 = corpus_sha256
        self._metrics = MetricsFile(output / METRICS_FILE, update=state.update)
        self._signatures_said = False

    def keep(self, event: Logged | Validated | SaveDue, display: Display) -> None:
        """Show an event, and write what it makes due."""
        if isinstance(event, Logged):
            self._metrics.add(event)
            display.logged(event)
        elif isinstance(event, Validated):
            self._metrics.add(event)
            display.validated(event)
            if not self._signatures_said:
                for score in event.validation.scores:
                    logger.info("%s signature: %s", score.name, score.signature)
                self._signatures_said = True
            if event.is_best:
                self.best = event
                self._write_model(event.update, event.validation)
        else:
            if self.corpora.valid is None:  # nothing says which weights are best: the newest
                self._write_model(event.update, None)
            checkpoint.save(
                self.output / CHECKPOINTS,
                model=self.model,
                average=self._average,
                optimizer=self._optimizer,
                state=self.state,
                corpus_sha256=self._corpus_sha256,
                keep=self.config.training.keep_checkpoints,
            )

    def last_good(self) -> str:
        """Words that name the newest checkpoint."""
        paths = sorted((self.output / CHECKPOINTS).glob("update-*"))
        return f"the last good checkpoint is `{paths[-1]}`" if paths else "no checkpoint was saved"

    def _write_model(self, update: int, validation: Validation | None) -> None:
        with self._average.in_place():
            weights = dict(self.model.named_parameters())
            save_weights(self.output, weights, self.corpora.tokenizer, update=update)
        card = model_card(
            self.config,
            self.state,
            num_parameters=self.num_parameters,
            vocab_size=self.corpora.tokenizer.vocab_size,
            num_pairs=len(self.corpora.train),
            dropped=dict(self.corpora.train.dropped),
            update=update,
            values=validation.values if validation else {},
            scores=validation.scores if validation else (),
        )
        with atomic_file(self.output / CARD_FILE) as stream:
            stream.write(card.encode())


def _resumes(config: RunConfig, output: Path, *, overwrite: bool) -> bool:
    """Whether `output` holds a run to go on with; refuses what is not ours and what has changed."""
    if overwrite or not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{output}: is not empty and holds no model to go on with",
            hint="name another `--output`, or replace the files of a model in it by `--overwrite`",
        )
    old, _, _ = load_config(output)
    changes = changed_settings(old, config)
    if changes:
        plural = "s" if len(changes) > 1 else ""
        title = f"{output}: holds a run with other settings; {len(changes)} change{plural}"
        raise ConfigError(
            "\n  ".join([title, *changes]),
            hint="keep them as they were, or use `--overwrite` or another `--output`",
        )
    return True


def _settled_tokenizer(config: RunConfig, output: Path, *, resumes: bool) -> Path | None:
    if resumes:
        return output / TOKENIZER_FILE
    if config.training.pretrained_model:
        return Path(config.training.pretrained_model) / TOKENIZER_FILE
    return None


def _fresh_model(config: RunConfig, tokenizer: Tokenizer) -> Transformer:
    """New weights drawn by the run's seed, or those of the model to start from."""
    if config.training.pretrained_model:
        directory = Path(config.training.pretrained_model)
        pretrained = load_model(directory, torch.device("cpu"))
        asked = dataclasses.replace(config.model, dropout=pretrained.config.model.dropout)
        if asked != pretrained.config.model:
            raise ConfigError(f"{directory}: its model has another shape than the settings ask for")
        model = build_transformer(config.model, tokenizer.vocab_size)
        model.load_state_dict(pretrained.transformer.state_dict())
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return build_transformer(config.model, tokenizer.vocab_size)


def _clear(output: Path) -> None:
    """Remove a model's files, and nothing else, so that a new run can begin."""
    for name in _OUR_FILES:
        (output / name).unlink(missing_ok=True)
    remove_directory(output / CHECKPOINTS)


def _validation(
    config: RunConfig,
    corpora: Corpora,
    model: Transformer,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[], Validation] | None:
    store = corpora.valid
    if store is None:
        return None
    plan = _epoch(config, store)
    batches = [
        make_batch(
            [store.source[i] for i in pairs],
            [store.target[i] for i in pairs],
            start_id=corpora.tokenizer.start_id,
            eos_id=corpora.tokenizer.eos_id,
        )
        for pairs in plan
    ]
    search = dataclasses.replace(config.search, beam_size=config.validation.beam_size, n_best=1)
    translator = Translator(model, corpora.tokenizer, search=search, device=device, dtype=dtype)
    return validator(
        model,
        batches,
        corpora.valid_source,
        corpora.valid_target,
        translator,
        metrics=config.validation.metrics,
        device=device,
        dtype=dtype,
    )


def _epoch(config: RunConfig, store: PieceStore) -> list[np.ndarray]:
    return epoch_batches(
        store.source.lengths,
        store.target.lengths,
        max_tokens=config.training.max_tokens,
        seed=config.training.seed,
        epoch=0,
    )


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Inside, a first SIGINT or SIGTERM is remembered; a second one ends the process at once."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        logger.warning("%s: saving after this update; once more ends it at once", name)

    before = {each: signal.signal(each, remember) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _interruption(
    config: RunConfig, state: TrainState, signalled: Callable[[], int], began: float
) -> Callable[[], Stopped | None]:
    """Why to stop before the run is complete: a signal, or the time that was given."""
    limit = duration_seconds(config.training.max_time) or math.inf

    def interrupted() -> Stopped | None:
        if signalled():
            reason = f"{signal.Signals(signalled()).name} was received"
            return Stopped(reason, is_complete=False, validate_first=False)
        if time.monotonic() - began >= limit:
            # Without any validation so far there would be no model to translate with.
            reason = f"{config.training.max_time} have passed (--max-time)"
            return Stopped(reason, is_complete=False, validate_first=state.best_score is None)
        return None

    return interrupted


def _say_what_begins(
    keeper: _Keeper, device: torch.device, dtype: torch.dtype, *, resumed: bool
) -> None:
    config, store = keeper.config, keeper.corpora.train
    padding = padding_share(_epoch(config, store), store.source.lengths, store.target.lengths)
    logger.info(
        "model: %s, %s parameters, %s on %s, %.1f %% padding",
        config.preset,
        f"{keeper.num_parameters:,}",
        str(dtype).removeprefix("torch."),
        device,
        100 * padding,
    )
    if resumed:
        logger.info("going on after update %d of `%s`", keeper.state.update, keeper.output)


def _say_what_ended(keeper: _Keeper, stopped: Stopped, signal_number: int) -> None:
    state, metric = keeper.state, keeper.config.validation.metrics[0]
    words = [f"stopped after update {state.update}: {stopped.reason}"]
    best = keeper.best
    if best is not None and best.validation.values[metric] != state.best_score:
        words.append(f"best {metric} {best.validation.values[metric]:.2f} at update {best.update}")
    elif state.best_score is not None:
        words.append(f"best {metric} {state.best_score:.2f} at update {state.best_update}")
    words.append(f"trained {seconds_text(state.train_seconds)}")
    has_model = (keeper.output / WEIGHTS_FILE).is_file()
    words.append(
        f"model in `{keeper.output}`" if has_model else f"no validation yet in `{keeper.output}`"
    )
    if not stopped.is_complete:
        words.append("the same command goes on")
    line = "; ".join(words)
    if signal_number:
        raise Interrupted(line, signal_number=signal_number)
    logger.info("%s", line)
    if not has_model:
        raise ResourceError(f"{keeper.output}: no model was written")
