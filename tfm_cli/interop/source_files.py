"""Files of a directory that others made: none may lead out of it, never end, or be too large."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from tfm_cli.errors import ModelError
from tfm_cli.plain_file import read_plain
from tfm_cli.plain_json import parse_object

MAX_JSON_BYTES = 32 << 20  # the vocabulary of a million pieces is smaller


def has_file(directory: Path, name: str) -> bool:
    """Whether a directory has an entry of this name, whatever it is."""
    return os.path.lexists(directory / name)


def missing_files(directory: Path, names: Iterable[str]) -> list[str]:
    """A complaint for each name that a directory has no entry of.

    Raises:
        ModelError: a name leads out of the directory.
    """
    found = []
    for name in dict.fromkeys(names):
        _check_name(directory, name)
        if not has_file(directory, name):
            found.append(f"{name}: is missing")
    return found


def source_file(directory: Path, name: str) -> Path:
    """The path of a regular file in a directory.

    A link is followed within the directory only; those of the Hub's cache may lead to its blobs.

    Raises:
        ModelError: the name or a link leads elsewhere, or there is no regular file.
    """
    _check_name(directory, name)
    path = directory / name
    try:
        home, place = directory.resolve(strict=True), path.resolve(strict=True)
        mode = place.stat().st_mode
    except (OSError, RuntimeError) as error:  # a circle of links is a RuntimeError
        what = "cannot be read" if has_file(directory, name) else "is missing"
        raise ModelError(f"{path}: {what}, wanted a file") from error
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parents[1] / "blobs")
    if not any(place.is_relative_to(folder) for folder in allowed):
        hint = "put the file itself in the directory if you trust it"
        raise ModelError(f"{path}: is a link that leads out of the directory", hint=hint)
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path}: is no regular file")
    return path


def _check_name(directory: Path, name: str) -> None:
    if PurePath(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise ModelError(f"{directory}: wants a file that is not in it: `{name}`")


def read_source(directory: Path, name: str, *, max_bytes: int) -> bytes:
    """The content of a file of the directory.

    Raises:
        ModelError: as `source_file`, or it is larger than `max_bytes`.
    """
    path = source_file(directory, name)
    try:
        return read_plain(path, max_bytes=max_bytes)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file, with or without a mark of its encoding.

    A name that occurs twice in it is refused.

    Raises:
        ModelError: as `read_source`, or it is torn or no JSON object.
    """
    path = directory / name
    content = read_source(directory, name, max_bytes=MAX_JSON_BYTES)
    try:
        return parse_object(content)
    except ValueError as error:
        raise ModelError(f"{path}: is torn or no JSON: {error}") from error
