"""Import a Hugging Face Marian directory, such as an OPUS-MT model."""

import contextlib
import dataclasses
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - only to catch what torch raises
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tfm_cli.config.settings import ModelConfig, RunConfig, SearchConfig
from tfm_cli.errors import ModelError, plain_reason
from tfm_cli.files.safetensors_file import SafetensorsFile
from tfm_cli.interop.hugging_face.options import CONFIG, GENERATION, Options, read_options
from tfm_cli.interop.hugging_face.vocabulary import read_tokenizers
from tfm_cli.interop.hugging_face.writing import from_halves
from tfm_cli.interop.source_files import first_line, has_file, read_json, source_file
from tfm_cli.interop.tensors import (
    ForeignTensor,
    ImportedModel,
    assemble,
    dtype_problem,
    raise_if_any,
    required_tensors,
)
from tfm_cli.model.positions import marian_sinusoids, sinusoids_in_halves

WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
_BIAS = "final_logits_bias"
_SHARED, _SOURCE, _TARGET, _OUTPUT = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
_POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
# The tolerance of a stored position table by its type; it is 1e-5 for other types.
_TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


def read_hugging_face(directory: Path, *, allow_pickle: bool) -> ImportedModel:
    """Read a Hugging Face directory of the type `marian`.

    Args:
        directory: contains `config.json`, weights, `source.spm`, `target.spm` and `vocab.json`.
        allow_pickle: read `pytorch_model.bin` if there is no `model.safetensors`.

    Raises:
        ModelError: a file is damaged or hostile, files are missing, or options or tensors are not
            supported; the message lists all problems.
    """
    config = read_json(directory, CONFIG)
    generation = read_json(directory, GENERATION) if has_file(directory, GENERATION) else None
    problems: list[str] = []
    options = read_options(config, generation, problems)
    tokenizers = read_tokenizers(directory, options, problems)
    title = f"{directory}: cannot be imported"
    reason, hint = _why_no_weights(directory, allow_pickle=allow_pickle)
    if reason:
        raise_if_any([*problems, reason], title, hint=hint)
    with _opened(directory) as stored:
        positions = _positions(stored, options, problems)
        has_bias = _has_bias(stored, options.vocab_sizes[1], problems)
        raise_if_any(problems, title)
        assert tokenizers is not None, "otherwise there are problems"
        model = ModelConfig(**options.model, positions=positions, output_bias=has_bias)
        weights, notes = _weights(stored, model, tokenizers.vocab_sizes)
    if options.positions == "sinusoidal":
        weights = from_halves(weights, model)
        model = dataclasses.replace(model, positions="sinusoidal")
    run = dataclasses.replace(RunConfig(), model=model, search=SearchConfig(**options.search))
    notes = (*stored.notes, *options.notes, *notes)
    return ImportedModel(run, tokenizers, weights, notes, stored.path.name)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The tensors of a file, loaded one at a time."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    load: Callable[[str], Tensor]
    notes: tuple[str, ...] = ()


