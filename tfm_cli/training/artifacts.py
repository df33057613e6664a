"""The artifacts that a run writes: best weights, model card, metrics and checkpoints."""

import contextlib
import dataclasses
import errno
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import tfm_cli
from tfm_cli.config.settings import RunConfig, norm_name
from tfm_cli.console import seconds_text
from tfm_cli.errors import ModelError, OutputError, ResourceError
from tfm_cli.evaluation.scores import Score
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_directory, atomic_file, remove_directory
from tfm_cli.files.layout import (
    CARD_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    METRICS_FILE,
    ON_SCHEDULE,
    WEIGHTS_FILE,
)
from tfm_cli.files.ownership import is_card, is_scheduled_best
from tfm_cli.model.precision import precision_name
from tfm_cli.model_directory.weights import WeightsFacts, save_weights, weights_facts
from tfm_cli.text.markdown import code, plain
from tfm_cli.training import checkpoint
from tfm_cli.training.data import Corpora
from tfm_cli.training.events import (
    CheckpointDue,
    DecayBegan,
    Logged,
    Mark,
    Stopped,
    Unvalidated,
    UpdateSkipped,
    Validated,
)
from tfm_cli.training.optimizer import MovingAverage
from tfm_cli.training.parallel_model import ParallelModel
from tfm_cli.training.progress import Display, MetricsFile
from tfm_cli.training.state import TrainState
from tfm_cli.training.tensorboard import EventFile
from tfm_cli.training.validation import Validation

logger = logging.getLogger(__name__)

SavedEvent = Logged | Validated | Unvalidated | DecayBegan | CheckpointDue | UpdateSkipped


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """The facts in a model card that are neither settings nor state.

    Args:
        precision: the precision and the kind of device of the run.
        num_parameters: the number of parameters of the model.
        vocab_sizes: the vocabulary sizes of source and target.
        num_pairs: the number of pairs in the training text.
        dropped: the number of pairs that were left out, by reason.
        update: the update after which the weights were saved.
        values: the validation metrics of these weights, by name; empty without validation.
        scores: the sacreBLEU scores among them, with their signatures.
        changes: the changes of settings on request, each with its update.
        pairs: a description of the training pairs, in place of their number.
        weights: a description of the weights, in place of the update.
    """

    precision: str
    num_parameters: int
    vocab_sizes: tuple[int, int]
    num_pairs: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    update: int = 0
    values: dict[str, float]
    scores: Sequence[Score]
    changes: Sequence[str] = ()
    pairs: str = ""
    weights: str = ""


