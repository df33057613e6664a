"""The start of a run in a directory: its checks and its lock, before any slow work.

PyTorch is imported once everything that can be checked without it was checked.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfm_cli.config.settings import RunConfig
from tfm_cli.errors import DataError
from tfm_cli.parallel import Parallel
from tfm_cli.training import data, run_directory, tensorboard
from tfm_cli.training.schedule import check_has_end
from tfm_cli.training.state import TrainState
from tfm_cli.training.time_limit import TimeLimit

if TYPE_CHECKING:
    from tfm_cli.training.events import Stopped

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """The options of a command that are not settings of its run.

    Args:
        overwrite: begin a new run, in place of a model in the directory.
        allow_change: permit changes of settings that may change on request.
        name_of: returns the name of a setting in messages, such as its flag.
        more_inputs: files that are read, beside those in the settings.
        notes: lines to log before training, once the inputs were checked.
        tensorboard: directory for TensorBoard's event file; None for none.
        stop: returns True if the run should stop, called between updates; None to stop it by
            signals.
    """

    overwrite: bool = False
    allow_change: bool = False
    name_of: Callable[[str], str]
    more_inputs: tuple[Path, ...] = ()
    notes: Sequence[str] = ()
    tensorboard: Path | None = None
    stop: Callable[[], bool] | None = None


def start(
    config: RunConfig, output: Path, options: StartOptions, *, parallel: Parallel, limit: TimeLimit
) -> "Stopped":
    """Check a run and its directory, lock the directory, train, and return the reason to stop.

    Args:
        config: all settings.
        output: the directory of the run.
        options: see `StartOptions`.
        parallel: the processes that train together, connected.
        limit: the time limit.

    Raises:
        TfmError: see `tfm_cli.training.run.run`; before it, the directory is left as it is.
    """
    if parallel.is_main:  # before a lock is written there
        run_directory.check_output(config, output, overwrite=options.overwrite)
        run_directory.check_inputs_not_overwritten(
            config, output, resume=True, more=options.more_inputs
        )
        if options.tensorboard is not None:
            tensorboard.check_directory(options.tensorboard, output)
    with contextlib.ExitStack() as contexts:
        if parallel.is_main:
            contexts.enter_context(run_directory.locked(output))
        resume = parallel.is_main and run_directory.can_resume(
            config, output, overwrite=options.overwrite, allow_change=options.allow_change
        )
        if parallel.is_main and not resume:
            check_has_end(config.training, TrainState())
        if parallel.is_main:
            run_directory.check_inputs_not_overwritten(config, output, resume=resume)
        try:
            with _moved_text_named(config, options.name_of, resume=resume):
                data.check_inputs(config, needs_tokenizer=parallel.is_main and not resume)
        except DataError:
            is_alone = resume and parallel.world_size == 1 and options.tensorboard is None
            if is_alone and (stopped := _finished(config, output)):
                return stopped
            raise
        for note in options.notes:
            logger.info("%s", note)
        if not (config.data.source or config.data.pairs):
            logger.info(
                "no training text is given: training on the sample corpus, preset `%s`",
                config.preset,
            )

        from tfm_cli.training.run import run  # imports torch: seconds, so not at the top

        if parallel.is_main and not resume:
            contexts.enter_context(run_directory.marked(output, config.data))
        return run(
            config,
            output,
            resume=resume,
            allow_change=options.allow_change,
            parallel=parallel,
            limit=limit,
            tensorboard=options.tensorboard,
            stop=options.stop,
        )


def _finished(config: RunConfig, output: Path) -> "Stopped | None":
    """Return why the run in a directory is complete, if it needs its missing text no more."""
    from tfm_cli.training.run import finished  # imports torch

    return finished(config, output) if _missing_text(config) else None


def _missing_text(config: RunConfig) -> list[str]:
    """Return the names of the settings of the text with files that are missing."""
    return [
        name
        for name in ("source", "target", "pairs", "valid_source", "valid_target")
        if any(path != "-" and not os.path.exists(path)  # noqa: PTH110 - any length
               for path in getattr(config.data, name))
    ]  # fmt: skip


@contextlib.contextmanager
def _moved_text_named(
    config: RunConfig, name_of: Callable[[str], str], *, resume: bool
) -> Iterator[None]:
    """Add a hint to an error about missing text of a resumed run: the names that give its place."""
    try:
        yield
    except DataError as error:
        missing = [f"`{name_of(f'data.{name}')} PATH`" for name in _missing_text(config)]
        if error.hint or not resume or not missing:
            raise
        raise DataError(
            str(error),
            hint=f"if the text of this run has moved, give its new place with {' '.join(missing)}",
        ) from error
