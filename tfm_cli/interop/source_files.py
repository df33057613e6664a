"""Files of a directory that others made: none may lead out of it, never end, or be too large."""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from tfm_cli.errors import DataError, ModelError, ResourceError
from tfm_cli.files.untrusted import parse_json_object, read_regular

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
        return read_regular(path, max_bytes=max_bytes)
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
        return parse_json_object(content)
    except ValueError as error:
        raise ModelError(f"{path}: is torn or no JSON: {error}") from error


# Models from the Hugging Face Hub, by the name they have there.

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_NAME = re.compile(f"{_PART}/{_PART}", re.ASCII)
_FILES = ("config.json", "generation_config.json", "model.safetensors", "source.spm", "target.spm",
          "vocab.json", "target_vocab.json", "tokenizer_config.json", "special_tokens_map.json",
          "added_tokens.json")  # fmt: skip
_PICKLE = "pytorch_model.bin"


def is_hub_name(source: str) -> bool:
    """Whether a name looks like `Helsinki-NLP/opus-mt-en-de`; the Hub's own rules for names."""
    if any(mark in source for mark in ("--", "..")) or source.endswith(".git"):
        return False
    return _NAME.fullmatch(source) is not None


def download(name: str, *, allow_pickle: bool) -> Path:
    """The directory of a downloaded model; only the files that an import reads are fetched.

    Args:
        name: such as `Helsinki-NLP/opus-mt-en-de`.
        allow_pickle: fetch `pytorch_model.bin` as well.

    Raises:
        ResourceError: `huggingface_hub` is not installed, or the Hub cannot be reached, or what
            answers is not the Hub.
        DataError: it is no name, there is no such model, or it may not be read.
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
            f"{name}: cannot be downloaded: huggingface_hub is needed for it",
            hint="pip install 'tfm-cli[hf]', or name a directory",
        ) from error
    patterns = [*_FILES, _PICKLE] if allow_pickle else list(_FILES)
    client_error: Any = HfHubHTTPError.__mro__[1]  # of the library that it makes its requests with
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise ResourceError(
            f"{name}: cannot be downloaded: the Hub cannot be reached, and nothing of it is cached",
            hint="check the network, or name a directory",
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise DataError(f"{name}: cannot be downloaded: {_first_line(error)}") from error
    except (OSError, client_error) as error:
        raise ResourceError(f"{name}: cannot be downloaded: {_first_line(error)}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # HTML, or other JSON
        raise ResourceError(
            f"{name}: cannot be downloaded: what answered in the Hub's place is not the Hub: "
            f"{_first_line(error)}",
            hint="check the network, such as for a page that wants a log-in, or name a directory",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]
