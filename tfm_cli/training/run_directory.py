"""The output directory of a run: its lock, checks before a run, and removal of old files."""

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
from tfm_cli.config.loading import changed_settings, requested_changes
from tfm_cli.config.presets import SAMPLE
from tfm_cli.config.settings import DataConfig, RunConfig, is_rule_file
from tfm_cli.errors import ConfigError, ModelError, ResourceError
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
from tfm_cli.files.untrusted import (
    NOT_OURS,
    NotPrivateError,
    check_private,
    parse_json_object,
    read_private,
)
from tfm_cli.model_directory.config_file import load_config

logger = logging.getLogger(__name__)


_LOCK_PREFIX = b'{"pid": '
_HOLDER_SECONDS = 0.5  # between locking the file and writing the holder into it


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Lock `output` inside the block, so that no other process trains into it; create it if needed.

    The system releases the lock however the process ends. If `output` is new and empty at the end,
    it is removed again.

    Raises:
        ResourceError: another process trains into it (the message gives its PID, its machine and
            its start time); or the directory, or the lock in it, cannot be written.
    """
    check_writable(output, folder=True)
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    path = output / LOCK_FILE
    try:
        durable.make_directory(output)
        stream = _acquire(path, output)
    except OSError as error:
        raise output_error(output, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            durable.remove(path)  # while it is held: afterwards it may belong to another process
        stream.close()
        with contextlib.suppress(OSError):  # it is not empty
            for folder in missing:
                durable.remove(folder)


def _acquire(path: Path, output: Path) -> BinaryIO:
    """Return the lock file, open and locked."""
    while True:
        stream = durable.open_for_update(path)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with stream:
                raise ResourceError(
                    f"{output}: {_describe_holder(stream)}",
                    hint="wait for its end, stop it, or name another `--output`",
                ) from error
        except OSError as error:
            logger.warning("%s: cannot be locked against a second run: %s", output, error.strerror)
            return stream
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.lstat()):
                break
        stream.close()  # it was the lock of a process that has just ended and removed it
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(stream.close)
        if os.pread(stream.fileno(), len(_LOCK_PREFIX), 0) not in (b"", _LOCK_PREFIX):
            raise NotPrivateError(errno.EEXIST, NOT_OURS, str(path))
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        stream.truncate(0)
        stream.write(json.dumps(facts).encode())
        stream.flush()
        on_failure.pop_all()
    return stream


def _describe_holder(stream: BinaryIO) -> str:
    deadline = time.monotonic() + _HOLDER_SECONDS
    while True:
        with contextlib.suppress(ValueError, KeyError):
            facts = parse_json_object(os.pread(stream.fileno(), 1 << 10, 0))
            pid, host, since = (str(facts[name])[:80] for name in ("pid", "host", "since"))
            return f"process {pid} on {host} has been training into it since {since}"
        if time.monotonic() > deadline:
            return "another process is training into it"
        time.sleep(0.02)


# In the order of their removal. The settings are last: they prove that tfm wrote the other files.
_FILES = (WEIGHTS_FILE, SHORTLIST_FILE, CARD_FILE, METRICS_FILE, *TOKENIZER_FILES, CONFIG_FILE)
_CHANGED_IN_PLACE = (LOCK_FILE, METRICS_FILE)


def can_resume(
    config: RunConfig, output: Path, *, overwrite: bool, allow_change: bool = False
) -> bool:
    """Return True if `output` holds a run to resume, False if a new run can begin there.

    This does not import torch, so it can be called before any slow work.

    Args:
        config: all settings.
        output: the directory of the run.
        overwrite: begin a new run in any case.
        allow_change: permit changes of settings that may change on request.

    Raises:
        ResourceError: the directory could not be written.
        ConfigError: it holds other files, a run with other settings, a model without checkpoints,
            or the pretrained model; or the sample corpus would replace another text.
        ModelError: its `config.json` is damaged.
    """
    check_output(config, output, overwrite=overwrite)
    pretrained = config.training.pretrained_model
    if overwrite and pretrained and output.exists() and _is_same(Path(pretrained), output):
        raise ConfigError(
            f"{output}: is the pretrained model, which `--overwrite` would remove",
            hint="name another `--output`",
        )
    entries = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if not _names_text(config.data):
        _check_sample_replaces_nothing(output, entries, overwrite=overwrite)
    if overwrite or CONFIG_FILE not in entries:
        return False
    saved = load_config(output).settings
    if WEIGHTS_FILE in entries and CHECKPOINTS not in entries:
        raise ConfigError(
            f"{output}: holds a trained model, but no `{CHECKPOINTS}` to resume from",
            hint=f"use it by `--pretrained-model {output}` and another `--output`, "
            "or start again with `--overwrite`",
        )
    if _names_text(config.data) and not _names_text(saved.data):
        raise ConfigError(
            f"{output}: holds a run on the sample corpus, not on this text",
            hint="name another `--output`, or start again with `--overwrite`",
        )
    _check_same_settings(output, saved, config, allow_change=allow_change)
    if any((output / CHECKPOINTS).glob("update-*")):
        return True
    logger.info("%s: the run in it ended before its first checkpoint; starting over", output)
    return False


def _check_same_settings(
    output: Path, saved: RunConfig, config: RunConfig, *, allow_change: bool
) -> None:
    """Raise a ConfigError that lists the changed settings that a resumed run must not have."""
    changes = changed_settings(saved, config, allow_change=allow_change)
    if not changes:
        return
    advice = ["keep them as they were"]
    requested = [change for change in requested_changes(saved, config) if change in changes]
    if requested:
        *others, last = (f"`{change.partition(':')[0]}`" for change in requested)
        names = f"{', '.join(others)} and {last}" if others else last
        advice.append(f"add `--allow-change` to change {names}")
    plural = "s" if len(changes) > 1 else ""
    title = f"{output}: holds a run with other settings; {len(changes)} change{plural}"
    raise ConfigError(
        "\n  ".join([title, *changes]),
        hint=f"{', '.join(advice)}, or use `--overwrite` or another `--output`",
    )


def _names_text(data: DataConfig) -> bool:
    """Return True if settings name training text; otherwise it is the sample corpus."""
    return bool(data.source or data.pairs)


def _check_sample_replaces_nothing(output: Path, entries: set[str], *, overwrite: bool) -> None:
    """Raise a ConfigError if the sample corpus would be learned over a model of other text."""
    hint = "name the text with `--source` and `--target`, or name another `--output`"
    if CONFIG_FILE not in entries:
        with contextlib.suppress(OSError, ValueError):
            content = read_private(output / MARKER_FILE, max_bytes=1 << 10)
            if parse_json_object(content).get("sample") is False:
                raise ConfigError(
                    f"{output}: holds the beginning of a run on other text, and no text is given",
                    hint=hint,
                )
    elif overwrite:
        with contextlib.suppress(ModelError):
            saved = load_config(output).settings
            if saved.preset != SAMPLE or _names_text(saved.data):
                raise ConfigError(
                    f"{output}: holds a model of other text, which the sample corpus would replace",
                    hint=hint,
                )


def check_output(config: RunConfig, output: Path, *, overwrite: bool = False) -> None:
    """Raise an error if tfm may not change an output directory; nothing in it is touched.

    It must be new, be empty, hold a `config.json` of tfm, or have the marker of a run that began.
    The remains of a run of version 0.1 that was killed before its `config.json` are accepted if
    each entry is proven to be one of them.

    Raises:
        ResourceError: it could not be written, or a file name of tfm is a link.
        ConfigError: it holds other files, or a link in place of a directory of tfm.
    """
    check_writable(output, folder=True)
    if not output.is_dir():
        return
    with inspecting(output):
        _check_links(config, output)
        entries = sorted(path.name for path in output.iterdir())
        if CONFIG_FILE in entries:
            is_ours = holds_model(output) or not overwrite  # whether it is damaged is checked later
        else:
            is_ours = holds_marker(output)
        if is_ours:
            return
        has_begun = LOCK_FILE in entries or any(map(_is_temporary, entries))
        foreign = [
            name for name in entries if not _is_early_file(output / name, has_begun=has_begun)
        ]
    if foreign:
        shown = ", ".join(f"`{name}`" for name in foreign[:3]) + (" …" if foreign[3:] else "")
        raise ConfigError(
            f"{output}: is not empty and holds no model: {shown}",
            hint="name another `--output`",
        )


def _check_links(config: RunConfig, output: Path) -> None:
    """Raise an error if a file name of tfm in the directory is a link or another kind of entry."""
    for name in (CHECKPOINTS, *(() if config.data.cache else (CORPUS,))):
        path = output / name
        if path.is_symlink():
            hint = "link the whole output directory instead"
            if name == CORPUS:
                hint = "remove the link, and name its target by `--data-cache`"
            raise ConfigError(f"{path}: is a symbolic link, expected a directory", hint=hint)
        if os.path.lexists(path) and not path.is_dir():
            raise ConfigError(f"{path}: is not a directory", hint="name another `--output`")
    best = output / CHECKPOINTS / ON_SCHEDULE
    if os.path.lexists(best) and not is_scheduled_best(best):
        entries = {path.name for path in best.iterdir()} if best.is_dir() else set()
        foreign = sorted(entries - {WEIGHTS_FILE, CARD_FILE})
        reason = (
            f"has an entry that tfm did not write: `{foreign[0]}`"
            if foreign
            else "is not a directory"
        )
        raise ConfigError(f"{best}: {reason}", hint="move it away, or name another `--output`")
    for name in (*_FILES, LOCK_FILE, MARKER_FILE):
        check = check_private if name in _CHANGED_IN_PLACE else check_replaceable
        try:
            check(output / name)
        except NotPrivateError as error:
            raise output_error(output, error) from error
    marker = output / MARKER_FILE
    if os.path.lexists(marker) and not holds_marker(output):
        raise output_error(output, NotPrivateError(errno.EEXIST, NOT_OURS, str(marker)))


def _is_early_file(path: Path, *, has_begun: bool) -> bool:
    """Return True for an entry that a run may have left if it was killed before its `config.json`.

    Args:
        path: the path of the entry.
        has_begun: another entry proves that there was such a run.
    """
    name = path.name
    if name in (LOCK_FILE, MARKER_FILE):
        return True
    if _is_temporary(name):
        return True
    if name in TOKENIZER_FILES:
        return has_begun
    if name == CHECKPOINTS:  # a checkpoint is written after the settings
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
    """Raise an error if a run would replace or remove its own inputs in the output directory.

    Inputs that the run leaves unchanged may be in it.

    Args:
        config: all settings, with the paths of the inputs.
        output: the directory of the run.
        resume: the run is resumed: it reads no pretrained model and keeps its tokenizers.
        more: inputs that are not in the settings.

    Raises:
        ConfigError: an input would be replaced or removed; the message names it.
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
        path = Path(os.path.realpath(name))
        if name == "-":
            is_replaced, name = _is_stdin_among(replaced), "standard input"
        else:
            is_replaced, name = any(map(path.is_relative_to, replaced)), f"`{name}`"
        if is_replaced:
            raise ConfigError(
                f"{output}: would replace or remove {name}, which is read",
                hint="name another `--output`",
            )


