"""The shared library of the engine: its C interface, selection for this processor, and loading.

The declarations are those of `interface.h`, with the same names. Each instruction set has its own
library, next to this file or, for an editable installation, in the folder of the same name among
the installed packages.
"""

import ctypes
import functools
import os
import sys
from ctypes import (
    CDLL,
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int16,
    c_int32,
    c_int64,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import NamedTuple

import tfm_cli
from tfm_cli import native
from tfm_cli.errors import ResourceError

ABI = 2  # of `interface.h`

# Statuses.
OK, BAD_ARGUMENT, NO_MEMORY, NON_FINITE, STOPPED, DEFECT = range(6)

PRECISIONS = {"fp32": 0, "bf16": 1, "int8": 2}
NORMS = {"post": 0, "pre": 1, "deepnorm": 2}
ACTIVATIONS = {"relu": 0, "gelu": 1, "swish": 2, "swiglu": 3}
POSITIONS = {
    "sinusoidal": 0, "sinusoidal_halves": 1, "sinusoidal_marian": 2, "learned": 3, "rotary": 4,
}  # fmt: skip

_Int32s = POINTER(c_int32)
_Floats = POINTER(c_float)
_Doubles = POINTER(c_double)

ShouldStop = CFUNCTYPE(c_int32)


class ModelOptions(Structure):
    """`TfmModelOptions`: the shape of a Transformer and the precision of its products."""

    _fields_ = (
        ("encoder_layers", c_int32),
        ("decoder_layers", c_int32),
        ("width", c_int32),
        ("encoder_heads", c_int32),
        ("decoder_heads", c_int32),
        ("encoder_feed_forward_width", c_int32),
        ("decoder_feed_forward_width", c_int32),
        ("source_vocab_size", c_int32),
        ("target_vocab_size", c_int32),
        ("norm", c_int32),
        ("activation", c_int32),
        ("positions", c_int32),
        ("max_positions", c_int32),
        ("tied_embeddings", c_int32),
        ("scale_embeddings", c_int32),
        ("output_bias", c_int32),
        ("start_id", c_int32),
        ("eos_id", c_int32),
        ("precision", c_int32),
    )


class SearchOptions(Structure):
    """`TfmSearchOptions`: the options of a search."""

    _fields_ = (
        ("beam_size", c_int32),
        ("sampling", c_int32),
        ("early_stopping", c_int32),
        ("renormalize", c_int32),
        ("no_repeat_ngram_size", c_int32),
        ("stops_loops", c_int32),
        ("scores", c_int32),
        ("token_log_probs", c_int32),
        ("wu_norm", c_int32),
        ("top_k", c_int32),
        ("length_penalty", c_double),
        ("repetition_penalty", c_double),
        ("temperature", c_double),
        ("top_p", c_double),
        ("should_stop", ShouldStop),
    )


class Batch(Structure):
    """`TfmBatch`: segments, whose rows of different lengths are concatenated."""

    _fields_ = (
        ("num_segments", c_int32),
        ("source_ids", _Int32s),
        ("source_lengths", _Int32s),
        ("limits", _Int32s),
        ("prefix_ids", _Int32s),
        ("prefix_lengths", _Int32s),
        ("seeds", POINTER(c_uint64)),
        ("allowed_ids", _Int32s),
        ("allowed_lengths", _Int32s),
    )


class Result(Structure):
    """`TfmResult`: hypotheses of each segment, valid until the next use of the workspace."""

    _fields_ = (
        ("num_segments", c_int32),
        ("num_hypotheses", _Int32s),
        ("lengths", _Int32s),
        ("ids", _Int32s),
        ("log_probabilities", _Doubles),
        ("scores", _Doubles),
        ("token_log_probs", _Floats),
    )


# The result type and the argument types of each function.
FUNCTIONS = {
    "tfm_abi": (c_int32, ()),
    "tfm_runs_here": (c_int32, ()),
    "tfm_instruction_set": (c_char_p, ()),
    "tfm_has_bf16": (c_int32, ()),
    "tfm_error": (c_char_p, ()),
    "tfm_model_new": (c_int32, (POINTER(ModelOptions), POINTER(c_void_p))),
    "tfm_model_tensor": (c_int32, (c_void_p, c_char_p, c_void_p, c_int64, c_int64)),
    "tfm_model_int8_tensor": (
        c_int32,
        (c_void_p, c_char_p, c_void_p, c_void_p, c_int64, c_int64),
    ),
    "tfm_quantize": (c_int32, (c_void_p, c_int64, c_int64, c_void_p, c_void_p)),
    "tfm_model_vocabulary": (c_int32, (c_void_p, _Int32s, c_int32, POINTER(c_int16))),
    "tfm_model_finish": (c_int32, (c_void_p,)),
    "tfm_model_bytes": (c_int64, (c_void_p,)),
    "tfm_model_free": (None, (c_void_p,)),
    "tfm_workspace_new": (c_int32, (POINTER(c_void_p),)),
    "tfm_workspace_bytes": (c_int64, (c_void_p,)),
    "tfm_workspace_trim": (None, (c_void_p,)),
    "tfm_workspace_free": (None, (c_void_p,)),
    "tfm_fail_allocation": (None, (c_int64,)),
    "tfm_segment_bytes": (c_int64, (c_void_p, c_int32, c_int32, c_int32)),
    "tfm_search": (
        c_int32,
        (
            POINTER(c_void_p), c_int32, c_void_p, POINTER(SearchOptions), POINTER(Batch),
            POINTER(Result),
        ),
    ),
    "tfm_score": (
        c_int32,
        (c_void_p, c_void_p, POINTER(Batch), _Int32s, _Int32s, _Floats, c_int32, _Floats),
    ),
    "tfm_crash_note": (None, (c_char_p,)),
}  # fmt: skip


def declare(library: CDLL) -> CDLL:
    """Declare the types of all functions of a library, and return it.

    Raises:
        AttributeError: a function is missing, so the library is not this version of the engine.
    """
    for name, (result, arguments) in FUNCTIONS.items():
        function: ctypes._NamedFuncPointer = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


LIBRARY = "TFM_NATIVE_LIBRARY"  # a library, a folder of libraries, or NONE; for development
INSTRUCTION_SET = "TFM_INSTRUCTION_SET"  # selects one of the libraries
NONE = "none"
_BEST_FIRST = ("avx512_bf16", "avx512_vnni", "avx2", "neon")


class Library(NamedTuple):
    """The engine for one instruction set."""

    path: Path
    instruction_set: str
    has_bf16: bool  # the processor has instructions for products in bf16
    functions: ctypes.CDLL


def load() -> Library:
    """Return the best library for this processor, the same in every call.

    Raises:
        ResourceError: there is none, or it does not match the Python code.
    """
    found = _select(os.environ.get(LIBRARY, ""), os.environ.get(INSTRUCTION_SET, ""))
    if isinstance(found, str):
        raise ResourceError(f"the native CPU engine is unavailable: {found}", hint=_build_hint())
    return found


def why_absent() -> str:
    """Return the reason why there is no engine; an empty string if there is one.

    Raises:
        ResourceError: it does not match the Python code, or the named library does not exist.
    """
    found = _select(os.environ.get(LIBRARY, ""), os.environ.get(INSTRUCTION_SET, ""))
    return found if isinstance(found, str) else ""


def available() -> bool:
    """Return True if there is an engine for this processor; otherwise PyTorch is used.

    Raises:
        ResourceError: as for `why_absent`.
    """
    return not why_absent()


def description() -> str:
    """Return a description of the CPU engine, for `tfm --version`."""
    try:
        absent = why_absent()
    except ResourceError as error:
        return f"CPU engine: none: {error}" + (f"\n  {error.hint}" if error.hint else "")
    if absent:
        return f"CPU engine: PyTorch, since there is no native one: {absent}\n  {_build_hint()}"
    return f"CPU engine: native, {load().instruction_set}"


@functools.cache
def _select(path_or_folder: str, instruction_set: str) -> Library | str:
    """Return a library, or the reason why there is none."""
    if path_or_folder == NONE:
        return f"{LIBRARY} is `{NONE}`"
    paths = _libraries(Path(path_or_folder)) if path_or_folder else _installed()
    if not paths and path_or_folder:
        raise ResourceError(f"{LIBRARY} is `{path_or_folder}`: there is no library of the engine")
    if not paths:
        return "it was not built when tfm was installed"
    unsupported = []
    for path in paths:
        library = _load(path)
        if instruction_set not in ("", library.instruction_set):
            continue
        if library.functions.tfm_runs_here():
            return library
        unsupported.append(library.instruction_set)
    if instruction_set:
        reason = "this processor lacks it" if unsupported else "there is no library for it"
        raise ResourceError(f"{INSTRUCTION_SET} is `{instruction_set}`: {reason}")
    return f"this processor has none of {', '.join(unsupported)}"


def _installed() -> list[Path]:
    """Return the libraries of the first folder of the package that contains any."""
    for folder in native.__path__:
        if paths := _libraries(Path(folder)):
            return paths
    return []


def _libraries(path_or_folder: Path) -> list[Path]:
    if not path_or_folder.is_dir():
        return [path_or_folder] if path_or_folder.is_file() else []
    order = {f"libtfm_{name}.so": rank for rank, name in enumerate(_BEST_FIRST)}
    paths = path_or_folder.glob("libtfm_*.so")
    return sorted(paths, key=lambda path: (order.get(path.name, len(order)), path.name))


def _load(path: Path) -> Library:
    try:
        functions = ctypes.CDLL(str(path.resolve()), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        reason = str(error).removeprefix(f"{path.resolve()}: ")
        raise ResourceError(f"{path}: cannot be loaded: {reason}", hint=_build_hint()) from error
    try:
        abi = functions.tfm_abi()
        if abi == ABI:
            declare(functions)
    except AttributeError as error:
        raise ResourceError(
            f"{path}: no library of the engine: {error}", hint=_build_hint()
        ) from error
    if abi != ABI:
        raise ResourceError(
            f"{path}: built for interface {abi}, this tfm has {ABI}", hint=_build_hint()
        )
    return Library(
        path, functions.tfm_instruction_set().decode(), bool(functions.tfm_has_bf16()), functions
    )


def _build_hint() -> str:
    """Return a hint with the command that builds the engine."""
    checkout = Path(tfm_cli.__file__).resolve().parent.parent
    what = "--force-reinstall tfm-cli"
    if (checkout / "pyproject.toml").is_file():
        what = f"--editable {checkout}"
    return f"build it with `TFM_REQUIRE_NATIVE=1 {sys.executable} -m pip install --no-deps {what}`"
