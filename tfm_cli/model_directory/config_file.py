"""The part of a model directory that is no tensor: `config.json` and tokenizers, verified.

All of it is read without importing torch, so that commands can tell what is wrong at once.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tfm_cli
from tfm_cli.config.loading import to_mapping
from tfm_cli.config.settings import MOST, SECTIONS, ModelConfig, RunConfig, settings_before
from tfm_cli.config.validation import Problems, from_mapping
from tfm_cli.errors import ModelError
from tfm_cli.files.atomic import atomic_file
from tfm_cli.files.layout import CONFIG_FILE, JOINT_FILE, TOKENIZER_FILES, WEIGHTS_FILE
from tfm_cli.files.safetensors_file import WeightsFile
from tfm_cli.files.untrusted import parse_object, read_plain
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer, read_model_file

# 2 has one tokenizer for each side, and search settings that 1 had not; 3 has the settings that
# `settings_before` lists; 4 has decoders whose layers have a shape of their own,
# and weights in int8.
FORMAT_VERSION = 4
_MAX_CONFIG_BYTES = 1 << 20
# Settings that models were saved with when they had no such bounds; some count up to `MOST`.
_ONCE_OPEN = {
    "learn_rate", "adam_epsilon", "weight_decay", "clip_norm", "update_freq", "character_coverage",
    "temperature", "top_p", "repetition_penalty", "max_length_factor",
}  # fmt: skip
_MAX_SETTINGS = 1000  # of which each that is unknown is told, with the nearest name
_LATER = ("decoder_heads", "decoder_feed_forward_width")  # settings that format 4 brought; 0: none
_KEYS = {
    "format_version", "tfm_version", "tokenizer_files", "tokenizer_sha256", "vocab_size",
    "source_vocab_size", "settings",
}  # fmt: skip


class SavedConfig(NamedTuple):
    """What `config.json` says."""

    settings: RunConfig
    vocab_sizes: tuple[int, int]  # of source and target
    tokenizer_files: dict[str, str]  # SHA-256 by name
    tokenizer_sha256: str  # of all of them together


def needed_format(shape: ModelConfig) -> int:
    """Return the oldest format that can say what a model of this shape is.

    An older tfm then reads whatever means the same to it, and refuses the rest by its number.
    """
    return 4 if shape.decoder_heads or shape.decoder_feed_forward_width else 3


def without_later(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a model without those that format 3 lacks, where these say nothing."""
    return {name: value for name, value in table.items() if value or name not in _LATER}