def _is_stdin_among(paths: Iterable[Path]) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or not a file
        status = os.fstat(sys.stdin.fileno())
        for path in paths:
            files = [path, *path.rglob("*")] if path.is_dir() else [path]
            if any(os.path.samestat(status, each.lstat()) for each in files if each.exists()):
                return True
    return False


def _replaced(config: RunConfig, output: Path, *, resume: bool) -> list[Path]:
    """Return the paths that a run replaces or removes in its output directory."""
    names = [*_FILES, LOCK_FILE, MARKER_FILE]
    if resume:  # tokenizers are not written again
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
def marked(output: Path, data: DataConfig) -> Iterator[None]:
    """Write the marker of a run on some text into a directory, before anything else is written.

    `unmark` removes it when the settings are saved, which then prove that the directory is ours. It
    is also removed at the end of the block if nothing was written.
    """
    with atomic_file(output / MARKER_FILE, follow=False) as stream:
        facts = {"tfm_version": tfm_cli.__version__, "sample": not _names_text(data)}
        stream.write(json.dumps(facts).encode() + b"\n")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ResourceError):  # an earlier error is reported instead
            others = {path.name for path in output.iterdir()} - {MARKER_FILE, LOCK_FILE}
            if not others or CONFIG_FILE in others:
                unmark(output)


