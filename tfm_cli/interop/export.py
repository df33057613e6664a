"""`tfm export`: a model leaves for another toolkit, and appears there only when it was checked."""

import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

import tfm_cli
from tfm_cli import durable
from tfm_cli.config import SearchConfig
from tfm_cli.decoding.scoring import output_limit
from tfm_cli.errors import ConfigError
from tfm_cli.files import atomic_directory, check_writable
from tfm_cli.interop import (
    ctranslate2_export,
    ctranslate2_runtime,
    hugging_face_export,
    int8_export,
)
from tfm_cli.interop.ctranslate2_export import QUANTIZATIONS, write_ctranslate2
from tfm_cli.interop.hugging_face_export import write_hugging_face
from tfm_cli.interop.int8_export import verify_int8, write_int8
from tfm_cli.interop.probe import probe_lines
from tfm_cli.interop.verification import (
    Coarseness,
    verify_coarse,
    verify_ctranslate2,
    verify_hugging_face,
)
from tfm_cli.model_dir import TrainedModel, load_model
from tfm_cli.native import library
from tfm_cli.ownership import EXPORT_FILE, holds_export, is_own_file, looking_at, refuse_replacing
from tfm_cli.plain_file import read_plain
from tfm_cli.plain_json import parse_object
from tfm_cli.translation.useless_weights import useless_weights_refused

logger = logging.getLogger(__name__)

TARGETS = ("hf", "ctranslate2", "tfm")
_FILES = {
    "hf": hugging_face_export.FILES,
    "ctranslate2": ctranslate2_export.FILES,
    "tfm": int8_export.FILES,
}
_REFUSE = {
    "hf": hugging_face_export.refuse_inexpressible,
    "ctranslate2": ctranslate2_export.refuse_inexpressible,
    "tfm": int8_export.refuse_inexpressible,
}
_SEED = 1
_MAX_CONFIG_BYTES = 1 << 20


