"""`tfm import`: convert a model of another toolkit, and verify it against the original.

The model directory appears only once it has been written, read back and compared.
"""

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import tfm_cli
from tfm_cli.config.settings import norm_name
from tfm_cli.console import visible
from tfm_cli.errors import ConfigError, DataError, ModelError, ResourceError
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_directory, check_writable
from tfm_cli.files.layout import (
    CARD_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    SHORTLIST_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
)
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
from tfm_cli.interop.hugging_face.reading import read_hugging_face
from tfm_cli.interop.marian.reading import read_marian
from tfm_cli.interop.source_files import (
    download,
    has_file,
    is_hub_name,
    quoted,
    read_json,
    source_file,
)
from tfm_cli.interop.tensors import ImportedModel
from tfm_cli.interop.verification import probe_lines, verify_import
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.model_directory.weights import TrainedModel, WeightsFacts, load_model, save_weights
from tfm_cli.text.markdown import code, plain
from tfm_cli.translation.search import unusable_weights_as_model_error

logger = logging.getLogger(__name__)

HUGGING_FACE, MARIAN = "Hugging Face Marian", "Marian"
# The files of a model, and of its training, that a directory may hold if it is to be replaced.
_MODEL_FILES = (
    CONFIG_FILE, WEIGHTS_FILE, SHORTLIST_FILE, CARD_FILE, METRICS_FILE, *TOKENIZER_FILES,
)  # fmt: skip


def import_model(
    source: str,
    output: Path,
    *,
    allow_pickle: bool = False,
    probe: Path | None = None,
    overwrite: bool = False,
    positions: str | None = None,
) -> None:
    """Convert a model of another toolkit to a model directory.

    Args:
        source: a directory, or a name on the Hugging Face Hub.
        output: the directory to create.
        allow_pickle: read weights that are pickled, with a reader that runs no code.
        probe: text in the source language on which the two models are compared.
        overwrite: replace a model in `output`.
        positions: position encodings of a Marian `.npz`, see `read_marian`; by default Marian's.

    Raises:
        ConfigError: `output` holds something that must not be replaced, or `positions` is given
            for a model that specifies them itself.
        DataError: the source is not a supported kind of model, or cannot be downloaded.
        ModelError: the source is damaged, needs an unsupported feature, or does not compute the
            same as the result; `output` is unchanged.
        ResourceError: a package that is needed to read it is not installed, or the disk is full.
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
                f"{source}: is not an `.npz`, so `--positions` does not apply: a model of Hugging "
                "Face specifies its positions itself",
                hint="leave out `--positions`",
            )
        imported = read_hugging_face(directory, allow_pickle=allow_pickle)
    else:
        imported = read_marian(directory, positions=positions or "marian")
    for note in imported.notes:
        logger.warning("%s", note)
    with source_file(directory, imported.weights_file).open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    with (
        unusable_weights_as_model_error(name),
        atomic_directory(output, may_replace=may_replace) as temporary,
    ):
        model = _write_and_load(temporary, imported)
        verified = verify_import(model, imported, directory, probe_lines(model, probe))
        verified.log()
        card = visible(_card(model, imported, f"{name} ({kind})", sha256, str(verified)))
        durable.write_file(temporary / CARD_FILE, card.encode("utf-8", "backslashreplace"))
    logger.info("wrote %s: %s", output, _summary(model))


def kind_of(directory: Path) -> str:
    """Return `HUGGING_FACE` or `MARIAN`, by the content of a directory.

    Raises:
        DataError: it is neither; the message names its kind if it is known.
        ModelError: its `config.json` is damaged.
    """
    if has_file(directory, CONFIG_FILE):
        config = read_json(directory, CONFIG_FILE)
        if "tfm_version" in config:
            raise DataError(
                f"{directory}: is a model of tfm already",
                hint=f"use it with `--model {directory}`",
            )
        model_type, architectures = config.get("model_type"), config.get("architectures")
        if model_type != "marian" and architectures != ["MarianMTModel"]:
            raise DataError(f"{directory}: {_other_kind(directory, config)}")
        return HUGGING_FACE
    if has_file(directory, "decoder.yml") or any(directory.glob("*.npz")):
        return MARIAN
    expected = f"expected `{CONFIG_FILE}` (Hugging Face) or an `.npz` (Marian)"
    raise DataError(f"{directory}: holds no model that can be imported: {expected}")


def _other_kind(directory: Path, config: Mapping[str, Any]) -> str:
    """Return the reason why the model with this `config.json` cannot be imported."""
    model_type = config.get("model_type")
    if model_type is not None:
        reason = f"is a model of the type {quoted(model_type)}"
    elif has_file(directory, "model.bin") and "unk_token" in config:
        reason = "is a model for CTranslate2, which lacks information that an import needs"
    else:
        reason = f"has a `{CONFIG_FILE}` without `model_type`"
    return f"{reason}, expected a Hugging Face model of the type `marian`"


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a directory that must not be replaced, before any long work begins.

    Raises:
        ConfigError: it holds a model and `overwrite` is not set, or it holds something else.
        ResourceError: it cannot be written.
    """
    check_writable(output, folder=True)
    with inspecting(output):
        entries = sorted(output.iterdir()) if output.is_dir() else []
        is_ours = not entries or may_replace(output)
        foreign = [path for path in entries if not _is_of_model(path)] or entries
    if not is_ours:
        names = ", ".join(f"`{path.name}`" for path in foreign[:3])
        raise ConfigError(
            f"{output}: is not empty and holds more than a model: {names}",
            hint="name another `--output`",
        )
    if entries and not overwrite:
        hint = "use `--overwrite` to replace it, or name another `--output`"
        raise ConfigError(f"{output}: holds a model", hint=hint)