def unmark(output: Path) -> None:
    """Remove the marker of a run from a directory, if there is one."""
    if os.path.lexists(output / MARKER_FILE):
        with _disk_errors(output):
            durable.remove(output / MARKER_FILE)


def clear(output: Path, *, except_names: Collection[str] = ()) -> None:
    """Remove the files of a model, and nothing else, so that a new run can begin.

    Args:
        output: the directory of the run.
        except_names: the files that the new run replaces anyway.
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
            is_foreign = name == CARD_FILE and not is_card(output / name)
            if name not in except_names and not is_foreign and os.path.lexists(output / name):
                check_replaceable(output / name)
                durable.remove(output / name)


def begin(output: Path) -> None:
    """Create the directory if needed, and remove the temporary files of killed runs."""
    with _disk_errors(output):
        for directory in (output, output / CHECKPOINTS):
            durable.make_directory(directory)
        sweep(output, [*_FILES, MARKER_FILE, CHECKPOINTS], of_0_1=True)
        sweep_checkpoints(output / CHECKPOINTS)


def sweep_checkpoints(directory: Path) -> None:
    """Remove the temporary files of killed runs beside the checkpoints."""
    with contextlib.suppress(OSError):
        names = {path.name.split(".")[1] for path in directory.iterdir() if is_temporary(path.name)}
        ours = [name for name in names if is_checkpoint_name(name) or name == ON_SCHEDULE]
        sweep(directory, ours, of_0_1=True)


@contextlib.contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """Convert errors of the file system to ResourceErrors."""
    try:
        yield
    except NotPrivateError as error:
        raise output_error(output, error) from error
    except OSError as error:
        path = error.filename or output
        raise ResourceError(f"{path}: cannot be changed: {error.strerror}") from error


def _is_same(folder: Path, other: Path) -> bool:
    return folder.exists() and folder.samefile(other)
