"""The facts about a model that its directory records, without PyTorch.

Every file is untrusted: `config.json`, the tokenizers and the header of the weights are checked as
they are for translation, and what only describes the training is left out if it is damaged.
"""

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tfm_cli.config.loading import to_mapping
from tfm_cli.console import one_line
from tfm_cli.errors import ModelError
from tfm_cli.files.layout import (
    CARD_FILE,
    CHECKPOINT_FILES,
    CHECKPOINTS,
    CONFIG_FILE,
    JOINT_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    SHORTLIST_FILE,
    SOURCE_FILE,
    STATE_FILE,
    TARGET_FILE,
    WEIGHTS_FILE,
)
from tfm_cli.files.ownership import is_checkpoint
from tfm_cli.files.untrusted import MAX_JSON_BYTES, open_regular, parse_json_object, read_regular
from tfm_cli.model_directory.card import Card, read_card
from tfm_cli.model_directory.config_file import (
    SavedConfig,
    changed_weights_error,
    is_checkpoint_model,
    load_config,
    load_tokenizers,
    model_file,
    opened_weights,
)
from tfm_cli.model_directory.weight_shapes import (
    check_header,
    precision_in,
    recorded_scores,
    weight_shapes,
)
from tfm_cli.tokenizer.pair import TokenizerPair

VERIFIED = "verified"  # against the hash that was saved with the model
NO_HASH = "no hash saved"
UNVERIFIED = "not verified"

