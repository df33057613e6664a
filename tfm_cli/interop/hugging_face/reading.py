"""A Hugging Face Marian directory, as OPUS-MT models have it, becomes a model of ours."""

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
from tfm_cli.errors import ModelError
from tfm_cli.files.safetensors_file import SafetensorsFile
from tfm_cli.interop.hugging_face.config_reader import CONFIG, GENERATION
from tfm_cli.interop.hugging_face.options import Options, read_options
from tfm_cli.interop.hugging_face.vocabulary import read_tokenizers
from tfm_cli.interop.hugging_face.writing import from_halves
from tfm_cli.interop.source_files import has_file, read_json, source_file
from tfm_cli.interop.tensors import (
    ImportedModel,
    Wanted,
    assembled,
    refuse_if_any,
    wanted_tensors,
    wrong_type,
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
# How near a stored position table must come to a formula, by the type that it is stored in.
_TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


def read_hugging_face(directory: Path, *, allow_pickle: bool) -> ImportedModel:
    """The model in a Hugging Face directory of type `marian`.

    Args:
        directory: with `config.json`, weights, `source.spm`, `target.spm` and `vocab.json`.
        allow_pickle: read `pytorch_model.bin` where there is no `model.safetensors`.

    Raises:
        ModelError: a file is torn or hostile; or lists every file that is missing, and every
            option and every tensor that a model of ours cannot have.
    """
    config = read_json(directory, CONFIG)
    generation = read_json(directory, GENERATION) if has_file(directory, GENERATION) else None
    complaints: list[str] = []
    options = read_options(config, generation, complaints)
    tokenizers = read_tokenizers(directory, options, complaints)
    title = f"{directory}: cannot be imported"
    lack, hint = _why_no_weights(directory, allow_pickle=allow_pickle)
    if lack:
        refuse_if_any([*complaints, lack], title, hint=hint)
    with _opened(directory) as stored:
        positions = _positions(stored, options, complaints)
        has_bias = _has_bias(stored, options.vocab_sizes[1], complaints)
        refuse_if_any(complaints, title)
        assert tokenizers is not None, "what is missing was complained of"
        model = ModelConfig(**options.model, positions=positions, output_bias=has_bias)
        weights, notes = _weights(stored, model, tokenizers.vocab_sizes)
    if options.positions == "sinusoidal":
        weights = from_halves(weights, model)
        model = dataclasses.replace(model, positions="sinusoidal")
    run = dataclasses.replace(RunConfig(), model=model, search=SearchConfig(**options.search))
    return ImportedModel(run, tokenizers, weights, (*stored.notes, *options.notes, *notes))


@dataclass(frozen=True, slots=True)
class _Stored:
    """Tensors in a file; none is read before it is asked for."""

    place: str
    shapes: Mapping[str, tuple[int, ...]]
    load: Callable[[str], Tensor]
    notes: tuple[str, ...] = ()


def _weights(
    stored: _Stored, model: ModelConfig, vocab_sizes: tuple[int, int]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Our tensors; what is tied may stand there several times if it is the same each time."""
    wanted = []
    for item in wanted_tensors(model, vocab_sizes, lambda name: name.hugging_face):
        if item.name == _BIAS:
            item = dataclasses.replace(item, shape=(1, *item.shape), as_row=True)
        wanted.append(item)
    differing: list[str] = []
    for alike in _tied(model):
        found = [name for name in alike if name in stored.shapes]
        if found:
            wanted = [_renamed(item, alike[0], found[0]) for item in wanted]
            first = stored.load(found[0])
            for name in found[1:]:
                copy = stored.load(name)
                complaint = wrong_type(found[0], first) or wrong_type(name, copy)
                if not complaint and not torch.equal(first, copy):
                    complaint = f"{name}: differs from {found[0]}, to which {CONFIG} ties it"
                differing += [complaint] if complaint else []
    differing = list(dict.fromkeys(differing))
    refuse_if_any(differing, f"{stored.place}: has tensors that contradict {CONFIG}")
    ignored = {_BIAS, *_POSITIONS, *(name for alike in _tied(model) for name in alike)}
    ignored -= {item.name for item in wanted}
    return assembled(wanted, stored.shapes, stored.load, place=stored.place, ignored=ignored)


def _tied(model: ModelConfig) -> list[tuple[str, ...]]:
    """Names of what is one tensor; the table of names knows it by the first."""
    if model.tied_embeddings == 3:
        return [(_SHARED, _SOURCE, _TARGET, _OUTPUT)]
    if model.tied_embeddings == 1:
        return [(_SHARED, _SOURCE, _TARGET)]
    return [(_TARGET, _OUTPUT)] if model.tied_embeddings == 2 else []


def _renamed(item: Wanted, name: str, found: str) -> Wanted:
    return dataclasses.replace(item, name=found) if item.name == name else item


def _has_bias(stored: _Stored, vocab_size: int | None, complaints: list[str]) -> bool:
    """Whether there is a bias of the output that is not all zeros; its shape is checked."""
    if _BIAS not in stored.shapes or vocab_size is None:
        return False
    shape = stored.shapes[_BIAS]
    if shape != (1, vocab_size):
        complaints.append(f"{stored.place}: {_BIAS} has shape {shape}, wanted {(1, vocab_size)}")
        return False
    bias = stored.load(_BIAS)
    if complaint := wrong_type(_BIAS, bias):
        complaints.append(f"{stored.place}: {complaint}")
        return False
    return bool((bias != 0).any())


def _positions(stored: _Stored, options: Options, complaints: list[str]) -> str:
    """Which sinusoids the stored tables are; Hugging Face's own where none is stored."""
    kinds = {}
    for name in _POSITIONS:
        if name not in stored.shapes or "width" not in options.model:
            continue
        shape, width = stored.shapes[name], options.model["width"]
        if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
            told = f"has shape {shape}, wanted (1 or more, {width})"
            complaints.append(f"{stored.place}: {name} {told}")
            continue
        table = stored.load(name)
        if complaint := wrong_type(name, table):
            complaints.append(f"{stored.place}: {complaint}")
            continue
        places = torch.arange(table.shape[0])
        formulas = {"sinusoidal_halves": sinusoids_in_halves(places, width)}
        if width % 2 == 0:
            formulas["sinusoidal_marian"] = marian_sinusoids(places, width)
        near = _TOLERANCE.get(table.dtype, 1e-5)
        fits = [
            kind
            for kind, formula in formulas.items()
            if bool(((table.float() - formula).abs() <= near).all())
        ]
        if fits:
            kinds[name] = fits[0]
        else:
            complaints.append(f"{stored.place}: {name} holds no sinusoids that tfm knows")
    if len(set(kinds.values())) > 1:
        told = " and ".join(f"{kind} in {name}" for name, kind in kinds.items())
        complaints.append(f"{stored.place}: has two kinds of positions, {told}")
    found = next(iter(kinds.values()), "sinusoidal_halves")
    if found == "sinusoidal_halves" and options.positions == "sinusoidal_marian":
        told = f"{CONFIG} says `tfm_positions` is `sinusoidal_marian`, but these are not stored"
        complaints.append(f"{stored.place}: {told}")
    return found


def _why_no_weights(directory: Path, *, allow_pickle: bool) -> tuple[str, str | None]:
    """Why there are no weights to be read, and what to do about it; nothing if there are."""
    if has_file(directory, WEIGHTS):
        return "", None
    if not has_file(directory, PICKLE):
        return f"has no weights, wanted `{WEIGHTS}`", None
    if allow_pickle:
        return "", None
    hint = "give `--allow-pickle` to read it with a reader that runs none, or convert it to "
    told = f"has its weights in a pickle, `{PICKLE}`, which can hold a program"
    return told, f"{hint}`{WEIGHTS}`"


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[_Stored]:
    if has_file(directory, WEIGHTS):
        with _opened_safetensors(source_file(directory, WEIGHTS)) as stored:
            yield stored
    else:
        yield _unpickled(source_file(directory, PICKLE))


@contextlib.contextmanager
def _opened_safetensors(path: Path) -> Iterator[_Stored]:
    told = "is torn or no safetensors file"
    try:
        with SafetensorsFile(path):  # its header is checked before safetensors maps the file
            pass
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {told}: {error}") from error
    try:
        with safe_open(str(path), framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            yield _Stored(str(path), shapes, file.get_tensor)
    except SafetensorError as error:
        raise ModelError(f"{path}: {told}: {error}") from error


def _unpickled(path: Path) -> _Stored:
    """The tensors of a pickle, read by the reader of torch that runs no code in it."""
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_zip(path)
    try:
        # The one place that reads a pickle, and only if it was asked for.
        table: Any = torch.load(  # noqa: TID251 - asked for by the user, and it runs no code
            path, map_location="cpu", weights_only=True, mmap=is_zip
        )
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError,
            AttributeError, IndexError, OSError) as error:  # fmt: skip
        told = str(error).strip().split("\n", maxsplit=1)[0]
        raise ModelError(f"{path}: is torn, or holds more than tensors: {told}") from error
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise ModelError(f"{path}: is no table of tensors")
    wrong = [f"{name}: {_oddity(value)}" for name, value in table.items() if _oddity(value)]
    refuse_if_any(wrong, f"{path}: holds what is no plain tensor")
    shapes = {name: tuple(tensor.shape) for name, tensor in table.items()}
    note = f"`{path.name}` was read as a pickle of tensors; no code in it was run"
    return _Stored(str(path), shapes, table.__getitem__, (note,))


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path}: is torn: {error}") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelError(f"{path}: is compressed, which torch never does")


def _oddity(value: object) -> str:
    """Why a value is no tensor to be used; nothing if it is one."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}"
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return "is a tensor of another kind"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"has shape {tuple(value.shape)}, but not so many values"
    return ""
