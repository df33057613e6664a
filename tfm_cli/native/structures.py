"""The ctypes declarations of `interface.h`, the C interface of the engine, with the same names."""

import ctypes
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

ABI = 1  # of `interface.h`

# Statuses
OK, BAD_ARGUMENT, NO_MEMORY, NON_FINITE, STOPPED, DEFECT = range(6)

PRECISIONS = {"fp32": 0, "bf16": 1, "int8": 2}
NORMS = {"post": 0, "pre": 1}
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
        ("piece_scores", c_int32),
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
        ("piece_scores", _Floats),
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
    "tfm_model_bytes_tensor": (
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
    "tfm_force": (
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
