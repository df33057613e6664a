"""`tfm import`: a model of another toolkit becomes a model directory, checked against the original.

A directory appears only when all of it was written, read back and compared.
"""

import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tfm_cli
from tfm_cli.console import visible
from tfm_cli.errors import ConfigError, DataError, ModelError, ResourceError
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_directory, check_writable
from tfm_cli.files.layout import CONFIG_FILE, SHORTLIST_FILE, TOKENIZER_FILES, WEIGHTS_FILE
from tfm_cli.files.ownership import (
    holds_model,
    inspecting,
    is_card,
    is_checkpoints_directory,
    is_corpus_cache,
    is_own_file,
    is_temporary_of,
    refuse_replacing_inputs,
)
from tfm_cli.interop.hugging_face.config_reader import shown
from tfm_cli.interop.hugging_face.reading import PICKLE, WEIGHTS, read_hugging_face
from tfm_cli.interop.marian.reading import read_marian, source_names
from tfm_cli.interop.source_files import download, has_file, is_hub_name, read_json, source_file
from tfm_cli.interop.tensors import ImportedModel
from tfm_cli.interop.verification.import_check import verify_import
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.model_directory.weights import TrainedModel, WeightsFacts, load_model, save_weights
from tfm_cli.text.markdown import code, plain
from tfm_cli.translation.search_engine import useless_weights_refused

logger = logging.getLogger(__name__)

HUGGING_FACE, MARIAN = "Hugging Face Marian", "Marian"
_CARD_FILE = "README.md"
# Files that may stand in a directory that is replaced: of a model, and of its training.
_KNOWN = (CONFIG_FILE, WEIGHTS_FILE, SHORTLIST_FILE, _CARD_FILE, "metrics.jsonl", *TOKENIZER_FILES)


def import_model(
    source: str,
    output: Path,
    *,
    allow_pickle: bool = False,
    probe: Path | None = None,
    overwrite: bool = False,
    positions: str | None = None,
) -> None:
    """Write the model directory `output` from a model of another toolkit.

    Args:
        source: a directory, or a name on the Hugging Face Hub.
        output: a directory that is made; one with a model in it is replaced only if asked for.
        allow_pickle: read weights that are a pickle, by a reader that runs no code.
        probe: text in the source language that both sides are compared on, line by line.
        overwrite: replace a model that stands in `output`.
        positions: of a Marian `.npz`, see `read_marian`; by default Marian's own.

    Raises:
        ConfigError: `output` holds something that is not to be replaced, or `positions` is given
            for a model that tells them itself.
        DataError: the source is no model of a kind that can be read, or cannot be had.
        ModelError: it is damaged, asks for what is not supported, or computes something else on
            the other side; `output` is as it was.
        ResourceError: what is needed to read it is not installed, or the disk is full.
    """
    output = Path(os.path.realpath(output))
    check_output(output, overwrite=overwrite)
    directory = _directory(source, allow_pickle=allow_pickle)
    inputs = [directory, *directory.iterdir(), *([probe] if probe else [])]
    refuse_replacing_inputs(output, inputs)
    kind = kind_of(directory)
    name = visible(directory.resolve().name if Path(source).is_dir() else source)
    logger.info("reading `%s` (%s)", name, kind)
    if kind == HUGGING_FACE:
        if positions is not None:
            raise ConfigError(
                f"{source}: is no `.npz`, so `--positions` says nothing of it: a model of Hugging "
                "Face tells its positions itself",
                hint="leave out `--positions`",
            )
        imported = read_hugging_face(directory, allow_pickle=allow_pickle)
        weights_file = WEIGHTS if has_file(directory, WEIGHTS) else PICKLE
    else:
        imported = read_marian(directory, positions=positions or "marian")
        weights_file = source_names(directory).weights
    for note in imported.notes:
        logger.warning("%s", note)
    origin = _Origin(name, kind, weights_file, _sha256(source_file(directory, weights_file)))
    with useless_weights_refused(name), atomic_directory(output, may_replace=may_replace) as aside:
        model = _written(aside, imported)
        verified = verify_import(model, directory, is_npz=kind == MARIAN, probe=probe)
        card = visible(_card(model, origin, imported.notes, verified))
        durable.write_file(aside / _CARD_FILE, card.encode("utf-8", "backslashreplace"))
    logger.info("wrote %s: %s", output, _shape(model))


def kind_of(directory: Path) -> str:
    """What a directory holds, told by its content.

    Raises:
        DataError: neither of the two kinds; says what it is if that can be told.
        ModelError: its `config.json` is torn.
    """
    if has_file(directory, CONFIG_FILE):
        config = read_json(directory, CONFIG_FILE)
        if "tfm_version" in config:
            raise DataError(
                f"{directory}: is a model of tfm already", hint=f"use it by `--model {directory}`"
            )
        model_type, architectures = config.get("model_type"), config.get("architectures")
        if model_type != "marian" and architectures != ["MarianMTModel"]:
            raise DataError(f"{directory}: {_other_kind(directory, config)}")
        return HUGGING_FACE
    if has_file(directory, "decoder.yml") or any(directory.glob("*.npz")):
        return MARIAN
    wanted = f"wanted `{CONFIG_FILE}` (Hugging Face) or an `.npz` (Marian)"
    raise DataError(f"{directory}: holds no model of a kind that can be imported: {wanted}")