def save_config(directory: Path, config: RunConfig, tokenizers: TokenizerPair) -> None:
    """Write what does not change while a model learns: its settings and its tokenizers."""
    for name, content in tokenizers.files().items():
        with atomic_file(directory / name, follow=False) as stream:
            stream.write(content)
    source_size, target_size = tokenizers.vocab_sizes
    settings = to_mapping(config)
    settings["model"] = without_later(settings["model"])
    header = {
        "format_version": needed_format(config.model),
        "tfm_version": tfm_cli.__version__,
        "tokenizer_files": tokenizers.sha256_by_file(),
        "tokenizer_sha256": tokenizers.sha256,
        "vocab_size": target_size,
        "source_vocab_size": source_size,
        "settings": settings,
    }
    header = {"sha256": _sha256(header), **header}  # a line that can be removed, not the last one
    # A file name that is no UTF-8 has half surrogate pairs in it; JSON spells them as \udcxx.
    text = json.dumps(header, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
    with atomic_file(directory / CONFIG_FILE, follow=False) as stream:
        stream.write(text + b"\n")


def load_config(directory: Path) -> SavedConfig:
    """The settings of a model directory, its vocabulary sizes and its tokenizers' hashes.

    Raises:
        ModelError: there is none, it is of a newer format, or holds what cannot be used.
    """
    path = regular_file(directory, CONFIG_FILE)
    written = _read_json(path)
    told_sha256 = written.pop("sha256", None)  # which format 1 had not
    header = _upgraded(written)
    version = header.get("format_version")
    if type(version) is not int:
        raise ModelError(
            f"{path}: is no model config: `format_version` is missing or no number",
            hint="if it is a model of another toolkit, import it first with `tfm import`",
        )
    if version > FORMAT_VERSION:
        raise ModelError(
            f"{path}: has format {version}, this is tfm {tfm_cli.__version__} which reads up "
            f"to {FORMAT_VERSION}; made by tfm {header.get('tfm_version')}",
            hint="install a newer tfm",
        )
    problems = Problems()
    if unknown := sorted(set(header) - _KEYS):
        problems.add(unknown[0][:60], f"unknown name, beside {len(unknown) - 1} more")
    config, settings = RunConfig(), header.get("settings")
    if not isinstance(settings, dict):
        problems.add("settings", "must be a table")
    elif (count := _num_settings(settings)) > _MAX_SETTINGS:
        problems.add("settings", f"must be at most {_MAX_SETTINGS}, got {count}")
    else:
        config = from_mapping(_bounded(settings), problems)
    sizes = []
    for name in ("source_vocab_size", "vocab_size"):
        size = header.get(name)
        if type(size) is not int or not 2 <= size <= 1_000_000:
            problems.add(name, f"must be between 2 and 1000000, got {size}")
        else:
            sizes.append(size)
    if len(set(sizes)) == 2 and config.model.tied_embeddings & 1:
        told = f"source and target share embeddings, but have {sizes[0]} and {sizes[1]} pieces"
        problems.add("vocab_size", told)
    files, sha256 = header.get("tokenizer_files"), header.get("tokenizer_sha256")
    if not isinstance(sha256, str):
        problems.add("tokenizer_sha256", "must be a string")
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        problems.add("tokenizer_files", "must be a table of hashes")
    elif unknown := sorted(set(files) - set(TOKENIZER_FILES)):
        told = f"names what is no tokenizer file: {', '.join(unknown)[:60]}"
        problems.add("tokenizer_files", told)
    if problems.lines:
        title = f"{path}: has settings that cannot be used"
        raise ModelError("\n  ".join([title, *problems.lines]))
    if told_sha256 not in (None, _sha256(written)):
        raise ModelError(
            f"{path}: is not what was saved: its SHA-256 differs",
            hint="copy it again; if it was changed on purpose, remove its line `sha256`",
        )
    return SavedConfig(config, (sizes[0], sizes[1]), dict(files or {}), str(sha256))


def _sha256(header: dict[str, Any]) -> str:
    """Of what a header says, however it is laid out."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _bounded(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the nearest legal number where there was no bound once."""
    bounded = dict(settings)
    for section in SECTIONS:
        table = settings.get(section)
        if not isinstance(table, dict):
            continue
        bounded[section] = dict(table)
        for field in dataclasses.fields(getattr(RunConfig(), section)):
            value: Any = table.get(field.name)
            bounds = field.metadata
            was_open = bounds["le"] == MOST or field.name in _ONCE_OPEN
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if was_open and is_number and 0 < value < math.inf:
                bounded[section][field.name] = min(max(value, bounds["ge"]), bounds["le"])
    return bounded


def _num_settings(settings: dict[str, Any]) -> int:
    return sum(len(table) if isinstance(table, dict) else 1 for table in settings.values())


def _upgraded(header: dict[str, Any]) -> dict[str, Any]:
    """The same header as a newer format spells it."""
    version, settings = header.get("format_version"), header.get("settings")
    if version in (1, 2) and isinstance(settings, dict):
        older = {
            section: {**table, **settings.get(section, {})}
            for section, table in settings_before().items()
            if isinstance(settings.get(section, {}), dict)
        }
        settings = {**settings, **older}
        header = {**header, "settings": settings}
    if version != 1:
        return header
    if isinstance(settings, dict) and isinstance(settings.get("search"), dict):
        search = {"length_norm": "wu", "early_stopping": False, **settings["search"]}
        settings = {**settings, "search": search}
    return {
        **header,
        "tokenizer_files": {JOINT_FILE: header.get("tokenizer_sha256")},
        "source_vocab_size": header.get("vocab_size"),
        "settings": settings,
    }


def load_tokenizers(directory: Path, saved: SavedConfig) -> TokenizerPair:
    """The tokenizers of a model directory.

    Raises:
        ModelError: one is missing or torn, or not the one that `config.json` tells of.
    """
    files = {}
    for name, wanted in saved.tokenizer_files.items():
        path = regular_file(directory, name)
        files[name] = read_model_file(path)
        found = hashlib.sha256(files[name]).hexdigest()
        if found != wanted:
            raise ModelError(
                f"{path}: is not the one that {CONFIG_FILE} tells of: "
                f"found SHA-256 {found}, wanted {wanted}",
                hint="put the right one back, or copy the model directory again as a whole",
            )
    tokenizers = TokenizerPair.from_files(files, place=str(directory))
    if tokenizers.vocab_sizes != saved.vocab_sizes:
        found, wanted = _plus(tokenizers.vocab_sizes), _plus(saved.vocab_sizes)
        raise ModelError(
            f"{directory}: its tokenizers do not fit {CONFIG_FILE}: "
            f"found {found} pieces, wanted {wanted}"
        )
    return tokenizers


def checked_weights(directory: Path) -> Path:
    """The path of the weights file, whose header is one; PyTorch is not needed to say so.

    Raises:
        ModelError: it is missing, or torn.
    """
    path = regular_file(directory, WEIGHTS_FILE)
    try:
        WeightsFile(path).close()
    except (OSError, ValueError) as error:
        raise torn_weights(path, error) from error
    return path


def torn_weights(path: Path, error: Exception) -> ModelError:
    """What is raised where a weights file cannot be read."""
    hint = "copy it again, or go back to a checkpoint"
    return ModelError(f"{path}: is torn or no safetensors file: {error}", hint=hint)


def weights_identity(directory: Path) -> str:
    """A hash of what the weights file says of itself: the hashes of tensors and tokenizers.

    A torn file has one as well; whoever loads it tells what is wrong.
    """
    path, said = regular_file(directory, WEIGHTS_FILE), None
    with contextlib.suppress(ValueError, OSError), WeightsFile(path) as file:
        said = file.metadata
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def named_tokenizers(path: Path) -> TokenizerPair:
    """The tokenizers of a `.model` file, of a model directory, or of one that is beginning.

    Raises:
        ModelError: there is none, or it is torn.
    """
    if not path.is_dir():
        return TokenizerPair.joint(Tokenizer.load(path))
    if not (path / CONFIG_FILE).exists():
        return TokenizerPair.joint(Tokenizer.load(path / JOINT_FILE))
    return load_tokenizers(path, load_config(path))


def _plus(sizes: tuple[int, int]) -> str:
    return str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]} + {sizes[1]}"


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
        content = read_plain(path, max_bytes=_MAX_CONFIG_BYTES)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    try:
        return parse_object(content)
    except ValueError as error:
        raise ModelError(f"{path}: is torn or no model config: {error}") from error
