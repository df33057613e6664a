"""The files of a model to import, from an untrusted directory or downloaded from the Hub.

A file is refused if it is a link out of its directory, not a regular file, or too large.
"""

import dataclasses
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from tfm_cli.config.validation import coerce
from tfm_cli.errors import DataError, ModelError, ResourceError, install_extra, plain_reason
from tfm_cli.files.untrusted import parse_json_object, read_regular

MAX_JSON_BYTES = 32 << 20  # more than a vocabulary of a million pieces
_MAX_SHOWN = 60  # characters of a value that a message quotes

# The Hub's own rules for names.
_HUB_NAME_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_HUB_NAME = re.compile(f"{_HUB_NAME_PART}/{_HUB_NAME_PART}", re.ASCII)
_HUB_FILES = ("config.json", "generation_config.json", "model.safetensors", "source.spm",
              "target.spm", "vocab.json", "target_vocab.json", "tokenizer_config.json",
              "special_tokens_map.json", "added_tokens.json")  # fmt: skip
_HUB_PICKLE = "pytorch_model.bin"


def has_file(directory: Path, name: str) -> bool:
    """Return True if a directory has an entry of this name, of any kind."""
    return os.path.lexists(directory / name)


def missing_files(directory: Path, names: Iterable[str]) -> list[str]:
    """Return a line for each of these names that is missing from a directory.

    Raises:
        ModelError: a name leads out of the directory.
    """
    missing = []
    for name in dict.fromkeys(names):
        _check_name(directory, name)
        if not has_file(directory, name):
            missing.append(f"{name}: is missing")
    return missing


def source_file(directory: Path, name: str) -> Path:
    """Return the path of a regular file in a directory.

    A link is followed only within the directory; in the Hub's cache also to its blobs.

    Raises:
        ModelError: the name or a link leads elsewhere, or there is no regular file.
    """
    _check_name(directory, name)
    path = directory / name
    try:
        home, target = directory.resolve(strict=True), path.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        reason = "cannot be read" if has_file(directory, name) else "is missing"
        raise ModelError(f"{path}: {reason}, expected a file") from error
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parents[1] / "blobs")
    if not any(target.is_relative_to(folder) for folder in allowed):
        hint = "put the file itself in the directory if you trust it"
        raise ModelError(f"{path}: is a link that leads out of the directory", hint=hint)
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path}: is not a regular file")
    return path


def _check_name(directory: Path, name: str) -> None:
    if PurePath(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise ModelError(f"{directory}: names a file outside of itself: `{name}`")


def read_source(directory: Path, name: str, *, max_bytes: int) -> bytes:
    """Return the content of a file in a directory.

    Raises:
        ModelError: as `source_file`, or the file is larger than `max_bytes`.
    """
    path = source_file(directory, name)
    try:
        return read_regular(path, max_bytes=max_bytes)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file, with or without a byte order mark.

    Raises:
        ModelError: as `read_source`, or it is damaged, not a JSON object, or repeats a name.
    """
    path = directory / name
    content = read_source(directory, name, max_bytes=MAX_JSON_BYTES)
    try:
        return parse_json_object(content)
    except ValueError as error:
        raise ModelError(f"{path}: is damaged or not JSON: {plain_reason(error)}") from error


def imported_setting(
    section: type, name: str, value: object, option: str, problems: list[str]
) -> dict[str, Any]:
    """Return a setting of the run configuration by its name; empty, with a problem, if invalid.

    Args:
        section: the dataclass of the section, such as `ModelConfig`.
        name: of the setting.
        value: the value in the other toolkit, which has the same bounds.
        option: the file and the option, for messages.
        problems: receives a line if the value is invalid.
    """
    (field,) = (field for field in dataclasses.fields(section) if field.name == name)
    coerced, problem = coerce(value, field.type, field.metadata)
    if problem:
        problems.append(f"{option} {problem}")
        return {}
    return {name: coerced}


def quoted(value: object) -> str:
    """Return a value in the form for messages, truncated if it is long."""
    if value is None:
        return "missing"
    text = str(value).lower() if isinstance(value, bool) else f"`{value}`"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def is_hub_name(source: str) -> bool:
    """Return True for a name such as `Helsinki-NLP/opus-mt-en-de`, by the Hub's own rules."""
    if any(mark in source for mark in ("--", "..")) or source.endswith(".git"):
        return False
    return _HUB_NAME.fullmatch(source) is not None


def download(name: str, *, allow_pickle: bool) -> Path:
    """Download the files of a model that an import reads, and return their directory.

    Args:
        name: on the Hub, such as `Helsinki-NLP/opus-mt-en-de`.
        allow_pickle: fetch `pytorch_model.bin` as well.

    Raises:
        ResourceError: `huggingface_hub` is not installed, or the Hub cannot be reached, or the
            server that answers is not the Hub.
        DataError: the name is invalid, there is no such model, or access to it is denied.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise ResourceError(
            f"{name}: cannot be downloaded: huggingface_hub is not installed",
            hint=f"{install_extra('hf')}, or name a directory",
        ) from error
    patterns = [*_HUB_FILES, _HUB_PICKLE] if allow_pickle else list(_HUB_FILES)
    client_error: Any = HfHubHTTPError.__mro__[1]  # of the HTTP library that it uses
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise ResourceError(
            f"{name}: cannot be downloaded: the Hub cannot be reached, and the model is not cached",
            hint="check the network, or name a directory",
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise DataError(f"{name}: cannot be downloaded: {first_line(error)}") from error
    except (OSError, client_error) as error:
        raise ResourceError(f"{name}: cannot be downloaded: {first_line(error)}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # HTML, or other JSON
        raise ResourceError(
            f"{name}: cannot be downloaded: the server that answered is not the Hub: "
            f"{first_line(error)}",
            hint="check the network, such as for a page that asks for a login, or name a directory",
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().split("\n", maxsplit=1)[0]