def _weights(
    stored: _Stored, model: ModelConfig, vocab_sizes: tuple[int, int]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights by tfm's names; a tied tensor may be stored as several equal copies."""
    required = []
    for item in required_tensors(model, vocab_sizes, lambda name: name.hugging_face):
        if item.name == _BIAS:
            item = dataclasses.replace(item, shape=(1, *item.shape), as_row=True)
        required.append(item)
    problems: list[str] = []
    for names in _tied(model):
        present = [name for name in names if name in stored.shapes]
        if present:
            required = [_renamed(item, names[0], present[0]) for item in required]
            first = stored.load(present[0])
            for name in present[1:]:
                copy = stored.load(name)
                problem = dtype_problem(present[0], first) or dtype_problem(name, copy)
                if not problem and not torch.equal(first, copy):
                    problem = f"{name}: differs from {present[0]}, to which {CONFIG} ties it"
                problems += [problem] if problem else []
    title = f"{stored.path}: has tensors that contradict {CONFIG}"
    raise_if_any(dict.fromkeys(problems), title)
    ignored = {_BIAS, *_POSITIONS, *(name for names in _tied(model) for name in names)}
    ignored -= {item.name for item in required}
    return assemble(required, stored.shapes, stored.load, source=str(stored.path), ignored=ignored)


def _tied(model: ModelConfig) -> list[tuple[str, ...]]:
    """Return groups of names of the same tensor; the table of names has the first of each."""
    if model.tied_embeddings == 3:
        return [(_SHARED, _SOURCE, _TARGET, _OUTPUT)]
    if model.tied_embeddings == 1:
        return [(_SHARED, _SOURCE, _TARGET)]
    return [(_TARGET, _OUTPUT)] if model.tied_embeddings == 2 else []


def _renamed(item: ForeignTensor, name: str, stored_name: str) -> ForeignTensor:
    return dataclasses.replace(item, name=stored_name) if item.name == name else item


def _has_bias(stored: _Stored, vocab_size: int | None, problems: list[str]) -> bool:
    """Return True if there is an output bias that is not all zeros; its shape is checked."""
    if _BIAS not in stored.shapes or vocab_size is None:
        return False
    shape = stored.shapes[_BIAS]
    if shape != (1, vocab_size):
        problems.append(f"{stored.path}: {_BIAS} has shape {shape}, expected {(1, vocab_size)}")
        return False
    bias = stored.load(_BIAS)
    if problem := dtype_problem(_BIAS, bias):
        problems.append(f"{stored.path}: {problem}")
        return False
    return bool((bias != 0).any())


def _positions(stored: _Stored, options: Options, problems: list[str]) -> str:
    """Return the kind of sinusoids that is stored; that of Hugging Face if there is none."""
    kinds = {}
    for name in _POSITIONS:
        if name not in stored.shapes or "width" not in options.model:
            continue
        shape, width = stored.shapes[name], options.model["width"]
        if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
            problem = f"has shape {shape}, expected (1 or more, {width})"
            problems.append(f"{stored.path}: {name} {problem}")
            continue
        table = stored.load(name)
        if problem := dtype_problem(name, table):
            problems.append(f"{stored.path}: {problem}")
            continue
        positions = torch.arange(table.shape[0])
        formulas = {"sinusoidal_halves": sinusoids_in_halves(positions, width)}
        if width % 2 == 0:
            formulas["sinusoidal_marian"] = marian_sinusoids(positions, width)
        tolerance = _TOLERANCE.get(table.dtype, 1e-5)
        fits = [
            kind
            for kind, formula in formulas.items()
            if bool(((table.float() - formula).abs() <= tolerance).all())
        ]
        if fits:
            kinds[name] = fits[0]
        else:
            problems.append(f"{stored.path}: {name} holds no sinusoids that tfm knows")
    if len(set(kinds.values())) > 1:
        listed = " and ".join(f"{kind} in {name}" for name, kind in kinds.items())
        problems.append(f"{stored.path}: has two kinds of positions, {listed}")
    kind = next(iter(kinds.values()), "sinusoidal_halves")
    if kind == "sinusoidal_halves" and options.positions == "sinusoidal_marian":
        problem = f"`tfm_positions` is `sinusoidal_marian` in {CONFIG}, but no such table is stored"
        problems.append(f"{stored.path}: {problem}")
    return kind


def _why_no_weights(directory: Path, *, allow_pickle: bool) -> tuple[str, str | None]:
    """Return the reason why no weights can be read, and a hint; an empty reason if they can."""
    if has_file(directory, WEIGHTS):
        return "", None
    if not has_file(directory, PICKLE):
        return f"has no weights, expected `{WEIGHTS}`", None
    if allow_pickle:
        return "", None
    reason = f"has its weights in a pickle, `{PICKLE}`, which can contain code"
    hint = "use `--allow-pickle` to read it with a reader that runs no code, or convert it to "
    return reason, f"{hint}`{WEIGHTS}`"


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[_Stored]:
    if has_file(directory, WEIGHTS):
        with _opened_safetensors(source_file(directory, WEIGHTS)) as stored:
            yield stored
    else:
        yield _unpickled(source_file(directory, PICKLE))


@contextlib.contextmanager
def _opened_safetensors(path: Path) -> Iterator[_Stored]:
    message = f"{path}: is damaged or not a safetensors file"
    try:
        SafetensorsFile(path).close()  # checks the header before safetensors maps the file
    except (OSError, ValueError) as error:
        raise ModelError(f"{message}: {plain_reason(error)}") from error
    try:
        with safe_open(str(path), framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
            yield _Stored(path, shapes, file.get_tensor)
    except SafetensorError as error:
        raise ModelError(f"{message}: {error}") from error


def _unpickled(path: Path) -> _Stored:
    """Read the tensors of a pickle with PyTorch's restricted reader, which runs no code."""
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_zip(path)
    try:
        # This is the only place that reads a pickle, and only on request.
        table: Any = torch.load(  # noqa: TID251 - asked for by the user, and it runs no code
            path, map_location="cpu", weights_only=True, mmap=is_zip
        )
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError,
            AttributeError, IndexError, OSError) as error:  # fmt: skip
        reason = first_line(error)
        raise ModelError(f"{path}: is damaged, or holds more than tensors: {reason}") from error
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise ModelError(f"{path}: is not a table of tensors")
    problems = [
        f"{name}: {problem}" for name, value in table.items() if (problem := _tensor_problem(value))
    ]
    raise_if_any(problems, f"{path}: holds values that are not plain tensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in table.items()}
    note = f"`{path.name}` was read as a pickle of tensors; no code in it was run"
    return _Stored(path, shapes, table.__getitem__, (note,))


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path}: is damaged: {plain_reason(error)}") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelError(f"{path}: is compressed, which torch never does")


def _tensor_problem(value: object) -> str:
    """Return the reason why a value is not a usable tensor; the empty string if it is one."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}"
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return "is a tensor of another kind"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"has shape {tuple(value.shape)}, but fewer values"
    return ""
