"""The parts of a model directory that are not tensors: `config.json` and the tokenizers, verified.

Nothing here imports PyTorch, so that a command reports a damaged directory at once. A checkpoint of
a run is a model as well: it has the weights, the run has the rest.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tfm_cli
from tfm_cli.config.loading import to_mapping
from tfm_cli.config.settings import (
    MAX_COUNT,
    SECTIONS,
    ModelConfig,
    RunConfig,
    Value,
    legacy_defaults,
)
from tfm_cli.config.validation import Problems, from_mapping
from tfm_cli.console import one_line
from tfm_cli.errors import ModelError, plain_reason
from tfm_cli.files.atomic import atomic_file
from tfm_cli.files.layout import (
    AVERAGE_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    JOINT_FILE,
    MANIFEST_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
)
from tfm_cli.files.safetensors_file import SafetensorsFile, prefetch_hash
from tfm_cli.files.untrusted import parse_json_object, read_regular
from tfm_cli.tokenizer.model_file import read_model_file
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer

# Format 2 added a tokenizer for each side and search settings; format 3 the settings that
# `legacy_defaults` lists; format 4 separate heads and widths of the decoder, and int8 weights.
FORMAT_VERSION = 4
_MAX_CONFIG_BYTES = 1 << 20
# Settings that had no upper bound, or another one, when older models were saved. Some settings
# with the bound `MAX_COUNT` belong here as well.
_FORMERLY_UNBOUNDED = {
    "learn_rate", "adam_epsilon", "weight_decay", "clip_norm", "update_freq", "character_coverage",
    "temperature", "top_p", "repetition_penalty", "max_length_factor",
}  # fmt: skip
_MAX_VERSION_LENGTH = 60
_MAX_SETTINGS = 1000  # since the nearest name is looked up for each unknown setting
# Settings that an older tfm does not know, and that are left out where they have their defaults.
# The first two are of format 4: 0 is the same as the encoder's.
_LATER_SETTINGS: dict[str, Value] = {
    "decoder_heads": 0,
    "decoder_feed_forward_width": 0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "word_dropout": 0.0,
    "subword_sampling": "none",
    "subword_alpha": 0.0,
    "schedule": "inverse-sqrt",
    "decay_ratio": 0.2,
    "consistency": "none",
    "consistency_alpha": 0.0,
    "token_cutoff": 0.05,
}
_KEYS = {
    "format_version", "tfm_version", "tokenizer_files", "tokenizer_sha256", "vocab_size",
    "source_vocab_size", "settings",
}  # fmt: skip


class SavedConfig(NamedTuple):
    """The content of `config.json`."""

    settings: RunConfig
    vocab_sizes: tuple[int, int]  # of source and target
    tokenizer_files: dict[str, str]  # SHA-256 by file name
    tokenizer_sha256: str  # of all of them together
    format_version: int
    tfm_version: str  # that wrote it
    has_sha256: bool  # of itself, which was verified; older formats have none


def oldest_format(shape: ModelConfig) -> int:
    """Return the oldest format that can describe a model of this shape.

    An older tfm can then read the models that it supports, and refuses others by their format.
    """
    return 4 if shape.decoder_heads or shape.decoder_feed_forward_width else 3


def without_later_defaults(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that an older tfm lacks and that have their defaults."""
    return {
        name: value
        for name, value in table.items()
        if name not in _LATER_SETTINGS or value != _LATER_SETTINGS[name]
    }