_MAX_SIGNATURE_LENGTH = 500
_MAX_LINE_BYTES = 1 << 20
_MAX_COUNT = 2**53
_MAX_SECONDS = 1e12
_METRIC_OF_NAME = re.compile(r"(BLEU|chrF|TER)", re.IGNORECASE)  # sacreBLEU: `chrF2++` is of chrF
_TRAINED = re.compile(r"(\d+) updates, ([\d,]+) target tokens, (?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class FileFacts(NamedTuple):
    """A file of a model directory; `sha256` is that of its bytes, empty if it was not computed."""

    name: str
    num_bytes: int
    sha256: str
    check: str  # `VERIFIED`, `NO_HASH` or `UNVERIFIED`


class TokenizerFacts(NamedTuple):
    """A tokenizer: its side, `source`, `target` or `both`, file, algorithm and vocabulary size."""

    side: str
    file: str
    algorithm: str
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The training of a model, as far as it is recorded; None for what is not.

    Attributes:
        updates: of the whole run.
        epoch: the one that the run was in, from 1.
        target_tokens: learned from, over all epochs.
        pairs: number of pairs in the training text.
        seconds: spent on training and validation.
        weights_update: number of updates after which the weights were saved.
        scores: of these weights on the validation text, by metric.
        signatures: sacreBLEU's signatures of the scores, by metric.
    """

    updates: int | None = None
    epoch: int | None = None
    target_tokens: int | None = None
    pairs: int | None = None
    seconds: float | None = None
    weights_update: int | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    signatures: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The facts about a model.

    Attributes:
        path: its directory.
        saved: the content of `config.json`.
        card: the facts in its model card; empty if it has none that tfm wrote.
        language_tags: that its source may begin with.
        tokenizers: one for both sides, or one each.
        parameters: number of weights by part, see `num_parameters`.
        precision: of the stored weights, `fp32` or `int8`; empty if there are none yet.
        training: how it was trained.
        files: of the model, in the order of their names.
        resumes_from: the update from which `tfm train` would resume the run; None if it would not.
    """

    path: Path
    saved: SavedConfig
    card: Card
    language_tags: tuple[str, ...]
    tokenizers: tuple[TokenizerFacts, ...]
    parameters: Mapping[str, int]
    precision: str
    training: Training
    files: tuple[FileFacts, ...]
    resumes_from: int | None


def describe(directory: Path, *, verify: bool = True) -> Description:
    """Return the facts about a model.

    Args:
        directory: of the model or the run; the weights may be missing if none were saved yet.
        verify: read all files to hash them, and compare the weights with their saved hash.

    Raises:
        ModelError: the model could not be used for translation: a file is missing, damaged, of a
            newer format, or belongs to another model.
    """
    if is_checkpoint_model(directory):
        raise ModelError(
            f"{directory}: is a checkpoint of a run, not a model directory", hint="name the run"
        )
    saved = load_config(directory)
    tokenizers = load_tokenizers(directory, saved)
    precision, weights_update, scores = "", None, dict[str, float]()
    if os.path.lexists(directory / WEIGHTS_FILE):
        precision, weights_update, scores = _weights_facts(directory, saved, verify=verify)
    card = read_card(directory / CARD_FILE) or Card()
    resumes_from, state = _resume_point(directory, verify=verify)
    return Description(
        path=directory,
        saved=saved,
        card=card,
        language_tags=tokenizers.source.language_tags,
        tokenizers=_tokenizer_facts(tokenizers),
        parameters=num_parameters(saved),
        precision=precision,
        training=_training(directory, card, state, weights_update, scores),
        files=tuple(_files(directory, saved, has_weights=bool(precision), verify=verify)),
        resumes_from=resumes_from,
    )


def num_parameters(saved: SavedConfig) -> dict[str, int]:
    """Return the number of weights: `encoder`, `decoder`, `embeddings` and their sum, `total`.

    The embeddings are all that lies outside the layers: those of tokens and learned positions, and
    the output layer.
    """
    counts = dict.fromkeys(("total", "encoder", "decoder", "embeddings"), 0)
    for name, shape in weight_shapes(saved.settings.model, saved.vocab_sizes).items():
        part = name.partition("_")[0]
        counts[part if part in ("encoder", "decoder") else "embeddings"] += math.prod(shape)
        counts["total"] += math.prod(shape)
    return counts


def _weights_facts(
    directory: Path, saved: SavedConfig, *, verify: bool
) -> tuple[str, int, dict[str, float]]:
    """Return the precision of the weights, the update that they are of, and their scores."""
    with opened_weights(directory) as (path, file):
        metadata = check_header(path, file, saved, precision="int8")  # which may also be fp32
        update, scores = recorded_scores(metadata)
        if verify and file.hash_from_disk() != metadata.get("weights_sha256"):
            raise changed_weights_error(path)
    return precision_in(metadata), update, {one_line(name): v for name, v in scores.items()}


def _tokenizer_facts(tokenizers: TokenizerPair) -> tuple[TokenizerFacts, ...]:
    source, target = tokenizers
    if tokenizers.is_joint:
        return (TokenizerFacts("both", JOINT_FILE, source.algorithm, source.vocab_size),)
    return (
        TokenizerFacts("source", SOURCE_FILE, source.algorithm, source.vocab_size),
        TokenizerFacts("target", TARGET_FILE, target.algorithm, target.vocab_size),
    )


def _files(
    directory: Path, saved: SavedConfig, *, has_weights: bool, verify: bool
) -> Iterator[FileFacts]:
    checks = {CONFIG_FILE: VERIFIED if saved.has_sha256 else NO_HASH}
    checks |= dict.fromkeys(saved.tokenizer_files, VERIFIED)
    if has_weights:
        checks[WEIGHTS_FILE] = VERIFIED if verify else UNVERIFIED
    for name in (SHORTLIST_FILE, CARD_FILE):
        if (directory / name).is_file():
            checks[name] = NO_HASH
    for name, check in sorted(checks.items()):
        path = model_file(directory, name)
        try:
            with io.BufferedReader(open_regular(path)) as file:
                num_bytes = os.fstat(file.fileno()).st_size
                sha256 = hashlib.file_digest(file, "sha256").hexdigest() if verify else ""
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
        yield FileFacts(name, num_bytes, sha256, check)


# How it was trained.


def _training(
    directory: Path,
    card: Card,
    state: Mapping[str, Any],
    weights_update: int | None,
    scores: Mapping[str, float],
) -> Training:
    """Return what is recorded of the training.

    The whole run is described by the last line of `metrics.jsonl`, or else by its last checkpoint;
    a model without them has a card, which describes the run up to the update of the weights.
    """
    last, signatures = _metrics(directory / METRICS_FILE, weights_update)
    of_card = _trained(card)
    epochs_done = _count(state.get("epoch"))
    runs = (
        (_count(last.get("update")), _count(last.get("epoch")), _seconds(last.get("seconds"))),
        (
            _count(state.get("update")),
            None if epochs_done is None else epochs_done + 1,
            _seconds(state.get("train_seconds")),
        ),
        (of_card["updates"], None, of_card["seconds"]),
    )
    updates, epoch, seconds = max(runs, key=lambda run: -1 if run[0] is None else run[0])
    pairs = re.match(r"[0-9]{1,15}", card.rows.get("pairs", ""))
    state_tokens = _count(state.get("target_tokens", state.get("target_pieces")))
    return Training(
        updates=updates,
        epoch=epoch,
        target_tokens=of_card["target_tokens"] if state_tokens is None else state_tokens,
        pairs=int(pairs[0]) if pairs else None,
        seconds=seconds,
        weights_update=weights_update,
        scores=scores,
        signatures=signatures or {m: s for m, s in card.signatures.items() if "|" in s},
    )


def _trained(card: Card) -> dict[str, int | None]:
    """Return the updates, target tokens and seconds of a card."""
    match = _TRAINED.fullmatch(card.rows.get("trained", ""))
    if match is None:
        return dict.fromkeys(("updates", "target_tokens", "seconds"))
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[2:])
    counts = int(match[1]), int(match[2].replace(",", ""))
    updates, tokens = (_count(count) for count in counts)
    duration = 3600 * hours + 60 * minutes + seconds
    return {"updates": updates, "target_tokens": tokens, "seconds": duration}


