"""`tfm export`: convert a model for another toolkit, or to int8, and verify the result.

The directory appears only once the exported model has been run and compared.
"""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import tfm_cli
from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding.interface import Hypothesis, output_limit
from tfm_cli.errors import ConfigError, ModelError
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_directory, atomic_file, check_writable
from tfm_cli.files.layout import (
    CONFIG_FILE,
    EXPORT_FILE,
    SHORTLIST_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
)
from tfm_cli.files.ownership import (
    holds_export,
    inspecting,
    is_own_file,
    refuse_replacing_inputs,
)
from tfm_cli.files.untrusted import open_regular, parse_json_object, read_regular
from tfm_cli.interop import ctranslate2
from tfm_cli.interop.ctranslate2 import QUANTIZATIONS, write_ctranslate2
from tfm_cli.interop.hugging_face import writing as hugging_face
from tfm_cli.interop.hugging_face.writing import write_hugging_face
from tfm_cli.interop.runtimes import is_installed
from tfm_cli.interop.verification import (
    QuantizationLoss,
    probe_lines,
    verify_ctranslate2,
    verify_hugging_face,
    verify_quantized_ctranslate2,
)
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.model_directory.weight_shapes import SCALES, int8_shapes, weight_shapes
from tfm_cli.model_directory.weights import (
    TrainedModel,
    WeightsFacts,
    load_model,
    save_weights,
    weights_facts,
)
from tfm_cli.native import library
from tfm_cli.native.model import NativeModel, error_of
from tfm_cli.native.search import NativeSearch, Segments
from tfm_cli.translation.search import unusable_weights_as_model_error

logger = logging.getLogger(__name__)

TARGETS = ("hf", "ctranslate2", "tfm")
_FILES = {
    "hf": hugging_face.FILES,
    "ctranslate2": ctranslate2.FILES,
    "tfm": (CONFIG_FILE, WEIGHTS_FILE, SHORTLIST_FILE, *TOKENIZER_FILES),
}
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
    """Convert a model directory for another toolkit or to int8, and verify the result.

    Args:
        model_dir: the model to export.
        output: the directory to create.
        to: `hf` for Hugging Face's MarianMTModel, `ctranslate2` for its Translator, `tfm` for a
            model directory.
        quantization: of CTranslate2's weights, see `write_ctranslate2`, or None for fp32; for
            `tfm`, `int8`.
        probe: text in the source language on which the two models are compared; by default one
            is generated.
        overwrite: replace an export of the same kind in `output`.

    Raises:
        ConfigError: the model has features that the other toolkit lacks, all of which are listed;
            or `output` holds something that must not be replaced.
        DataError: `probe` cannot be read.
        ModelError: the model is damaged, or the result does not compute the same; `output` is
            unchanged.
        ResourceError: CTranslate2 or the native CPU engine is needed and not installed, or the
            disk is full.
    """
    _check_target(to, quantization)
    output = Path(os.path.realpath(output))
    check_output(output, to, overwrite=overwrite)
    inputs = [model_dir, *([probe] if probe else [])]
    inputs += model_dir.iterdir() if model_dir.is_dir() else []
    refuse_replacing_inputs(output, inputs)
    model = load_model(model_dir, torch.device("cpu"))
    if to == "hf":
        hugging_face.refuse_inexpressible(model)
    elif to == "ctranslate2":
        ctranslate2.refuse_inexpressible(model)
    lines = probe_lines(model, probe)
    with (
        unusable_weights_as_model_error(str(model_dir)),
        atomic_directory(output, may_replace=partial(may_replace, to=to)) as temporary,
    ):
        if to == "tfm":
            write_int8(temporary, model, model_dir)
            _log_loss("int8", verify_int8(model, temporary, lines))
        else:
            _write_for_others(temporary, model, to, quantization, lines)
        marker = json.dumps({"tfm_version": tfm_cli.__version__, "to": to})
        durable.write_file(temporary / EXPORT_FILE, marker.encode() + b"\n")
        size = sum(path.stat().st_size for path in temporary.iterdir())
    logger.info("wrote %s: %.1f MB", output, size / 1e6)
    if to == "ctranslate2":
        logger.info("%s", _nearest_call(model.config.search))


