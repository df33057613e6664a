"""The directory a run writes: whether there is a run to go on with, and what may be replaced."""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import tfm_cli
from tfm_cli.config.loading import changed_settings
from tfm_cli.config.settings import RunConfig, is_rule_file
from tfm_cli.errors import ConfigError, ResourceError
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_file, check_replaceable, check_writable, remove_directory
from tfm_cli.files.layout import (
    CARD_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    CORPUS,
    LOCK_FILE,
    MARKER_FILE,
    METRICS_FILE,
    ON_SCHEDULE,
    SHORTLIST_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
)
from tfm_cli.files.ownership import (
    holds_marker,
    holds_model,
    inspecting,
    is_card,
    is_checkpoint,
    is_checkpoint_name,
    is_checkpoints_directory,
    is_corpus_cache,
    is_prepared_text,
    is_scheduled_best,
    is_temporary,
    is_temporary_of,
    output_error,
    sweep,
)
from tfm_cli.files.untrusted import NOT_OURS, NotPrivateError, check_private, parse_json_object
from tfm_cli.model_directory.config_file import load_config

logger = logging.getLogger(__name__)


# One run at a time in a directory; a lock that a dead process left does not count.

_BEGINNING = b'{"pid": '
_TELLING_SECONDS = 0.5  # from taking the lock to having told by whom it was taken


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Inside, no other process trains into `output`, which exists.

    The system lets go of the lock of a process that ends, however it does. If `output` is new and
    empty at the end, it is removed again.

    Raises:
        ResourceError: another process trains into it: names that process, its machine and since
            when; or the directory, or the lock in it, cannot be written.
    """
    check_writable(output, folder=True)
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    path = output / LOCK_FILE
    try:
        durable.make_directory(output)
        stream = _taken(path, output)
    except OSError as error:
        raise output_error(output, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            durable.remove(path)  # while it is held, so that it is nobody else's
        stream.close()
        with contextlib.suppress(OSError):  # it is not empty
            for folder in missing:
                durable.remove(folder)


def _taken(path: Path, output: Path) -> BinaryIO:
    """The lock file, open and held."""
    while True:
        stream = durable.open_for_update(path)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with stream:
                raise ResourceError(
                    f"{output}: {_holder(stream)}",
                    hint="wait for its end, end it, or name another `--output`",
                ) from error
        except OSError as error:
            logger.warning("%s: no lock against a second run: %s", output, error.strerror)
            return stream
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.lstat()):
                break
        stream.close()  # another process has just ended, and this was its lock
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(stream.close)
        if os.pread(stream.fileno(), len(_BEGINNING), 0) not in (b"", _BEGINNING):
            raise NotPrivateError(errno.EEXIST, NOT_OURS, str(path))
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        stream.truncate(0)
        stream.write(json.dumps(facts).encode())
        stream.flush()
        on_failure.pop_all()
    return stream


def _holder(stream: BinaryIO) -> str:
    until = time.monotonic() + _TELLING_SECONDS
    while True:
        with contextlib.suppress(ValueError, KeyError):
            facts = parse_json_object(os.pread(stream.fileno(), 1 << 10, 0))
            pid, host, since = (str(facts[name])[:80] for name in ("pid", "host", "since"))
            return f"process {pid} on {host} trains into it since {since}"
        if time.monotonic() > until:
            return "another process trains into it"
        time.sleep(0.02)


# The settings go last when all is removed, so that what is left is still known as ours.
_FILES = (WEIGHTS_FILE, SHORTLIST_FILE, CARD_FILE, METRICS_FILE, *TOKENIZER_FILES, CONFIG_FILE)
_CHANGED_IN_PLACE = (LOCK_FILE, METRICS_FILE)


def can_resume(config: RunConfig, output: Path, *, overwrite: bool) -> bool:
    """Whether `output` holds a run to go on with; False where one can begin there.

    Needs no torch, so it can be asked before any work.

    Raises:
        ResourceError: the directory could not be written.
        ConfigError: it holds something else, a run with other settings, a model that cannot be
            gone on with, or the one to start from.
        ModelError: its `config.json` is torn.
    """
    check_output(config, output, overwrite=overwrite)
    pretrained = config.training.pretrained_model
    if overwrite and pretrained and output.exists() and _is_same(Path(pretrained), output):
        raise ConfigError(
            f"{output}: is the model to start from, which `--overwrite` would remove",
            hint="name another `--output`",
        )
    entries = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if overwrite or CONFIG_FILE not in entries:
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


def check_output(config: RunConfig, output: Path, *, overwrite: bool = False) -> None:
    """Refuse an output directory that is not ours to change; nothing in it is touched.

    It must be new, be empty, hold a `config.json` of ours, or be marked as that of a run that
    began. What a run of version 0.1 left, that was killed before its `config.json`, is accepted if
    each entry is proven to be of it.

    Raises:
        ResourceError: it could not be written, or a name that is ours leads to something else.
        ConfigError: it holds something else, or a link where a directory of ours would be.
    """
    check_writable(output, folder=True)
    if not output.is_dir():
        return
    with inspecting(output):
        _refuse_links(config, output)
        entries = sorted(path.name for path in output.iterdir())
        if CONFIG_FILE in entries:
            is_ours = holds_model(output) or not overwrite  # its reader tells if it is torn
        else:
            is_ours = holds_marker(output)
        if is_ours:
            return
        began = LOCK_FILE in entries or any(map(_is_temporary, entries))
        foreign = [name for name in entries if not _is_of_beginning(output / name, began=began)]
    if foreign:
        shown = ", ".join(f"`{name}`" for name in foreign[:3]) + (" …" if foreign[3:] else "")
        raise ConfigError(
            f"{output}: is not empty and holds no model: {shown}",
            hint="name another `--output`",
        )


def _refuse_links(config: RunConfig, output: Path) -> None:
    """Refuse names of ours that lead elsewhere: what is written there is not for this directory."""
    for name in (CHECKPOINTS, *(() if config.data.cache else (CORPUS,))):
        path = output / name
        if path.is_symlink():
            hint = "link the whole output directory instead"
            if name == CORPUS:
                hint = "remove the link, and name the place by `--data-cache`"
            raise ConfigError(f"{path}: is a symbolic link, wanted a directory", hint=hint)
        if os.path.lexists(path) and not path.is_dir():
            raise ConfigError(f"{path}: is not a directory", hint="name another `--output`")
    place = output / CHECKPOINTS / ON_SCHEDULE
    if os.path.lexists(place) and not is_scheduled_best(place):
        odd = (
            sorted({path.name for path in place.iterdir()} - {WEIGHTS_FILE, CARD_FILE})
            if place.is_dir()
            else []
        )
        told = f"has what tfm did not write there: `{odd[0]}`" if odd else "is not a directory"
        raise ConfigError(f"{place}: {told}", hint="move it away, or name another `--output`")
    for name in (*_FILES, LOCK_FILE, MARKER_FILE):
        check = check_private if name in _CHANGED_IN_PLACE else check_replaceable
        try:
            check(output / name)
        except NotPrivateError as error:
            raise output_error(output, error) from error
    marker = output / MARKER_FILE
    if os.path.lexists(marker) and not holds_marker(output):
        raise output_error(output, NotPrivateError(errno.EEXIST, NOT_OURS, str(marker)))


def _is_of_beginning(path: Path, *, began: bool) -> bool:
    """Return True for an entry that a run may leave that was killed before its `config.json`.

    Args:
        path: of the entry.
        began: whether something else shows that there was such a run.
    """
    name = path.name
    if name in (LOCK_FILE, MARKER_FILE):
        return True
    if _is_temporary(name):
        return True
    if name in TOKENIZER_FILES:
        return began
    if name == CHECKPOINTS:  # what is in it needs the settings
        return is_checkpoints_directory(path) and all(
            is_temporary(entry.name) for entry in path.iterdir()
        )
    return is_corpus_cache(path)


def _is_temporary(name: str) -> bool:
    """Return True for the temporary name of a file that a run writes."""
    return any(is_temporary_of(name, file, of_0_1=True) for file in (*_FILES, MARKER_FILE))


def check_inputs_not_overwritten(
    config: RunConfig, output: Path, *, resume: bool, more: Iterable[str | Path] = ()
) -> None:
    """Refuse an output directory whose files a run would replace or remove while it reads them.

    Other inputs may lie in it: they stay as they are.

    Args:
        config: names the inputs.
        output: of the run.
        resume: whether a run is resumed, which reads no pretrained model and keeps its
            tokenizers.
        more: inputs that the settings do not name.

    Raises:
        ConfigError: names the input.
    """
    data = config.data
    inputs = [*data.source, *data.target, *data.pairs, *data.valid_source, *data.valid_target]
    inputs += [str(path) for path in more]
    inputs += [data.cache] if data.cache else []
    rule = config.tokenizer.normalization_rule_name
    inputs += [rule] if is_rule_file(rule) else []
    models = [config.tokenizer.model]
    models += [] if resume else [config.training.pretrained_model]
    for model in filter(None, models):
        inputs.append(model)
        if Path(model).is_dir():
            inputs += [f"{model}/{name}" for name in (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES)]
    replaced = _replaced(config, Path(os.path.realpath(output)), resume=resume)
    for name in inputs:
        place = Path(os.path.realpath(name))
        if name == "-":
            is_replaced, name = _is_stdin_among(replaced), "standard input"
        else:
            is_replaced, name = any(map(place.is_relative_to, replaced)), f"`{name}`"
        if is_replaced:
            raise ConfigError(
                f"{output}: would replace or remove {name}, which is read",
                hint="name another `--output`",
            )


def _is_stdin_among(paths: Iterable[Path]) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it is closed, or no file
        status = os.fstat(sys.stdin.fileno())
        for path in paths:
            files = [path, *path.rglob("*")] if path.is_dir() else [path]
            if any(os.path.samestat(status, each.lstat()) for each in files if each.exists()):
                return True
    return False


def _replaced(config: RunConfig, output: Path, *, resume: bool) -> list[Path]:
    """Return what a run replaces or removes in its output directory."""
    names = [*_FILES, LOCK_FILE, MARKER_FILE]
    if resume:  # what is the same is not written again
        names = [name for name in names if name not in TOKENIZER_FILES]
    paths = [output / name for name in names]
    for folder, is_ours in ((CHECKPOINTS, _is_of_run), (CORPUS, is_prepared_text)):
        if folder == CHECKPOINTS or not config.data.cache:
            with contextlib.suppress(OSError):
                paths += [path for path in (output / folder).iterdir() if is_ours(path)]
    return paths


def _is_of_run(path: Path) -> bool:
    return is_checkpoint(path) or is_scheduled_best(path)


@contextlib.contextmanager
def marked(output: Path) -> Iterator[None]:
    """Mark a directory that exists as ours, before anything else is written into it.

    The mark is taken off by `unmark`, when the settings are saved, which tell the same; or at the
    end, where nothing was made.
    """
    with atomic_file(output / MARKER_FILE, follow=False) as stream:
        stream.write(json.dumps({"tfm_version": tfm_cli.__version__}).encode() + b"\n")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ResourceError):  # what went wrong before is told
            others = {path.name for path in output.iterdir()} - {MARKER_FILE, LOCK_FILE}
            if not others or CONFIG_FILE in others:
                unmark(output)


def unmark(output: Path) -> None:
    """Take the mark of a run that began off a directory, if there is one."""
    if os.path.lexists(output / MARKER_FILE):
        with _disk_errors(output):
            durable.remove(output / MARKER_FILE)


def clear(output: Path, *, keep: Collection[str] = ()) -> None:
    """Remove a model's files, and nothing else, so that a new run can begin.

    Args:
        output: of the run.
        keep: the files that it replaces anyway.
    """
    checkpoints = output / CHECKPOINTS
    with _disk_errors(output):
        if checkpoints.is_dir():
            for path in sorted(filter(is_checkpoint, checkpoints.iterdir())):
                remove_directory(path, is_ours=is_checkpoint)
            if is_scheduled_best(checkpoints / ON_SCHEDULE):
                remove_directory(checkpoints / ON_SCHEDULE, is_ours=is_scheduled_best)
            sweep_checkpoints(checkpoints)
            if not any(checkpoints.iterdir()):
                durable.remove(checkpoints)
        for name in _FILES:
            is_theirs = name == CARD_FILE and not is_card(output / name)
            if name not in keep and not is_theirs and os.path.lexists(output / name):
                check_replaceable(output / name)
                durable.remove(output / name)


def begin(output: Path) -> None:
    """Make the directory if need be, and sweep out what killed runs left half-written."""
    with _disk_errors(output):
        for directory in (output, output / CHECKPOINTS):
            durable.make_directory(directory)
        sweep(output, [*_FILES, MARKER_FILE, CHECKPOINTS], of_0_1=True)
        sweep_checkpoints(output / CHECKPOINTS)


def sweep_checkpoints(directory: Path) -> None:
    """Remove what killed runs left of checkpoints that they wrote or removed."""
    with contextlib.suppress(OSError):
        names = {path.name.split(".")[1] for path in directory.iterdir() if is_temporary(path.name)}
        ours = [name for name in names if is_checkpoint_name(name) or name == ON_SCHEDULE]
        sweep(directory, ours, of_0_1=True)


@contextlib.contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """What the disk or its permissions refuse becomes a ResourceError."""
    try:
        yield
    except NotPrivateError as error:
        raise output_error(output, error) from error
    except OSError as error:
        place = error.filename or output
        raise ResourceError(f"{place}: cannot be changed: {error.strerror}") from error


def _is_same(folder: Path, other: Path) -> bool:
    return folder.exists() and folder.samefile(other)