def _metrics(path: Path, weights_update: int | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the last line of `metrics.jsonl`, and the signatures of the weights' validation."""
    newest: list[bytes] = []  # the last line may be cut off
    signatures: dict[str, str] = {}
    with contextlib.suppress(OSError), io.BufferedReader(open_regular(path)) as stream:
        while line := stream.readline(_MAX_LINE_BYTES):
            newest = [*newest[-1:], line]
            if line.startswith(b'{"event": "valid"'):
                facts = _parsed(line)
                if facts.get("update") == weights_update and facts.get("best") is True:
                    signatures = _signatures(facts.get("signatures"))
    return next(filter(None, map(_parsed, reversed(newest))), {}), signatures


def _parsed(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        return parse_json_object(line)
    return {}


def _signatures(table: object) -> dict[str, str]:
    """Return signatures by metric, from a table of signatures by sacreBLEU's names of scores."""
    signatures = {}
    for name, signature in table.items() if isinstance(table, dict) else ():
        if match := _METRIC_OF_NAME.match(name):
            signatures[match[1].lower()] = one_line(str(signature))[:_MAX_SIGNATURE_LENGTH]
    return signatures


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_COUNT else None


def _seconds(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= _MAX_SECONDS else None  # type: ignore[operator, arg-type]


def _resume_point(directory: Path, *, verify: bool) -> tuple[int | None, dict[str, Any]]:
    """Return the update of the newest usable checkpoint, and its state; None without one.

    Args:
        directory: of the run.
        verify: compare its files with the hashes in its manifest, not only its state.
    """
    checkpoints: list[Path] = []
    with contextlib.suppress(OSError):
        checkpoints = [path for path in (directory / CHECKPOINTS).iterdir() if is_checkpoint(path)]
    for path in sorted(checkpoints, key=_update_of, reverse=True):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            content = read_regular(path / STATE_FILE, max_bytes=MAX_JSON_BYTES)
            manifest = read_regular(path / MANIFEST_FILE, max_bytes=MAX_JSON_BYTES)
            hashes = parse_json_object(manifest)["sha256"]
            for name in CHECKPOINT_FILES if verify else (STATE_FILE,):
                with io.BufferedReader(open_regular(path / name)) as file:
                    actual = hashlib.file_digest(file, "sha256").hexdigest()
                if actual != hashes.get(name):
                    raise ValueError(name)
            state = parse_json_object(content).get("state", {})
            return _update_of(path), state if isinstance(state, dict) else {}
    return None, {}


def _update_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("update-"))


def to_json(description: Description) -> dict[str, Any]:
    """Return the facts as a JSON object, whose names stay the same; what is unknown is null."""
    saved, training, card = description.saved, description.training, description.card
    data, tokenizer = saved.settings.data, saved.settings.tokenizer
    shape = to_mapping(saved.settings)["model"]
    encoder, decoder = saved.settings.model.encoder, saved.settings.model.decoder
    return {
        "model": str(description.path),
        "format_version": saved.format_version,
        "tfm_version": saved.tfm_version,
        "languages": list(card.languages),
        "license": card.license or None,
        "language_tags": list(description.language_tags),
        "imported_from": card.rows.get("from"),
        "shape": {
            **shape,
            "encoder": encoder._asdict(),
            "decoder": decoder._asdict(),
        },
        "parameters": dict(description.parameters),
        "precision": description.precision or None,
        "vocab_sizes": dict(zip(("source", "target"), saved.vocab_sizes, strict=True)),
        "tokenizers": [each._asdict() for each in description.tokenizers],
        "normalization": tokenizer.normalization_rule_name,
        "training": {
            "source": list(data.source),
            "target": list(data.target),
            "pairs_files": list(data.pairs),
            "valid_source": list(data.valid_source),
            "valid_target": list(data.valid_target),
            **{
                name: getattr(training, name)
                for name in ("pairs", "updates", "epoch", "target_tokens", "seconds")
            },
            "precision": card.rows.get("precision", card.rows.get("arithmetic")),
            "weights_update": training.weights_update,
            "scores": dict(training.scores),
            "signatures": dict(training.signatures),
        },
        "resumes_from": description.resumes_from,
        "files": [{**each._asdict(), "sha256": each.sha256 or None} for each in description.files],
    }