def export_model(
    model_dir: Path,
    output: Path,
    *,
    to: str,
    quantization: str | None = None,
    probe: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model directory for another toolkit, and run it there before it gets its name.

    Args:
        model_dir: what `tfm train` or `tfm import` wrote.
        output: a directory that is made; one with such an export in it is replaced only if asked
            for.
        to: `hf` for Hugging Face's MarianMTModel, `ctranslate2` for its Translator, `tfm` for a
            model directory.
        quantization: of CTranslate2's weights, see `write_ctranslate2`; None for single precision.
            A model directory has its weights in `int8`.
        probe: text in the source language to compare both sides on; None to have some made up.
        overwrite: replace an export of this kind that stands in `output`.

    Raises:
        ConfigError: the model has what the other side has not, all of which is listed; or
            `output` holds something that is not to be replaced.
        DataError: `probe` cannot be read.
        ModelError: the model is torn, or computes something else on the other side; `output` is
            as it was.
        ResourceError: CTranslate2 or the native CPU engine is needed and not installed, or the
            disk is full.
    """
    _check_target(to, quantization)
    output = Path(os.path.realpath(output))
    check_output(output, to, overwrite=overwrite)
    inputs = [model_dir, *([probe] if probe else [])]
    inputs += model_dir.iterdir() if model_dir.is_dir() else []
    refuse_replacing(output, inputs)
    model = load_model(model_dir, torch.device("cpu"))
    _REFUSE[to](model)
    lines = probe_lines(model, probe, seed=_SEED)
    replaceable = partial(may_replace, to=to)
    with (
        useless_weights_refused(str(model_dir)),
        atomic_directory(output, may_replace=replaceable) as aside,
    ):
        if to == "tfm":
            write_int8(aside, model, model_dir)
            _tell("int8", verify_int8(model, aside, lines))
        else:
            _write_for_others(aside, model, to, quantization, lines)
        marker = json.dumps({"tfm_version": tfm_cli.__version__, "to": to})
        durable.write_file(aside / EXPORT_FILE, marker.encode() + b"\n")
        size = sum(path.stat().st_size for path in aside.iterdir())
    logger.info("wrote %s: %.1f MB", output, size / 1e6)
    if to == "ctranslate2":
        logger.info("%s", _call(model.config.search))


def _check_target(to: str, quantization: str | None) -> None:
    """Refuse what cannot be made of any model."""
    if to not in TARGETS:
        raise ConfigError(f"`--to` must be one of {', '.join(TARGETS)}, got {to}")
    if to == "hf" and quantization is not None:
        raise ConfigError(
            "`--quantization` is for `--to ctranslate2` and `--to tfm`, got `--to hf`"
        )
    if to == "tfm" and quantization != "int8":
        told = f"`--to tfm` needs `--quantization int8`, got {quantization or 'none'}"
        raise ConfigError(told, hint="copy the model directory to have it as it is")
    if quantization not in (None, *QUANTIZATIONS):
        wanted = ", ".join(QUANTIZATIONS)
        raise ConfigError(f"`--quantization` must be one of {wanted}, got {quantization}")
    if to == "ctranslate2" and not ctranslate2_runtime.is_installed():
        raise ctranslate2_export.missing_ctranslate2()
    if to == "tfm":
        library.load()


def _write_for_others(
    directory: Path, model: TrainedModel, to: str, quantization: str | None, lines: Sequence[str]
) -> None:
    """Write a model for another toolkit, and run it there."""
    if to == "hf":
        write_hugging_face(directory, model)
        verified = verify_hugging_face(model, directory, lines)
    else:
        write_ctranslate2(directory, model, quantization=None)
        verified = verify_ctranslate2(model, directory, lines)
    if verified is not None:
        logger.log(logging.WARNING if verified.is_empty else logging.INFO, "%s", verified)
    if quantization is not None:
        _quantise(directory, model, quantization, lines)


def check_output(output: Path, to: str, *, overwrite: bool) -> None:
    """Refuse a directory that must not be replaced, before the long work.

    Raises:
        ConfigError: it holds an export and is not to be overwritten, or holds something else.
        ResourceError: it could not be written.
    """
    check_writable(output, folder=True)
    with looking_at(output):
        entries = sorted(output.iterdir()) if output.is_dir() else []
        is_ours = not entries or may_replace(output, to)
    if not is_ours:
        names = (*_FILES[to], EXPORT_FILE)
        foreign = [path.name for path in entries if not is_own_file(path, names)]
        foreign = foreign or [path.name for path in entries]
        listed = ", ".join(f"`{name}`" for name in foreign[:3])
        raise ConfigError(
            f"{output}: holds what no such export has: {listed}",
            hint="name another `--output`; what tfm is not known to have made has to be removed "
            "by hand",
        )
    if entries and not overwrite:
        hint = "use `--overwrite` to replace it, or name another `--output`"
        raise ConfigError(f"{output}: holds an export", hint=hint)


def may_replace(directory: Path, to: str) -> bool:
    """Return True for an empty directory, or one with an export of this kind and nothing else."""
    entries = list(directory.iterdir())
    names = (*_FILES[to], EXPORT_FILE)
    is_all_ours = all(is_own_file(path, names) for path in entries)
    return not entries or (is_all_ours and holds_export(directory) and _is_export(directory, to))


def _is_export(directory: Path, to: str) -> bool:
    """Whether a directory holds a model of the target's kind, as far as its settings tell."""
    try:
        config = parse_object(read_plain(directory / "config.json", max_bytes=_MAX_CONFIG_BYTES))
    except (OSError, ValueError):
        return False
    if to == "tfm":
        return "format_version" in config and (directory / "model.safetensors").exists()
    if to == "hf":
        return config.get("model_type") == "marian" and (directory / "model.safetensors").exists()
    return "decoder_start_token" in config and (directory / "model.bin").exists()


def _quantise(
    directory: Path, model: TrainedModel, quantization: str, lines: Sequence[str]
) -> None:
    """Replace an export that was verified by the same with coarser weights."""
    for path in directory.iterdir():
        durable.remove(path)
    write_ctranslate2(directory, model, quantization=quantization)
    _tell(quantization, verify_coarse(model, directory, lines))


def _tell(quantization: str, coarseness: Coarseness) -> None:
    """Log what coarser weights changed, as a warning if that is much."""
    keeps_most = 2 * coarseness.kept >= coarseness.lines > 0
    logger.log(logging.INFO if keeps_most else logging.WARNING, "%s: %s", quantization, coarseness)


def _call(search: SearchConfig) -> str:
    """Arguments of `translate_batch` that come closest to a model's own settings."""
    options = {
        "beam_size": search.beam_size,
        "length_penalty": search.length_penalty,
        "min_decoding_length": 0,
        "max_decoding_length": output_limit(search.max_length, search.max_length_factor) + 1,
        "max_input_length": 0,
    }
    if search.no_repeat_ngram_size:
        options["no_repeat_ngram_size"] = search.no_repeat_ngram_size
    if search.repetition_penalty != 1:
        options["repetition_penalty"] = search.repetition_penalty
    told = ", ".join(f"{name}={value}" for name, value in options.items())
    # What CTranslate2 always does.
    flags = []
    if search.length_norm != "power" and search.length_penalty != 0:
        flags.append("--length-norm power")
    if not search.early_stopping and search.beam_size > 1:
        flags.append("--early-stopping")
    return (
        f"translate_batch(pieces, {told}) comes closest to `{' '.join(['tfm translate', *flags])}`"
    )
