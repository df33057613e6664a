"""The directory a run writes: whether there is a run to go on with, and what may be replaced."""

import contextlib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from tfm_cli import durable
from tfm_cli.config import RunConfig
from tfm_cli.configfile import changed_settings
from tfm_cli.errors import ConfigError, ResourceError
from tfm_cli.files import check_writable, is_leftover, remove_directory
from tfm_cli.model_config import (
    CONFIG_FILE,
    SHORTLIST_FILE,
    WEIGHTS_FILE,
    is_saved_model,
    load_config,
)
from tfm_cli.tokenizer_pair import TOKENIZER_FILES
from tfm_cli.training.run_lock import LOCK_FILE

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.jsonl"
CORPUS = "corpus"
# The settings go last when all is removed, so that what is left is still known as ours.
_FILES = (WEIGHTS_FILE, SHORTLIST_FILE, CARD_FILE, METRICS_FILE, *TOKENIZER_FILES, CONFIG_FILE)
# What can stand there without `config.json`, when a run was killed while it began.
_BEGINNING = (*TOKENIZER_FILES, CHECKPOINTS, CORPUS, LOCK_FILE)


def has_run(config: RunConfig, output: Path, *, overwrite: bool) -> bool:
    """Whether `output` holds a run to go on with; False where one can begin there.

    Needs no torch, so it can be asked before any work.

    Raises:
        ResourceError: the directory could not be written.
        ConfigError: it holds something else, a run with other settings, a model that cannot be
            gone on with, or the one to start from.
        ModelError: its `config.json` is torn.
    """
    check_writable(output, folder=True)
    pretrained = config.training.pretrained_model
    if overwrite and pretrained and output.exists() and _is_same(Path(pretrained), output):
        raise ConfigError(
            f"{output}: is the model to start from, which `--overwrite` would remove",
            hint="name another `--output`",
        )
    entries = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if overwrite or CONFIG_FILE not in entries:
        foreign = [] if is_saved_model(output) else sorted(filter(_is_foreign, entries))
        if foreign:
            shown = ", ".join(f"`{name}`" for name in foreign[:3]) + (" …" if foreign[3:] else "")
            raise ConfigError(
                f"{output}: is not empty and holds no model: {shown}",
                hint="name another `--output`",
            )
        return False
    changes = changed_settings(load_config(output).settings, config)
    if changes:
        plural = "s" if len(changes) > 1 else ""
        title = f"{output}: holds a run with other settings; {len(changes)} change{plural}"
        raise ConfigError(
            "\n  ".join([title, *changes]),
            hint="keep them as they were, or use `--overwrite` or another `--output`",
        )
    if WEIGHTS_FILE in entries and CHECKPOINTS not in entries:
        raise ConfigError(
            f"{output}: holds a trained model, but no `{CHECKPOINTS}` to go on from",
            hint=f"use it by `--pretrained-model {output}` and another `--output`, "
            "or start again with `--overwrite`",
        )
    if any((output / CHECKPOINTS).glob("update-*")):
        return True
    logger.info("%s: was ended before its first checkpoint; it begins again", output)
    return False


def clear(output: Path, *, keep: Collection[str] = ()) -> None:
    """Remove a model's files, and nothing else, so that a new run can begin.

    Args:
        output: of the run.
        keep: the files that it replaces anyway; one may be what it was told to read.
    """
    with _disk_errors(output):
        remove_directory(output / CHECKPOINTS)
        for name in _FILES:
            path = output / name
            if path.is_symlink() or (path.exists() and name not in keep):
                durable.remove(path)


def begin(output: Path) -> None:
    """Make the directory if need be, and sweep out what killed runs left half-written."""
    with _disk_errors(output):
        for directory in (output, output / CHECKPOINTS):
            durable.make_directory(directory)
            for path in (p for p in directory.iterdir() if is_leftover(p.name)):
                if path.is_dir():
                    remove_directory(path)
                else:
                    durable.remove(path)


@contextlib.contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """What the disk or its permissions refuse becomes a ResourceError."""
    try:
        yield
    except OSError as error:
        place = error.filename or output
        raise ResourceError(f"{place}: cannot be changed: {error.strerror}") from error


def _is_same(folder: Path, other: Path) -> bool:
    return folder.exists() and folder.samefile(other)


def _is_foreign(name: str) -> bool:
    return name not in _BEGINNING and not is_leftover(name)