def model_card(config: RunConfig, state: TrainState, facts: CardFacts) -> str:
    """Return the README.md of a trained model: its data, shape, training and scores."""
    model, data = config.model, config.data
    corpus = (
        ", ".join(data.source + data.target + data.pairs) or "the sample corpus of tfm (generated)"
    )
    dropped = ", ".join(
        f"{count} {reason}" for reason, count in sorted(facts.dropped.items()) if count
    )
    pairs = f"{facts.num_pairs}" + (f" (left out: {dropped})" if dropped else "")
    average = f", moving average {config.training.ema_decay}" if config.training.ema_decay else ""
    rows = [
        ("training text", corpus),
        ("pairs", facts.pairs or pairs),
        ("shape", f"{model.encoder_layers}+{model.decoder_layers} layers, width {model.width}, "
                  f"{_both(model.encoder.heads, model.decoder.heads)} heads, feed-forward "
                  f"{_both(model.encoder.feed_forward_width, model.decoder.feed_forward_width)}, "
                  f"{norm_name(model.norm)}, {model.positions} positions, {model.activation}"),
        ("parameters", f"{facts.num_parameters:,}"),
        ("vocabulary", " + ".join(f"{size:,}" for size in dict.fromkeys(facts.vocab_sizes))),
        ("trained", f"{state.update} updates, {state.target_tokens:,} target tokens, "
                    f"{seconds_text(state.train_seconds)}"),
        ("precision", facts.precision),
        ("these weights", facts.weights or f"after update {facts.update}{average}"),
        *([("changed settings", "; ".join(facts.changes))] if facts.changes else []),
        ("date", time.strftime("%Y-%m-%d")),
        ("made by", f"tfm {tfm_cli.__version__}"),
    ]  # fmt: skip
    lines = ["# A translation model", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {plain(value)} |" for name, value in rows]
    if facts.values:
        lines += ["", *_score_lines(facts, config.validation.beam_size)]
    lines += ["", "## Use", "", "```", "tfm translate --model . < source.txt", "```", ""]
    lines += ["All settings are in `config.json`."]
    return "\n".join(lines) + "\n"


def _score_lines(facts: CardFacts, beam_size: int) -> list[str]:
    lines = [f"## Scores on the validation text (beam {beam_size})", ""]
    lines += ["| metric | value | signature |", "|---|---|---|"]
    signatures = {score.name.lower(): score.signature for score in facts.scores}
    for name, value in facts.values.items():
        signature = next((s for n, s in signatures.items() if n.startswith(name)), "")
        if signature:
            lines.append(f"| {name} | {value:.2f} | {code(signature)} |")
        else:
            lines.append(f"| {name} | {value:.4f} | nats per target token |")
    return lines


def _both(encoder: int, decoder: int) -> str:
    return str(encoder) if encoder == decoder else f"{encoder}+{decoder}"


class RunWriter:
    """The writer of a run's artifacts, which follows the events of the loop.

    Every rank has one and passes every event to it, since all ranks must take part in gathering
    sharded weights; only rank 0 writes files.
    """

    def __init__(
        self,
        config: RunConfig,
        output: Path,
        corpora: Corpora,
        parallel_model: ParallelModel,
        average: MovingAverage,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        tensorboard: Path | None = None,
    ) -> None:
        self._config = config
        self._output = output
        self._corpora = corpora
        self._parallel_model = parallel_model
        self._is_writer = parallel_model.parallel.is_main
        self._average = average
        self._optimizer = optimizer
        self._state = state
        self._text_sha256 = corpora.sha256()
        self._metrics: MetricsFile | None = None
        self._changes: list[str] = []
        self._resumed_update: int | None = None  # None after the first update, and on other ranks
        if self._is_writer:
            self._metrics = MetricsFile(output / METRICS_FILE, update=state.update)
            self._changes = self._metrics.changes()
            self._resumed_update = state.update
        self._events: EventFile | None = None
        if tensorboard is not None and self._metrics is not None:
            self._events = EventFile(tensorboard, output, began=time.time() - state.train_seconds)
            self._events.rewrite(self._metrics.facts())
        self._resumed = Mark(state.update, state.epoch + 1, state.train_seconds, None)
        self._has_logged_signatures = False
        self._has_warned_of_card = False
        self._failed_saves = 0  # in a row

    def write(self, event: SavedEvent, display: Display) -> None:
        """Display an event, and write the files that are due after it."""
        if self._metrics is not None:
            self._write_metrics(event, self._metrics)
        if isinstance(event, Logged):
            display.show_progress(event)
        elif isinstance(event, UpdateSkipped):
            display.show_skipped(event)
        elif isinstance(event, DecayBegan):
            display.show_decay(event)
        elif isinstance(event, Validated):
            display.show_validation(event)
            self._log_signatures(event.validation)
            if event.is_best:
                self._write_best(event)
        elif isinstance(event, Unvalidated):
            self._write_best(event)
        else:
            self._try_to_save(event)

    def stop(self, event: Stopped) -> None:
        """Record the end of training, unless this process has not trained at all."""
        state = self._state
        if self._metrics is not None:
            self._begin(state.update, self._metrics)
        if self._metrics is not None and self._resumed_update is None:
            mark = Mark(state.update, state.epoch + 1, state.train_seconds, event)
            self._metrics.add(mark)

    def last_good(self, since: int | None) -> str:
        """Return a description of the newest checkpoint from before the first bad update.

        Args:
            since: the first bad update; None if it is not known.
        """
        paths = checkpoint.checkpoint_paths(self._output / CHECKPOINTS)
        # The update before the first bad one may have damaged the weights.
        good = [path for path in paths if since is None or checkpoint.update_of(path) < since - 1]
        if good:
            return f"the last good checkpoint is `{good[-1]}`"
        if paths:
            return f"the only checkpoint is `{paths[-1]}`, whose weights may be bad already"
        return "its checkpoints went with it" if self._is_gone() else "no checkpoint was saved"

    def _write_metrics(self, event: SavedEvent, metrics: MetricsFile) -> None:
        self._begin(event.update, metrics)
        if not isinstance(event, CheckpointDue | Unvalidated):
            facts = metrics.add(event)
            if self._events is not None:
                self._events.add(facts)

    def _begin(self, update: int, metrics: MetricsFile) -> None:
        """At the first update, remove what the former command wrote because it ended there."""
        if self._resumed_update is None or update <= self._resumed_update:
            return
        self._resumed_update = None
        metrics.drop_unscheduled()
        if self._events is not None:
            self._events.rewrite(metrics.facts())
        self._restore_scheduled_best()
        if self._resumed.update:
            metrics.add(self._resumed)

    def _write_best(self, event: Validated | Unvalidated) -> None:
        """Write the best weights at once, before training changes them."""
        validation = event.validation if isinstance(event, Validated) else None
        is_scheduled = isinstance(event, Validated) and event.counted
        try:
            self._check_output()
            if self._is_writer and not is_scheduled and self._state.best_score is not None:
                self._save_scheduled_best()
            self._write_model(event.update, validation)
        except OutputError as error:
            raise self._with_hint(error) from error

    def _check_output(self) -> None:
        """Raise an OutputError if the directory is gone: a new one would lack its other files."""
        if self._is_writer and self._is_gone():
            message = f"{self._output}: was moved or removed: there is no `{CONFIG_FILE}`"
            raise OutputError(message, os_error=FileNotFoundError(errno.ENOENT, message))

    def _is_gone(self) -> bool:
        return not (self._output / CONFIG_FILE).exists()

    def _with_hint(self, error: OutputError) -> OutputError:
        """Return the error of writing an output, with a hint that depends on its cause."""
        advice = "check the disk"
        if error.is_disk_full:
            advice = "free some space"
        elif error.os_error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = f"make `{self._output}` writable"
        if self._is_gone():
            hint = (
                f"move the directory back to `{self._output}`, and repeat the command to resume; "
                "without it, training starts over"
            )
        elif checkpoint.checkpoint_paths(self._output / CHECKPOINTS):
            hint = f"{advice}, and repeat the command to resume; {self.last_good(None)}"
        else:
            hint = f"{advice}, and repeat the command; it starts over: no checkpoint was saved"
        return OutputError(str(error), os_error=error.os_error, hint=hint)

    def _try_to_save(self, event: CheckpointDue) -> None:
        """Save a checkpoint; training continues after an error unless too many occur in a row."""
        try:
            self._save(event.update)
            self._failed_saves = 0
        except OutputError as error:
            self._failed_saves += 1
            retries = self._config.training.save_retries
            if event.is_last or self._failed_saves > retries:
                raise self._with_hint(error) from error
            message = "%s; training continues, this may happen %d more times in a row; %s"
            left = retries - self._failed_saves
            logger.warning(message, error, left, self.last_good(None))

    def _save(self, update: int) -> None:
        model, average, optimizer = self._parallel_model.model, self._average, self._optimizer
        try:
            self._check_output()
            if self._corpora.valid is None:  # without validation, the newest weights are the best
                self._write_model(update, None)
            if self._metrics is not None:
                self._metrics.sync()
        except ResourceError:
            # The other ranks are unaware of the error and wait for this one to gather their shards.
            checkpoint.gather_tensors(model, average, optimizer, select=False)
            raise
        checkpoint.save(
            self._output / CHECKPOINTS,
            model=model,
            average=average,
            optimizer=optimizer,
            state=self._state,
            text_sha256=self._text_sha256,
            retention=checkpoint.Retention(
                newest=self._config.training.keep_checkpoints,
                best=self._config.training.keep_best,
                metrics=self._config.validation.metrics,
            ),
            parallel=self._parallel_model.parallel,
        )

    def _save_scheduled_best(self) -> None:
        """Copy the best model of the scheduled validations, which a resumed run restores."""
        path = self._output / CHECKPOINTS / ON_SCHEDULE
        with atomic_directory(path, may_replace=is_scheduled_best) as temporary:
            for name in self._best_files(self._output):
                durable.write_file(temporary / name, (self._output / name).read_bytes())

    def _best_files(self, directory: Path) -> list[str]:
        """Return the file names of the best model, without a card that tfm did not write."""
        has_card = is_card(self._output / CARD_FILE) and (directory / CARD_FILE).exists()
        return [WEIGHTS_FILE, CARD_FILE] if has_card else [WEIGHTS_FILE]

    def _restore_scheduled_best(self) -> None:
        saved = self._output / CHECKPOINTS / ON_SCHEDULE
        if not saved.is_dir():
            return
        try:
            weights_facts(saved)
        except ModelError as error:
            logger.warning("%s; the best model by schedule is lost", error)
            return
        try:
            for name in self._best_files(saved):
                with contextlib.suppress(FileNotFoundError):  # a killed run renamed it
                    durable.rename(saved / name, self._output / name)
            durable.sync_directory(self._output)
            remove_directory(saved, is_ours=is_scheduled_best)
        except OSError as error:
            raise ResourceError(f"{saved}: cannot be restored: {error.strerror}") from error

    def _log_signatures(self, validation: Validation) -> None:
        if not self._has_logged_signatures:
            for score in validation.scores:
                logger.info("%s signature: %s", score.name, score.signature)
        self._has_logged_signatures = True

    def _write_model(self, update: int, validation: Validation | None) -> None:
        values = validation.values if validation else {}
        weights = checkpoint.full_tensors(self._average.current(), select=self._is_writer)
        if not self._is_writer:
            return
        save_weights(
            self._output,
            weights,
            self._corpora.tokenizers,
            self._config.model,
            WeightsFacts(update, values),
        )
        if not is_card(self._output / CARD_FILE):
            if not self._has_warned_of_card:
                message = "%s: not replaced, since it is not a model card of tfm"
                logger.warning(message, self._output / CARD_FILE)
            self._has_warned_of_card = True
            return
        model = self._parallel_model
        facts = CardFacts(
            precision=f"{precision_name(model.dtype)} on {model.device.type}",
            num_parameters=sum(p.numel() for p in model.model.parameters()),
            vocab_sizes=self._corpora.tokenizers.vocab_sizes,
            num_pairs=len(self._corpora.train),
            dropped=dict(self._corpora.train.dropped),
            update=update,
            values=values,
            scores=validation.scores if validation else (),
            changes=self._changes,
        )
        card = model_card(self._config, self._state, facts)
        with atomic_file(self._output / CARD_FILE, follow=False) as stream:
            stream.write(card.encode("utf-8", "backslashreplace"))