def may_replace(directory: Path) -> bool:
    """Return True for an empty directory, or one with a model made by tfm and nothing else."""
    entries = list(directory.iterdir())
    return not entries or (holds_model(directory) and all(map(_is_of_model, entries)))


def _is_of_model(path: Path) -> bool:
    return (
        (is_own_file(path, _MODEL_FILES) and (path.name != CARD_FILE or is_card(path)))
        or is_checkpoints_directory(path)
        or is_corpus_cache(path)
        or any(is_temporary_of(path.name, name, of_0_1=True) for name in _MODEL_FILES)
    )


def _directory(source: str, *, allow_pickle: bool) -> Path:
    path = Path(source)
    if not source:
        raise ConfigError("the source is empty, expected a directory or a name on the Hub")
    if path.is_dir():
        return path
    if os.path.lexists(path):
        raise DataError(f"{source}: is not a directory, expected one with a model")
    if is_hub_name(source):
        try:
            return download(source, allow_pickle=allow_pickle)
        except (DataError, ResourceError) as error:
            reason = str(error).removeprefix(f"{source}: ")
            message = f"{source}: there is no such directory, and as a name on the Hub it {reason}"
            raise error.with_message(message) from error
    raise DataError(f"{source}: there is no such directory, and it is not a name on the Hub")


def _write_and_load(directory: Path, imported: ImportedModel) -> TrainedModel:
    """Write a model into a directory, load it from there, and check that it is the same."""
    save_config(directory, imported.config, imported.tokenizers)
    facts = WeightsFacts(0, {})
    shape = imported.config.model
    save_weights(directory, imported.weights, imported.tokenizers, shape, facts)
    model = load_model(directory, torch.device("cpu"))
    for name, tensor in model.transformer.state_dict().items():
        if not torch.equal(tensor, imported.weights[name]):
            raise ModelError(f"{directory}: {name} was not read back as it was written")
    return model


def _summary(model: TrainedModel) -> str:
    """Return the size and shape of a model in one line."""
    shape = model.config.model
    count = sum(p.numel() for p in model.transformer.parameters())
    tokens = " + ".join(f"{n:,}" for n in dict.fromkeys(model.tokenizers.vocab_sizes))
    heads, inner = (
        "+".join(map(str, dict.fromkeys(sizes)))
        for sizes in (
            (shape.encoder.heads, shape.decoder.heads),
            (shape.encoder.feed_forward_width, shape.decoder.feed_forward_width),
        )
    )
    return (
        f"{shape.encoder_layers}+{shape.decoder_layers} layers, width {shape.width}, "
        f"{heads} heads, feed-forward {inner}, {count:,} parameters, {tokens} tokens"
    )


def _card(
    model: TrainedModel, imported: ImportedModel, origin: str, sha256: str, verified: str
) -> str:
    """Return the model card in Markdown: the origin of the model, and how it was verified."""
    shape = model.config.model
    rows = [
        ("from", plain(origin)),
        ("weights", f"{code(imported.weights_file)}, SHA-256 {code(sha256)}"),
        ("shape", f"{_summary(model)}, {norm_name(shape.norm)}, {shape.positions} positions, "
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
    lines += [f"\n- {plain(note)}" for note in imported.notes]
    lines += ["", "## Use", "", "```", "tfm translate --model . < source.txt", "```", ""]
    lines += ["The license is that of the original model. All settings are in `config.json`."]
    return "\n".join(lines) + "\n"
