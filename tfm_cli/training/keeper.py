"""What a run leaves on the disk: the best weights, their card, the metrics and checkpoints."""

import contextlib
import errno
import logging
from pathlib import Path

import torch

from tfm_cli import durable
from tfm_cli.config import RunConfig
from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.files import atomic_directory, atomic_file, is_full, remove_directory
from tfm_cli.model_config import CONFIG_FILE, WEIGHTS_FILE
from tfm_cli.model_dir import WeightsFacts, save_weights, weights_facts
from tfm_cli.ownership import CHECKPOINTS, ON_SCHEDULE, is_card, is_set_aside
from tfm_cli.training import checkpoint
from tfm_cli.training.corpora import Corpora
from tfm_cli.training.learner import Learner
from tfm_cli.training.loop import Logged, SaveDue, Unjudged, Validated
from tfm_cli.training.model_card import model_card
from tfm_cli.training.optim import MovingAverage
from tfm_cli.training.output_dir import CARD_FILE, METRICS_FILE
from tfm_cli.training.report import Display, MetricsFile
from tfm_cli.training.state import TrainState
from tfm_cli.training.validate import Validation
from tfm_cli.training.window import Refused

logger = logging.getLogger(__name__)


class Keeper:
    """Writes what the loop's events ask for; a class because it holds all of the run's parts.

    Each process has one and shows it each event, since all bring their shards of the weights; that
    of rank 0 writes.
    """

    def __init__(
        self,
        config: RunConfig,
        output: Path,
        corpora: Corpora,
        learner: Learner,
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
        self._learner = learner
        self._writes = learner.parallel.is_main
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
        self, event: Logged | Validated | Unjudged | SaveDue | Refused, display: Display
    ) -> None:
        """Show an event, and write what it makes due."""
        if self._metrics is not None:
            self._note(event, self._metrics)
        if isinstance(event, Logged):
            display.logged(event)
        elif isinstance(event, Refused):
            display.refused(event)
        elif isinstance(event, Validated):
            display.validated(event)
            self._say_signatures(event.validation)
            if event.is_best:
                self._keep_best(event)
        elif isinstance(event, Unjudged):
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
        self, event: Logged | Validated | Unjudged | SaveDue | Refused, metrics: MetricsFile
    ) -> None:
        if self._goes_on_from is not None and event.update > self._goes_on_from:
            self._goes_on_from = None
            metrics.drop_unscheduled()
            self._take_back()
        if not isinstance(event, SaveDue | Unjudged):
            metrics.add(event)

    def _keep_best(self, event: Validated | Unjudged) -> None:
        """Write the best weights; they cannot be put off, since training moves on from them."""
        validation = event.validation if isinstance(event, Validated) else None
        is_by_schedule = isinstance(event, Validated) and event.counted
        try:
            self._check_place()
            if self._writes and not is_by_schedule and self._state.best_score is not None:
                self._set_aside()
            self._write_model(event.update, validation)
        except ResourceError as error:
            if isinstance(error.__cause__, OSError):
                error.hint = self._hint(error.__cause__)
            raise

    def _check_place(self) -> None:
        """Refuse to make a directory anew that was moved away: no run could go on from it."""
        if self._writes and self._is_gone():
            told = f"{self._output}: was moved or removed: there is no `{CONFIG_FILE}`"
            raise ResourceError(told) from FileNotFoundError(errno.ENOENT, told)

    def _is_gone(self) -> bool:
        return not (self._output / CONFIG_FILE).exists()

    def _hint(self, cause: OSError) -> str:
        """Return what to do when the disk refuses, as far as the cause tells."""
        if self._is_gone():
            return (
                f"move the directory back to `{self._output}`, and the same command goes on; "
                "without it, that command begins anew"
            )
        first = "see to the disk"
        if is_full(cause):
            first = "make room"
        elif cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            first = f"make `{self._output}` writable"
        if not checkpoint.all_paths(self._output / CHECKPOINTS):
            return (
                f"{first}, and give the same command again; it begins anew: no checkpoint was saved"
            )
        return f"{first}, and the same command goes on; {self.last_good(None)}"

    def _save_or_go_on(self, event: SaveDue) -> None:
        """Save; if the disk refuses, the next time may be better, and the last one still counts."""
        try:
            self._save(event.update)
            self._failed_saves = 0
        except ResourceError as error:
            self._failed_saves += 1
            retries = self._config.training.save_retries
            if not isinstance(error.__cause__, OSError):
                raise
            if event.is_last or self._failed_saves > retries:
                error.hint = self._hint(error.__cause__)
                raise
            told = "%s; training goes on, this may happen %d more times in a row; %s"
            left = retries - self._failed_saves
            logger.warning(told, error, left, self.last_good(None))

    def _save(self, update: int) -> None:
        model, average, optimizer = self._learner.model, self._average, self._optimizer
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
            parallel=self._learner.parallel,
        )

    def _set_aside(self) -> None:
        place = self._output / CHECKPOINTS / ON_SCHEDULE
        with atomic_directory(place, may_replace=is_set_aside) as aside:
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
            remove_directory(kept, is_ours=is_set_aside)
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
            num_parameters=sum(p.numel() for p in self._learner.model.parameters()),
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
