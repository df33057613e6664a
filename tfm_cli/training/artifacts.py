"""What a run leaves on the disk: the best weights, their card, the metrics and checkpoints."""

import contextlib
import errno
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import tfm_cli
from tfm_cli.config.settings import RunConfig
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
from tfm_cli.model_directory.weights import WeightsFacts, save_weights, weights_facts
from tfm_cli.text.markdown import code, plain
from tfm_cli.training import checkpoint
from tfm_cli.training.data import Corpora
from tfm_cli.training.events import CheckpointDue, Logged, Unvalidated, UpdateSkipped, Validated
from tfm_cli.training.optimizer import MovingAverage
from tfm_cli.training.parallel_model import ParallelModel
from tfm_cli.training.progress import Display, MetricsFile
from tfm_cli.training.state import TrainState
from tfm_cli.training.validation import Validation

logger = logging.getLogger(__name__)


# The README.md of a trained model: what it is, what it learned from, how good it is.


def model_card(
    config: RunConfig,
    state: TrainState,
    *,
    arithmetic: str,
    num_parameters: int,
    vocab_sizes: tuple[int, int],
    num_pairs: int,
    dropped: dict[str, int],
    update: int,
    values: dict[str, float],
    scores: Sequence[Score],
) -> str:
    """Return Markdown that answers what a reader of the model's folder would ask first.

    `arithmetic` names the precision and the kind of device that the run computes with.
    """
    model, data = config.model, config.data
    corpus = (
        ", ".join(data.source + data.target + data.pairs) or "the sample corpus of tfm (generated)"
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count)
    rows = [
        ("training text", corpus),
        ("pairs", f"{num_pairs}" + (f" (left out: {left_out})" if left_out else "")),
        ("shape", f"{model.encoder_layers}+{model.decoder_layers} layers, width {model.width}, "
                  f"{_both(model.encoder.heads, model.decoder.heads)} heads, feed-forward "
                  f"{_both(model.encoder.feed_forward_width, model.decoder.feed_forward_width)}, "
                  f"{model.norm}-norm, {model.positions} positions, {model.activation}"),
        ("parameters", f"{num_parameters:,}"),
        ("pieces", " + ".join(f"{size:,}" for size in dict.fromkeys(vocab_sizes))),
        ("trained", f"{state.update} updates, {state.target_pieces:,} target pieces, "
                    f"{seconds_text(state.train_seconds)}"),
        ("arithmetic", arithmetic),
        ("these weights", f"after update {update}"
                          + (f", moving average {config.training.ema_decay}"
                             if config.training.ema_decay else "")),
        ("date", time.strftime("%Y-%m-%d")),
        ("made by", f"tfm {tfm_cli.__version__}"),
    ]  # fmt: skip
    lines = ["# A translation model", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {plain(value)} |" for name, value in rows]
    if values:
        beam = config.validation.beam_size
        lines += ["", f"## Scores on the validation text (beam {beam})", ""]
        lines += ["| metric | value | signature |", "|---|---|---|"]
        signatures = {score.name.lower(): score.signature for score in scores}
        for name, value in values.items():
            signature = next((s for n, s in signatures.items() if n.startswith(name)), "")
            lines.append(f"| {name} | {value:.2f} | {code(signature)} |" if signature
                         else f"| {name} | {value:.4f} | nats per target piece |")  # fmt: skip
    lines += ["", "## Use", "", "```", "tfm translate --model . < source.txt", "```", ""]
    lines += ["All settings are in `config.json`."]
    return "\n".join(lines) + "\n"


def _both(encoder: int, decoder: int) -> str:
    return str(encoder) if encoder == decoder else f"{encoder}+{decoder}"


class RunWriter:
    """Writes what the loop's events ask for; a class because it holds all of the run's parts.

    Each process has one and shows it each event, since all bring their shards of the weights; that
    of rank 0 writes.
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
        *,
        arithmetic: str,
    ) -> None:
        self._config = config
        self._arithmetic = arithmetic
        self._output = output
        self._corpora = corpora
        self._parallel_model = parallel_model
        self._writes = parallel_model.parallel.is_main
        self._average = average
        self._optimizer = optimizer
        self._state = state
        self._text_sha256 = corpora.sha256()
        self._metrics: MetricsFile | None = None
        self._goes_on_from: int | None = None
        if self._writes:
            self._metrics = MetricsFile(output / METRICS_FILE, update=state.update)
            self._goes_on_from = state.update
        self._signatures_said = False
        self._card_said = False
        self._failed_saves = 0  # in a row

    def keep(
        self,
        event: Logged | Validated | Unvalidated | CheckpointDue | UpdateSkipped,
        display: Display,
    ) -> None:
        """Show an event, and write what it makes due."""
        if self._metrics is not None:
            self._note(event, self._metrics)
        if isinstance(event, Logged):
            display.logged(event)
        elif isinstance(event, UpdateSkipped):
            display.refused(event)
        elif isinstance(event, Validated):
            display.validated(event)
            self._say_signatures(event.validation)
            if event.is_best:
                self._keep_best(event)
        elif isinstance(event, Unvalidated):
            self._keep_best(event)
        else:
            self._save_or_go_on(event)

    def last_good(self, since: int | None) -> str:
        """Words that name the newest checkpoint whose weights made an update that went well.

        Args:
            since: the first update that did not; None where it is not known.
        """
        paths = checkpoint.all_paths(self._output / CHECKPOINTS)
        good = [p for p in paths if since is None or p.name < f"update-{since - 1:08d}"]
        if good:
            return f"the last good checkpoint is `{good[-1]}`"
        if paths:
            return f"the only checkpoint is `{paths[-1]}`, whose weights may be as bad already"
        return "no checkpoint was saved" if not self._is_gone() else "its checkpoints went with it"

    def _note(
        self,
        event: Logged | Validated | Unvalidated | CheckpointDue | UpdateSkipped,
        metrics: MetricsFile,
    ) -> None:
        if self._goes_on_from is not None and event.update > self._goes_on_from:
            self._goes_on_from = None
            metrics.drop_unscheduled()
            self._take_back()
        if not isinstance(event, CheckpointDue | Unvalidated):
            metrics.add(event)

    def _keep_best(self, event: Validated | Unvalidated) -> None:
        """Write the best weights; they cannot be put off, since training moves on from them."""
        validation = event.validation if isinstance(event, Validated) else None
        is_by_schedule = isinstance(event, Validated) and event.counted
        try:
            self._check_place()
            if self._writes and not is_by_schedule and self._state.best_score is not None:
                self._set_aside()
            self._write_model(event.update, validation)
        except OutputError as error:
            error.hint = self._hint(error)
            raise

    def _check_place(self) -> None:
        """Refuse to make a directory anew that was moved away: no run could go on from it."""
        if self._writes and self._is_gone():
            told = f"{self._output}: was moved or removed: there is no `{CONFIG_FILE}`"
            raise OutputError(told, os_error=FileNotFoundError(errno.ENOENT, told))

    def _is_gone(self) -> bool:
        return not (self._output / CONFIG_FILE).exists()

    def _hint(self, error: OutputError) -> str:
        """Return the hint for an output that could not be written, by its reason."""
        if self._is_gone():
            return (
                f"move the directory back to `{self._output}`, and the same command goes on; "
                "without it, that command begins anew"
            )
        first = "see to the disk"
        if error.is_disk_full:
            first = "make room"
        elif error.os_error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            first = f"make `{self._output}` writable"
        if not checkpoint.all_paths(self._output / CHECKPOINTS):
            return (
                f"{first}, and give the same command again; it begins anew: no checkpoint was saved"
            )
        return f"{first}, and the same command goes on; {self.last_good(None)}"

    def _save_or_go_on(self, event: CheckpointDue) -> None:
        """Save; if the disk refuses, the next time may be better, and the last one still counts."""
        try:
            self._save(event.update)
            self._failed_saves = 0
        except OutputError as error:
            self._failed_saves += 1
            retries = self._config.training.save_retries
            if event.is_last or self._failed_saves > retries:
                error.hint = self._hint(error)
                raise
            told = "%s; training goes on, this may happen %d more times in a row; %s"
            left = retries - self._failed_saves
            logger.warning(told, error, left, self.last_good(None))

    def _save(self, update: int) -> None:
        model, average, optimizer = self._parallel_model.model, self._average, self._optimizer
        try:
            self._check_place()
            if self._corpora.valid is None:  # nothing says which weights are best: the newest
                self._write_model(update, None)
            if self._metrics is not None:
                self._metrics.sync()
        except ResourceError:
            # The other processes know of nothing, and bring their shards.
            checkpoint.gathered(model, average, optimizer, wanted=False)
            raise
        checkpoint.save(
            self._output / CHECKPOINTS,
            model=model,
            average=average,
            optimizer=optimizer,
            state=self._state,
            text_sha256=self._text_sha256,
            keep=self._config.training.keep_checkpoints,
            parallel=self._parallel_model.parallel,
        )

    def _set_aside(self) -> None:
        place = self._output / CHECKPOINTS / ON_SCHEDULE
        with atomic_directory(place, may_replace=is_scheduled_best) as aside:
            for name in self._best_files(self._output):
                durable.write_file(aside / name, (self._output / name).read_bytes())

    def _best_files(self, place: Path) -> list[str]:
        """Return the files of the best model, without a card that somebody else wrote."""
        has_card = is_card(self._output / CARD_FILE) and (place / CARD_FILE).exists()
        return [WEIGHTS_FILE, CARD_FILE] if has_card else [WEIGHTS_FILE]

    def _take_back(self) -> None:
        kept = self._output / CHECKPOINTS / ON_SCHEDULE
        if not kept.is_dir():
            return
        try:
            weights_facts(kept)
        except ModelError as error:
            logger.warning("%s; the best model by schedule is lost", error)
            return
        try:
            for name in self._best_files(kept):
                with contextlib.suppress(FileNotFoundError):  # taken already, by a run killed here
                    durable.rename(kept / name, self._output / name)
            durable.sync_directory(self._output)
            remove_directory(kept, is_ours=is_scheduled_best)
        except OSError as error:
            raise ResourceError(f"{kept}: cannot be taken back: {error.strerror}") from error

    def _say_signatures(self, validation: Validation) -> None:
        if not self._signatures_said:
            for score in validation.scores:
                logger.info("%s signature: %s", score.name, score.signature)
        self._signatures_said = True

    def _write_model(self, update: int, validation: Validation | None) -> None:
        values = validation.values if validation else {}
        weights = checkpoint.whole(self._average.current(), wanted=self._writes)
        if not self._writes:
            return
        save_weights(
            self._output,
            weights,
            self._corpora.tokenizers,
            self._config.model,
            WeightsFacts(update, values),
        )
        card = model_card(
            self._config,
            self._state,
            arithmetic=self._arithmetic,
            num_parameters=sum(p.numel() for p in self._parallel_model.model.parameters()),
            vocab_sizes=self._corpora.tokenizers.vocab_sizes,
            num_pairs=len(self._corpora.train),
            dropped=dict(self._corpora.train.dropped),
            update=update,
            values=values,
            scores=validation.scores if validation else (),
        )
        if not is_card(self._output / CARD_FILE):
            if not self._card_said:
                told = "%s: is no model card of tfm, so it is left as it is"
                logger.warning(told, self._output / CARD_FILE)
            self._card_said = True
            return
        with atomic_file(self._output / CARD_FILE, follow=False) as stream:
            stream.write(card.encode("utf-8", "backslashreplace"))