def save_config(directory: Path, config: RunConfig, tokenizers: TokenizerPair) -> None:
    """Write the tokenizers and `config.json`, which stay the same throughout training."""
    for name, content in tokenizers.files().items():
        with atomic_file(directory / name, follow=False) as stream:
            stream.write(content)
    source_size, target_size = tokenizers.vocab_sizes
    settings = to_mapping(config)
    for section in ("data", "model", "training"):
        settings[section] = without_later_defaults(settings[section])
    header = {
        "format_version": oldest_format(config.model),
        "tfm_version": tfm_cli.__version__,
        "tokenizer_files": tokenizers.sha256_by_file(),
        "tokenizer_sha256": tokenizers.sha256,
        "vocab_size": target_size,
        "source_vocab_size": source_size,
        "settings": settings,
    }
    # The hash comes first: after an edit, its line can be deleted and the JSON stays valid.
    header = {"sha256": _sha256(header), **header}
    # A file name that is not UTF-8 contains lone surrogates, which JSON writes as \udcxx.
    text = json.dumps(header, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
    with atomic_file(directory / CONFIG_FILE, follow=False) as stream:
        stream.write(text + b"\n")


def load_config(directory: Path) -> SavedConfig:
    """Read `config.json` of a model directory and validate it.

    Raises:
        ModelError: it is missing, of a newer format, or invalid; the message lists all problems.
    """
    return load_config_file(model_file(_run_of(directory), CONFIG_FILE))


def load_config_file(path: Path) -> SavedConfig:
    """Read the `config.json` of a model, under any name, and validate it.

    Raises:
        ModelError: as `load_config`.
    """
    written = _read_json(path)
    sha256 = written.pop("sha256", None)  # older formats have none
    header = _upgraded(written)
    version = header.get("format_version")
    if type(version) is not int:
        raise ModelError(
            f"{path}: is not a model config: `format_version` is missing or not a number",
            hint="if it is a model of another toolkit, import it first with `tfm import`",
        )
    if version > FORMAT_VERSION:
        raise ModelError(
            f"{path}: has format {version}, but tfm {tfm_cli.__version__} reads formats up "
            f"to {FORMAT_VERSION}; it was made by tfm {header.get('tfm_version')}",
            hint="install a newer tfm",
        )
    problems = Problems()
    if unknown := sorted(set(header) - _KEYS):
        problems.add(unknown[0][:60], f"unknown name, and {len(unknown) - 1} more")
    config = _settings(header, problems)
    sizes = _vocab_sizes(header, config, problems)
    files, tokenizer_sha256 = _tokenizer_hashes(header, problems)
    if problems.lines:
        title = f"{path}: has settings that cannot be used"
        raise ModelError("\n  ".join([title, *problems.lines]))
    if sha256 not in (None, _sha256(written)):
        raise ModelError(
            f"{path}: is not what was saved: its SHA-256 differs",
            hint="copy it again; if it was changed on purpose, remove its line `sha256`",
        )
    made_by = one_line(str(header.get("tfm_version")))[:_MAX_VERSION_LENGTH]
    return SavedConfig(
        config,
        (sizes[0], sizes[1]),
        files,
        tokenizer_sha256,
        format_version=version,
        tfm_version=made_by,
        has_sha256=sha256 is not None,
    )


def _settings(header: Mapping[str, Any], problems: Problems) -> RunConfig:
    settings = header.get("settings")
    if not isinstance(settings, dict):
        problems.add("settings", "must be a table")
    elif (count := _num_settings(settings)) > _MAX_SETTINGS:
        problems.add("settings", f"must be at most {_MAX_SETTINGS}, got {count}")
    else:
        return from_mapping(_bounded(settings), problems)
    return RunConfig()


def _vocab_sizes(header: Mapping[str, Any], config: RunConfig, problems: Problems) -> list[int]:
    """Return the valid ones among the vocabulary sizes of source and target."""
    sizes = []
    for name in ("source_vocab_size", "vocab_size"):
        size = header.get(name)
        if type(size) is not int or not 2 <= size <= 1_000_000:
            problems.add(name, f"must be between 2 and 1000000, got {size}")
        else:
            sizes.append(size)
    if len(set(sizes)) == 2 and config.model.tied_embeddings & 1:
        reason = f"source and target share embeddings, but have {sizes[0]} and {sizes[1]} tokens"
        problems.add("vocab_size", reason)
    return sizes


def _tokenizer_hashes(header: Mapping[str, Any], problems: Problems) -> tuple[dict[str, str], str]:
    """Return the SHA-256 of each tokenizer file by its name, and that of all of them together."""
    files, sha256 = header.get("tokenizer_files"), header.get("tokenizer_sha256")
    if not isinstance(sha256, str):
        problems.add("tokenizer_sha256", "must be a string")
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        problems.add("tokenizer_files", "must be a table of hashes")
    elif unknown := sorted(set(files) - set(TOKENIZER_FILES)):
        reason = f"has names that are not tokenizer files: {', '.join(unknown)[:60]}"
        problems.add("tokenizer_files", reason)
    return dict(files) if isinstance(files, dict) else {}, str(sha256)


def _sha256(header: dict[str, Any]) -> str:
    """Return the SHA-256 of a header, which does not depend on the formatting of the file."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _bounded(settings: dict[str, Any]) -> dict[str, Any]:
    """Clamp settings to bounds that did not exist when older models were saved."""
    bounded = dict(settings)
    for section in SECTIONS:
        table = settings.get(section)
        if not isinstance(table, dict):
            continue
        bounded[section] = dict(table)
        for field in dataclasses.fields(getattr(RunConfig(), section)):
            value: Any = table.get(field.name)
            bounds = field.metadata
            was_unbounded = bounds["le"] == MAX_COUNT or field.name in _FORMERLY_UNBOUNDED
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if was_unbounded and is_number and 0 < value < math.inf:
                bounded[section][field.name] = min(max(value, bounds["ge"]), bounds["le"])
    return bounded


def _num_settings(settings: dict[str, Any]) -> int:
    return sum(len(table) if isinstance(table, dict) else 1 for table in settings.values())


def _upgraded(header: dict[str, Any]) -> dict[str, Any]:
    """Return a header of format 1 or 2 in the form of later formats; others are unchanged."""
    version, settings = header.get("format_version"), header.get("settings")
    if version in (1, 2) and isinstance(settings, dict):
        older = {
            section: {**table, **settings.get(section, {})}
            for section, table in legacy_defaults().items()
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
    """Load the tokenizers of a model directory.

    Raises:
        ModelError: one is missing or damaged, or its hash or size differs from `config.json`.
    """
    files = {}
    for name, expected in saved.tokenizer_files.items():
        path = model_file(_run_of(directory), name)
        files[name] = read_model_file(path)
        actual = hashlib.sha256(files[name]).hexdigest()
        if actual != expected:
            raise ModelError(
                f"{path}: is not the tokenizer in {CONFIG_FILE}: "
                f"expected SHA-256 {expected}, got {actual}",
                hint="put the right one back, or copy the model directory again as a whole",
            )
    tokenizers = TokenizerPair.from_files(files, origin=str(directory))
    if tokenizers.vocab_sizes != saved.vocab_sizes:
        actual, expected = _plus(tokenizers.vocab_sizes), _plus(saved.vocab_sizes)
        raise ModelError(
            f"{directory}: its tokenizers do not fit {CONFIG_FILE}: "
            f"expected {expected} tokens, got {actual}"
        )
    return tokenizers


@contextlib.contextmanager
def opened_weights(directory: Path) -> Iterator[tuple[Path, SafetensorsFile]]:
    """Open the weights file of a model directory, whose header is checked, without PyTorch.

    Of a checkpoint it is the file of the averaged weights, if there are any, and is verified by its
    hash; other weights files have a hash of the tensors in their metadata.

    Raises:
        ModelError: the file is missing or damaged, or the block raises an OSError or ValueError.
    """
    path, sha256 = _weights_file(directory)
    try:
        with SafetensorsFile(path) as file:
            if sha256 and file.sha256_of_file() != sha256:
                raise changed_weights_error(path)
            yield path, file
    except (OSError, ValueError) as error:
        hint = "copy it again, or go back to a checkpoint"
        message = f"{path}: is damaged or not a safetensors file: {plain_reason(error)}"
        raise ModelError(message, hint=hint) from error


def prefetch_weights_hash(directory: Path) -> None:
    """Check the header of the weights file, and start to hash its tensors for the later reader.

    The file of a checkpoint is hashed as a whole, when it is opened.

    Raises:
        ModelError: as `opened_weights`.
    """
    if is_checkpoint_model(directory):
        _weights_file(directory)
        return
    with opened_weights(directory) as (path, _):
        pass
    prefetch_hash(path)


def is_checkpoint_model(directory: Path) -> bool:
    """Return True for a checkpoint in a run, which has weights but no `config.json`."""
    try:
        return (directory / MANIFEST_FILE).is_file() and not (directory / CONFIG_FILE).exists()
    except OSError:  # a name that is too long
        return False


def checkpoint_files(directory: Path) -> list[Path]:
    """Return what is read for a checkpoint beyond the files of a model directory."""
    if not is_checkpoint_model(directory):
        return []
    own = [directory / name for name in (MANIFEST_FILE, AVERAGE_FILE)]
    with contextlib.suppress(ModelError):  # reported when it is loaded
        own += [_run_of(directory) / name for name in (CONFIG_FILE, *TOKENIZER_FILES)]
    return own


def _run_of(directory: Path) -> Path:
    """Return the run that a checkpoint belongs to; any other directory is returned unchanged."""
    if not is_checkpoint_model(directory):
        return directory
    checkpoints = directory.absolute().resolve().parent
    if checkpoints.name != CHECKPOINTS:
        raise ModelError(
            f"{directory}: is a checkpoint outside its run, which has the settings and tokenizers",
            hint=f"name it as RUN/{CHECKPOINTS}/{directory.absolute().name}",
        )
    return directory.parent.parent if directory.parent.name == CHECKPOINTS else checkpoints.parent


def _weights_file(directory: Path) -> tuple[Path, str]:
    """Return the weights file of a model, and for a checkpoint the SHA-256 of the file, else "".

    Raises:
        ModelError: it is missing, or the manifest of the checkpoint is damaged.
    """
    if not is_checkpoint_model(directory):
        return model_file(directory, WEIGHTS_FILE), ""
    hashes = _read_json(directory / MANIFEST_FILE).get("sha256")
    for name in (AVERAGE_FILE, WEIGHTS_FILE):
        path = model_file(directory, name)
        with contextlib.suppress(OSError, ValueError), SafetensorsFile(path) as file:
            if name == AVERAGE_FILE and not file.tensors:
                continue  # the run averages no weights
        sha256 = hashes.get(name) if isinstance(hashes, dict) else None
        if isinstance(sha256, str) and sha256:
            return path, sha256
    raise ModelError(
        f"{directory}: is damaged or not a checkpoint: it has no hashes of its weights"
    )


def changed_weights_error(path: Path) -> ModelError:
    """Return the error for weights whose hash differs from the one that was saved with them."""
    message = f"{path}: the weights are not those that were saved"
    return ModelError(message, hint="copy the file again")


def weights_identity(directory: Path) -> str:
    """Return a hash of the weights file's metadata, which include a hash of the tensors.

    A damaged file has a hash as well; the damage is reported when the weights are loaded.
    """
    path, sha256 = _weights_file(directory)
    if sha256:
        return sha256
    metadata = None
    with contextlib.suppress(ValueError, OSError), SafetensorsFile(path) as file:
        metadata = file.metadata
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def load_named_tokenizers(path: Path) -> TokenizerPair:
    """Load the tokenizers of a `.model` file, a model, or a run that has no `config.json` yet.

    Raises:
        ModelError: a file is missing or damaged.
    """
    if not path.is_dir():
        return TokenizerPair.joint(Tokenizer.load(path))
    if not (path / CONFIG_FILE).exists():
        return TokenizerPair.joint(Tokenizer.load(path / JOINT_FILE))
    return load_tokenizers(path, load_config(path))


def _plus(sizes: tuple[int, int]) -> str:
    return str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]} + {sizes[1]}"


def model_file(directory: Path, name: str) -> Path:
    """Return the path of a file in a model directory.

    Raises:
        ModelError: the directory or the file does not exist, or is not a regular file.
    """
    path = directory / name
    try:
        is_directory, exists = directory.is_dir(), directory.exists()
    except OSError as error:  # a name that is too long
        raise ModelError(f"{directory}: cannot be read: {error.strerror}") from error
    if not is_directory:
        reason = "is not a directory" if exists else "there is no such model directory"
        raise ModelError(
            f"{directory}: {reason}",
            hint="train one with `tfm train --output DIR`, or name another",
        )
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "no validation was reached yet" if name == WEIGHTS_FILE else "it is incomplete"
        raise ModelError(f"{directory}: has no `{name}`: {reason}, or it is not a model") from error
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path}: is not a regular file")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_regular(path, max_bytes=_MAX_CONFIG_BYTES)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    try:
        return parse_json_object(content)
    except ValueError as error:
        raise ModelError(
            f"{path}: is damaged or not a model config: {plain_reason(error)}"
        ) from error