def _other_kind(directory: Path, config: Mapping[str, Any]) -> str:
    """What a directory is whose `config.json` is of no Marian model, and what was wanted."""
    model_type = config.get("model_type")
    if model_type is not None:
        told = f"is a model of the type {shown(model_type)}"
    elif has_file(directory, "model.bin") and "unk_token" in config:
        told = "is a model for CTranslate2, which keeps too little of it to be imported"
    else:
        told = f"has a `{CONFIG_FILE}` that tells no `model_type`"
    return f"{told}, wanted a Hugging Face model of the type `marian`"


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a directory that must not be replaced, before the long work.

    Raises:
        ConfigError: it holds a model and is not to be overwritten, or holds something else.
        ResourceError: it could not be written.
    """
    check_writable(output, folder=True)
    with inspecting(output):
        entries = sorted(output.iterdir()) if output.is_dir() else []
        is_ours = not entries or may_replace(output)
        foreign = [path for path in entries if not _is_of_model(path)] or entries
    if not is_ours:
        shown = ", ".join(f"`{path.name}`" for path in foreign[:3])
        raise ConfigError(
            f"{output}: is not empty and holds more than a model: {shown}",
            hint="name another `--output`",
        )
    if entries and not overwrite:
        hint = "use `--overwrite` to replace it, or name another `--output`"
        raise ConfigError(f"{output}: holds a model", hint=hint)


def may_replace(directory: Path) -> bool:
    """Return True for an empty directory, or one with a model of ours and nothing else."""
    entries = list(directory.iterdir())
    return not entries or (holds_model(directory) and all(map(_is_of_model, entries)))


def _is_of_model(path: Path) -> bool:
    return (
        (is_own_file(path, _KNOWN) and (path.name != _CARD_FILE or is_card(path)))
        or is_checkpoints_directory(path)
        or is_corpus_cache(path)
        or any(is_temporary_of(path.name, name, of_0_1=True) for name in _KNOWN)
    )


@dataclass(frozen=True, slots=True)
class _Origin:
    name: str
    kind: str
    weights_file: str
    sha256: str


def _directory(source: str, *, allow_pickle: bool) -> Path:
    path = Path(source)
    if not source:
        raise ConfigError("the source is empty, wanted a directory or a name on the Hub")
    if path.is_dir():
        return path
    if os.path.lexists(path):
        raise DataError(f"{source}: is no directory, wanted one with a model")
    if is_hub_name(source):
        try:
            return download(source, allow_pickle=allow_pickle)
        except (DataError, ResourceError) as error:
            told = str(error).removeprefix(f"{source}: ")
            message = f"{source}: there is no such directory, and as a name on the Hub it {told}"
            raise type(error)(message, hint=error.hint) from error
    raise DataError(f"{source}: there is no such directory, and it is no name of the Hub")


def _written(directory: Path, imported: ImportedModel) -> TrainedModel:
    """The model as it was written to a directory and read back."""
    save_config(directory, imported.config, imported.tokenizers)
    facts = WeightsFacts(0, {})
    shape = imported.config.model
    save_weights(directory, imported.weights, imported.tokenizers, shape, facts)
    model = load_model(directory, torch.device("cpu"))
    for name, tensor in model.transformer.state_dict().items():
        if not torch.equal(tensor, imported.weights[name]):
            raise ModelError(f"{directory}: {name} was not read back as it was written")
    return model


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shape(model: TrainedModel) -> str:
    shape = model.config.model
    count = sum(p.numel() for p in model.transformer.parameters())
    pieces = " + ".join(f"{n:,}" for n in dict.fromkeys(model.tokenizers.vocab_sizes))
    heads, inner = (
        "+".join(map(str, dict.fromkeys(sizes)))
        for sizes in (
            (shape.encoder.heads, shape.decoder.heads),
            (shape.encoder.feed_forward_width, shape.decoder.feed_forward_width),
        )
    )
    return (
        f"{shape.encoder_layers}+{shape.decoder_layers} layers, width {shape.width}, "
        f"{heads} heads, feed-forward {inner}, {count:,} parameters, {pieces} pieces"
    )


def _card(model: TrainedModel, origin: _Origin, notes: Sequence[str], verified: str) -> str:
    """Markdown that says where a model is from and how far it was checked."""
    shape = model.config.model
    rows = [
        ("from", plain(f"{origin.name} ({origin.kind})")),
        ("weights", f"{code(origin.weights_file)}, SHA-256 {code(origin.sha256)}"),
        ("shape", f"{_shape(model)}, {shape.norm}-norm, {shape.positions} positions, "
                  f"{shape.activation}"),
        ("verified", plain(verified.removeprefix("verified "))),
        ("date", time.strftime("%Y-%m-%d")),
        ("made by", f"tfm {tfm_cli.__version__}"),
    ]  # fmt: skip
    tags = model.tokenizers.source.language_tags
    if tags:
        rows.insert(3, ("target languages", " ".join(map(code, tags))))
    lines = ["# An imported translation model", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += [f"\n- {plain(note)}" for note in notes]
    lines += ["", "## Use", "", "```", "tfm translate --model . < source.txt", "```", ""]
    lines += ["The licence is that of the original model. All settings are in `config.json`."]
    return "\n".join(lines) + "\n"