def _check_target(to: str, quantization: str | None) -> None:
    """Refuse a target that no model can be exported to."""
    if to not in TARGETS:
        raise ConfigError(f"`--to` must be one of {', '.join(TARGETS)}, got {to}")
    if to == "hf" and quantization is not None:
        raise ConfigError(
            "`--quantization` is for `--to ctranslate2` and `--to tfm`, got `--to hf`"
        )
    if to == "tfm" and quantization != "int8":
        message = f"`--to tfm` needs `--quantization int8`, got {quantization or 'none'}"
        raise ConfigError(message, hint="copy the model directory to keep its precision")
    if quantization not in (None, *QUANTIZATIONS):
        expected = ", ".join(QUANTIZATIONS)
        raise ConfigError(f"`--quantization` must be one of {expected}, got {quantization}")
    if to == "ctranslate2" and not is_installed("ctranslate2"):
        raise ctranslate2.missing_ctranslate2()
    if to == "tfm":
        library.load()


def check_output(output: Path, to: str, *, overwrite: bool) -> None:
    """Refuse a directory that must not be replaced, before any long work begins.

    Raises:
        ConfigError: it holds an export and `overwrite` is not set, or it holds something else.
        ResourceError: it cannot be written.
    """
    check_writable(output, folder=True)
    with inspecting(output):
        entries = sorted(output.iterdir()) if output.is_dir() else []
        is_ours = not entries or may_replace(output, to)
    if not is_ours:
        names = (*_FILES[to], EXPORT_FILE)
        foreign = [path.name for path in entries if not is_own_file(path, names)]
        foreign = foreign or [path.name for path in entries]
        listed = ", ".join(f"`{name}`" for name in foreign[:3])
        raise ConfigError(
            f"{output}: holds files of something else: {listed}",
            hint="name another `--output`; files that tfm is not known to have made have to be "
            "removed by hand",
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
    """Return True if a directory holds a model of the target's kind, judging by its config."""
    try:
        content = read_regular(directory / "config.json", max_bytes=_MAX_CONFIG_BYTES)
        config = parse_json_object(content)
    except (OSError, ValueError):
        return False
    if to == "tfm":
        return "format_version" in config and (directory / WEIGHTS_FILE).exists()
    if to == "hf":
        return config.get("model_type") == "marian" and (directory / "model.safetensors").exists()
    return "decoder_start_token" in config and (directory / "model.bin").exists()


# Hugging Face and CTranslate2


def _write_for_others(
    directory: Path, model: TrainedModel, to: str, quantization: str | None, lines: Sequence[str]
) -> None:
    """Write a model for another toolkit, and compare the results.

    Quantized weights are written after a comparison in fp32, since only fp32 can be compared
    closely.
    """
    if to == "hf":
        write_hugging_face(directory, model)
        verify_hugging_face(model, directory, lines).log()
    else:
        write_ctranslate2(directory, model, quantization=None)
        verify_ctranslate2(model, directory, lines).log()
    if quantization is not None:
        for path in directory.iterdir():
            durable.remove(path)
        write_ctranslate2(directory, model, quantization=quantization)
        _log_loss(quantization, verify_quantized_ctranslate2(model, directory, lines))


def _log_loss(quantization: str, loss: QuantizationLoss) -> None:
    """Log the effect of quantization, as a warning if most translations change."""
    keeps_most = 2 * loss.unchanged >= loss.lines > 0
    logger.log(logging.INFO if keeps_most else logging.WARNING, "%s: %s", quantization, loss)


def _nearest_call(search: SearchConfig) -> str:
    """Return a message with the call of `translate_batch` that is closest to a model's settings."""
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
    arguments = ", ".join(f"{name}={value}" for name, value in options.items())
    # CTranslate2 supports no other values of these two settings.
    flags = []
    if search.length_norm != "power" and search.length_penalty != 0:
        flags.append("--length-norm power")
    if not search.early_stopping and search.beam_size > 1:
        flags.append("--early-stopping")
    command = " ".join(["tfm translate", *flags])
    return f"translate_batch(pieces, {arguments}) comes closest to `{command}`"


# Model directories with weights in int8, as the native CPU engine quantizes them. They need a
# quarter of the disk space and of the time to load.


def write_int8(directory: Path, model: TrainedModel, model_dir: Path) -> None:
    """Write a model into an empty directory, with its weights in int8.

    Args:
        directory: an empty directory.
        model: the model to write.
        model_dir: the directory of the model, whose scores and shortlist are copied.

    Raises:
        ResourceError: there is no native engine.
    """
    shape = model.config.model
    weights = dict(model.transformer.state_dict())
    for name in int8_shapes(weight_shapes(shape, model.tokenizers.vocab_sizes)):
        weights[name], weights[name + SCALES] = _quantize(weights[name])
    save_config(directory, model.config, model.tokenizers)
    facts = weights_facts(model_dir) or WeightsFacts(0, {})
    save_weights(directory, weights, model.tokenizers, shape, facts, precision="int8")
    shortlist = model_dir / SHORTLIST_FILE
    if shortlist.exists():
        with open_regular(shortlist) as source, atomic_file(directory / SHORTLIST_FILE) as stream:
            shutil.copyfileobj(source, stream)


def _quantize(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix in int8, (rows, columns), and the scale of each row, (rows,)."""
    engine, matrix = library.load(), matrix.detach().float().contiguous()
    rows, columns = matrix.shape
    values = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows)
    status = engine.functions.tfm_quantize(
        matrix.data_ptr(), rows, columns, values.data_ptr(), scales.data_ptr()
    )
    if status != library.OK:
        raise RuntimeError(error_of(engine, status))
    return values, scales


def verify_int8(model: TrainedModel, directory: Path, lines: Sequence[str]) -> QuantizationLoss:
    """Compare a model directory in int8 with its model in fp32.

    Raises:
        ModelError: the results differ from those of the model when it is quantized on loading.
        NonFiniteScoresError: the weights compute values that are not finite.
    """
    saved = NativeModel.load(directory, precision="int8")
    direct, exact = (
        NativeModel.from_weights(
            model.transformer.state_dict(), model.config, model.tokenizers, precision=precision
        )
        for precision in ("int8", "fp32")
    )
    shape = model.config.model
    max_tokens = shape.max_positions - 1 if shape.positions == "learned" else 1 << 20
    sources = [ids[:max_tokens] for ids in model.tokenizers.source.encode(list(lines)) if ids]
    factor = model.config.search.max_length_factor
    limits = [min(output_limit(len(ids), factor), max_tokens) for ids in sources]
    unchanged, differences = 0, list[float]()
    for source, limit in zip(sources, limits, strict=True):
        batch = Segments(sources=[source], limits=[limit])
        expected, actual = (_best(one, batch) for one in (exact, saved))
        unchanged += expected.ids == actual.ids
        of_saved, of_direct, of_exact = (
            NativeSearch([one], model.config.search).score([source], [expected.ids])[0]
            for one in (saved, direct, exact)
        )
        if of_saved != of_direct:
            raise ModelError(f"{directory}: computes something else than the model does in int8")
        differences += [abs(a - b) for a, b in zip(of_saved, of_exact, strict=True)]
    mean = sum(differences) / max(1, len(differences))
    return QuantizationLoss(mean, unchanged, len(sources))


def _best(model: NativeModel, batch: Segments) -> Hypothesis:
    return NativeSearch([model], model.config.search)(batch)[0][0]
