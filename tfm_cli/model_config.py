"""The part of a model directory that is no tensor: `config.json` and `tokenizer.model`, verified.

All of it is read without importing torch, so that commands can tell what is wrong at once.
"""

import json
import stat
from pathlib import Path
from typing import Any, NamedTuple

import tfm_cli
from tfm_cli.config import RunConfig
from tfm_cli.configcheck import Problems, from_mapping
from tfm_cli.configfile import to_mapping
from tfm_cli.errors import ModelError
from tfm_cli.files import atomic_file
from tfm_cli.tokenizer import Tokenizer

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.model"
WEIGHTS_FILE = "model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20


class SavedConfig(NamedTuple):
    """What `config.json` says."""

    settings: RunConfig
    vocab_size: int
    tokenizer_sha256: str


def save_config(directory: Path, config: RunConfig, tokenizer: Tokenizer) -> None:
    """Write what does not change while a model learns: its settings and its tokenizer."""
    with atomic_file(directory / TOKENIZER_FILE) as stream:
        stream.write(tokenizer.model_bytes)
    header = {
        "format_version": FORMAT_VERSION,
        "tfm_version": tfm_cli.__version__,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "settings": to_mapping(config),
    }
    # A file name that is no UTF-8 has half surrogate pairs in it; JSON spells them as \udcxx.
    text = json.dumps(header, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
    with atomic_file(directory / CONFIG_FILE) as stream:
        stream.write(text + b"\n")


def load_config(directory: Path) -> SavedConfig:
    """The settings of a model directory, its vocabulary size and its tokenizer's hash.

    Raises:
        ModelError: there is none, it is of a newer format, or holds what cannot be used.
    """
    path = regular_file(directory, CONFIG_FILE)
    header = _read_json(path)
    version = header.get("format_version")
    if type(version) is not int:
        raise ModelError(f"{path}: is no model config: `format_version` is missing or no number")
    if version > FORMAT_VERSION:
        raise ModelError(
            f"{path}: has format {version}, this is tfm {tfm_cli.__version__} which reads up "
            f"to {FORMAT_VERSION}; made by tfm {header.get('tfm_version')}",
            hint="install a newer tfm",
        )
    problems = Problems()
    settings = header.get("settings")
    if isinstance(settings, dict):
        config = from_mapping(settings, problems)
    else:
        config = RunConfig()
        problems.add("settings", "must be a table")
    vocab_size, sha256 = header.get("vocab_size"), header.get("tokenizer_sha256")
    if type(vocab_size) is not int or not 2 <= vocab_size <= 1_000_000:
        problems.add("vocab_size", f"must be between 2 and 1000000, got {vocab_size}")
        vocab_size = 0
    if not isinstance(sha256, str):
        problems.add("tokenizer_sha256", "must be a string")
    if problems.lines:
        title = f"{path}: has settings that cannot be used"
        raise ModelError("\n  ".join([title, *problems.lines]))
    return SavedConfig(config, vocab_size, str(sha256))


def load_tokenizer(directory: Path, saved: SavedConfig) -> Tokenizer:
    """The tokenizer of a model directory.

    Raises:
        ModelError: it is missing or torn, or not the one that `config.json` tells of.
    """
    path = regular_file(directory, TOKENIZER_FILE)
    tokenizer = Tokenizer.load(path)
    if tokenizer.sha256 != saved.tokenizer_sha256:
        raise ModelError(
            f"{path}: is not the tokenizer that {CONFIG_FILE} tells of: "
            f"found SHA-256 {tokenizer.sha256}, wanted {saved.tokenizer_sha256}",
            hint="put the right one back, or copy the model directory again as a whole",
        )
    if tokenizer.vocab_size != saved.vocab_size:
        found = f"found {tokenizer.vocab_size} pieces, wanted {saved.vocab_size}"
        raise ModelError(f"{path}: does not fit {CONFIG_FILE}: {found}")
    return tokenizer


def regular_file(directory: Path, name: str) -> Path:
    """The path of a file in a model directory, which must be there and be a plain file."""
    path = directory / name
    if not directory.is_dir():
        raise ModelError(
            f"{directory}: there is no such model directory",
            hint="train one with `tfm train --output DIR`, or name another with `--model DIR`",
        )
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "no validation was reached yet" if name == WEIGHTS_FILE else "it is incomplete"
        raise ModelError(f"{directory}: has no `{name}`: {reason}, or it is no model") from error
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path}: is not a regular file")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > _MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: has {size} bytes, wanted at most {_MAX_CONFIG_BYTES}")
        text = path.read_bytes().decode("utf-8")
        header = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is torn or no model config: {error}") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: is no model config: wanted a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
