"""SentencePiece model files: reading, and checks before SentencePiece's own code parses them.

SentencePiece is C++ code that does not validate its models. Several crafted models are known to
cause out-of-bounds reads (CVE-2026-1260, and its issues #1263, #1265, #1267, #1269 and #1272).
Anything that SentencePiece itself would not write is refused here.

Sources: `sentencepiece_model.proto`, the encoding at https://protobuf.dev/programming-guides, and
the search of Darts-clone 0.32, https://github.com/s-yata/darts-clone.
"""

import errno
import functools
import hashlib
import logging
import math
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.files.untrusted import read_regular

logger = logging.getLogger(__name__)

MAX_MODEL_BYTES = 64 << 20
# SentencePiece's symbol for a space. It puts one before each line, so that the piece of a language
# tag must begin with it; a tag without it would become two pieces.
SPACE_SYMBOL = "▁"
MIN_VERSION = (0, 2, 2)  # crafted models can cause out-of-bounds reads in older versions
_CHILD_TIMEOUT_SECONDS = 20.0
# Load the model, encode every character and decode every piece.
_CHILD_PROGRAM = """
import sys
import sentencepiece
sentencepiece.SetMinLogLevel(10)
processor = sentencepiece.SentencePieceProcessor()
try:
    processor.LoadFromSerializedProto(sys.stdin.buffer.read())
except (RuntimeError, ValueError):
    sys.exit(0)
characters = [chr(i) for i in range(1, 0x30000) if not 0xD800 <= i < 0xE000]
lines = ["".join(characters[i : i + 64]) for i in range(0, len(characters), 64)]
processor.Encode(lines, return_type=bytes)
processor.Decode(list(range(len(processor))), return_type=bytes)
"""
_loaded_in_child: set[str] = set()  # SHA-256 of the models that a child process loaded successfully

MAX_PIECES = 1_000_000
_MAX_PIECE_BYTES = 1024
_MAX_TEXT_BYTES = 1 << 16  # of a string in the specifications
_MAX_LIST_BYTES = 1 << 22  # of all strings of one list there, such as the control symbols
_MAX_SAMPLES_BYTES = 1 << 16  # of the self-test samples, which are encoded when a model is loaded
_MAX_NESTED = 64  # user-defined symbols that are prefixes of each other: the size of a C++ buffer
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_USER_DEFINED = 4

# Field numbers of the format.
_PIECES, _TRAINER, NORMALIZER, _SAMPLES, DENORMALIZER = 1, 2, 3, 4, 5
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, CHARSMAP = 3, 2
_ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

_MAX_CHARSMAP_BYTES = 1 << 20  # those included in SentencePiece have a quarter of this size
MAX_TEXT_BYTES = 256  # of a replacement; NFKC has none of 64 bytes, and lines grow by this factor
_BLOCK = 256  # units of the double array for the values of one byte
# SHA-256 of nmt_nfkc, nfkc, nmt_nfkc_cf and nfkc_cf, as included in SentencePiece 0.2.
_KNOWN_CHARSMAPS = {
    "1e2c7b43d3ee9755ceaa2ac335e253d8703604e0249ee1e81156c92b46423844",
    "7e46d9e08af4b6a37991b04fb8388644c1595a0abcd0f26d6a5d575e2a3663ea",
    "2c03512e62f9ed965ec90d85314211b63b5b8aa0395311ea2147eec9ff738907",
    "d8dfef3d6db0eef0742f8b55a73aee7fce6c1e21d26a09b8d3d4b52c42a791cb",
}

Field = tuple[int, int, bytes | int]  # number, wire type, value


@functools.cache
def check_version() -> None:
    """Raise a ResourceError if crafted models can crash the installed SentencePiece."""
    version = sentencepiece.__version__
    if _numbers(version) < MIN_VERSION:
        expected = ".".join(map(str, MIN_VERSION))
        raise ResourceError(
            f"sentencepiece {version} is installed, expected {expected} or newer: crafted models "
            "can crash older versions",
            hint=f"pip install 'sentencepiece>={expected}'",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", version)[:3]))


def load_in_child(model: bytes) -> bool:
    """Load a model and use it in a child process, so that only the child can crash.

    Returns:
        False if this process has loaded the same model in a child before.

    Raises:
        ValueError: the child crashed or timed out.
        ResourceError: no process can be started.
    """
    sha256 = hashlib.sha256(model).hexdigest()
    if sha256 in _loaded_in_child:
        return False
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD_PROGRAM],
            input=model, capture_output=True, timeout=_CHILD_TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        seconds = f"{_CHILD_TIMEOUT_SECONDS:g} seconds"
        raise ValueError(f"SentencePiece had not read it after {seconds}") from error
    except OSError as error:
        raise ResourceError(f"no process can be started: {error.strerror}") from error
    if done.returncode:
        reason = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        raise ValueError(f"SentencePiece crashed when it read it, with {reason}")
    _loaded_in_child.add(sha256)
    return True


def check_model(model: bytes, *, name: str) -> None:
    """Check a serialized model before SentencePiece loads it into this process.

    A model with normalization rules that SentencePiece does not include is first loaded in a child
    process, and the time that this takes is logged.

    Raises:
        ModelError: the model has something that SentencePiece would not write, or a child crashed.
        ResourceError: crafted models can crash the installed version of SentencePiece.
    """
    check_version()
    try:
        if validate_model(model):
            began = time.monotonic()
            if load_in_child(model):
                logger.info(
                    "%s: has normalization rules of its own, so each process first loads it in a "
                    "child process, which took %.1f s",
                    name, time.monotonic() - began,
                )  # fmt: skip
    except ValueError as error:
        raise ModelError(f"{name}: is not a SentencePiece model: {error}") from error


def read_model_file(path: Path) -> bytes:
    """Return the content of a SentencePiece model file.

    Raises:
        ModelError: the file is missing, unreadable, not a regular file, or over 64 MiB.
    """
    try:
        return read_regular(path, max_bytes=MAX_MODEL_BYTES)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EINVAL):
            message = f"{error.strerror}, expected a SentencePiece model"
        else:
            message = f"cannot be read: {error.strerror}"
        raise ModelError(f"{path}: {message}") from error
    except ValueError as error:
        raise ModelError(f"{path}: {error} for a SentencePiece model") from error


def reason_of(error: Exception) -> str:
    """Return SentencePiece's error message without the position in its source code."""
    message = re.sub(r"^[A-Z_]+: (\S+\.cc\(\d+\) \[.*\] ?)?", "", str(error)).strip()
    return message[:1].lower() + message[1:].rstrip(".")


# The structure of a model


def validate_model(model: bytes) -> bytes:
    """Check a serialized model; return its normalizer tables that SentencePiece does not include.

    Raises:
        ValueError: it is not a model, or contains something that SentencePiece does not write.
    """
    at, num_pieces, user_defined = _plain_pieces(model)
    unusual, num_samples = b"", 0
    for number, _, value in fields(model, at):
        if not isinstance(value, bytes):
            raise ValueError(f"its field {number} is a number")
        if number == _PIECES:
            piece, kind = _validate_piece(value, num_pieces)
            num_pieces += 1
            if kind == _USER_DEFINED:
                user_defined.append(piece)
        elif number == _TRAINER:
            _validate_specification(value, {_MODEL_TYPE: (1, 4)})
        elif number in (NORMALIZER, DENORMALIZER):
            unusual += _validate_normalizer(value)
        elif number == _SAMPLES:
            num_samples += len(value)
            if num_samples > _MAX_SAMPLES_BYTES:
                raise ValueError(f"it has {num_samples} bytes of self-test samples")
        else:
            raise ValueError(f"it has a field {number}, which no model has")
        if num_pieces > MAX_PIECES:
            break
    if not 0 < num_pieces <= MAX_PIECES:
        count = num_pieces if num_pieces <= MAX_PIECES else "more"
        raise ValueError(f"it has {count} pieces, expected 1 to {MAX_PIECES}")
    _check_nesting(user_defined)
    return unusual


def user_defined_pieces(model: bytes) -> list[str]:
    """Return the user-defined pieces of a serialized model that `validate_model` accepted."""
    at, _, user_defined = _plain_pieces(model)
    for number, _, value in fields(model, at):
        if number == _PIECES and isinstance(value, bytes):
            piece, kind = _validate_piece(value, 0)
            if kind == _USER_DEFINED:
                user_defined.append(piece)
    return [piece.decode("utf-8", "replace") for piece in user_defined]


def algorithm(model: bytes) -> str:
    """Return the algorithm of a validated model: `unigram`, `bpe`, `word` or `char`."""
    at, _, _ = _plain_pieces(model)
    chosen = 1
    for number, _, value in fields(model, at):
        if number == _TRAINER and isinstance(value, bytes):
            settings = {key: setting for key, _, setting in fields(value)}
            kind = settings.get(_MODEL_TYPE, chosen)
            chosen = kind if isinstance(kind, int) else chosen
    return _ALGORITHMS[chosen]


def _plain_pieces(model: bytes) -> tuple[int, int, list[bytes]]:
    """Check the leading pieces that have the most common encoding, as a fast path.

    A vocabulary has tens of thousands of pieces: a text of less than 100 bytes, a score, and a type
    unless it is the default.

    Returns:
        The offset after these pieces, their number, and the user-defined ones among them.
    """
    at, count, user_defined = 0, 0, list[bytes]()
    size = len(model) - 128  # every index below is inside the model
    while at < size and count < MAX_PIECES:
        length, text_length = model[at + 1], model[at + 3]
        text_end = at + 4 + text_length
        if (
            model[at] != 0x0A
            or model[at + 2] != 0x0A
            or not 0 < text_length < 100
            or model[text_end] != 0x15
            or (model[text_end + 4] & 0x7F == 0x7F and model[text_end + 3] & 0x80)
            or model.find(0, at + 4, text_end) >= 0
        ):
            break
        if length == text_length + 9 and model[text_end + 5] == 0x18:
            kind = model[text_end + 6]
            if not 1 <= kind <= 6:
                break
            if kind == _USER_DEFINED:
                user_defined.append(model[at + 4 : text_end])
        elif length != text_length + 7:
            break
        at += 2 + length
        count += 1
    return at, count, user_defined


def _validate_piece(message: bytes, index: int) -> tuple[bytes, int]:
    """Check a piece; return its text and its type."""
    piece, kind, score = b"", 1, 0.0
    for number, wire_type, value in fields(message):
        if number == _PIECE and isinstance(value, bytes):
            piece = value
        elif number == _SCORE and wire_type == _FIXED32 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == _TYPE and isinstance(value, int):
            kind = value
        else:
            raise ValueError(f"its piece {index} has a field {number}, which no piece has")
    if not 0 < len(piece) <= _MAX_PIECE_BYTES or b"\0" in piece:
        problem = f"has {len(piece)} bytes, expected 1 to {_MAX_PIECE_BYTES}, none of them NUL"
        raise ValueError(f"its piece {index} {problem}")
    if not math.isfinite(score):
        raise ValueError(f"its piece {index} has the score {score}")
    if not 1 <= kind <= 6:
        raise ValueError(f"its piece {index} has the unknown type {kind}")
    return piece, kind


def _validate_specification(message: bytes, ranges: dict[int, tuple[int, int]]) -> None:
    """Check the numbers and strings of a specification.

    Args:
        message: the serialized specification.
        ranges: smallest and largest value of fields by number; other fields may have any value.
    """
    lengths: dict[int, int] = {}
    for number, wire_type, value in fields(message):
        if isinstance(value, int):
            low, high = ranges.get(number, (0, (1 << 64) - 1))
            if not low <= value <= high:
                raise ValueError(f"its setting {number} is {value}, expected {low} to {high}")
        elif wire_type == _BYTES:
            lengths[number] = lengths.get(number, 0) + len(value)
            if len(value) > _MAX_TEXT_BYTES or lengths[number] > _MAX_LIST_BYTES:
                raise ValueError(f"its setting {number} has {lengths[number]} bytes")


def _validate_normalizer(message: bytes) -> bytes:
    """Check a normalizer; return its table unless SentencePiece includes that."""
    unusual = b""
    for number, wire_type, value in fields(message):
        if number == CHARSMAP and isinstance(value, bytes) and wire_type == _BYTES:
            if value and check_charsmap(value):
                unusual += value
        elif isinstance(value, bytes) and len(value) > _MAX_TEXT_BYTES:
            raise ValueError(f"its normalizer's setting {number} has {len(value)} bytes")
    return unusual


def _check_nesting(symbols: list[bytes]) -> None:
    """Raise a ValueError if more than `_MAX_NESTED` symbols are prefixes of each other."""
    if len(symbols) <= _MAX_NESTED:
        return
    nested: list[bytes] = []
    for symbol in sorted(symbols):
        while nested and not symbol.startswith(nested[-1]):
            nested.pop()
        nested.append(symbol)
        if len(nested) > _MAX_NESTED:
            raise ValueError(f"it has more than {_MAX_NESTED} symbols that begin with each other")


# The normalizer's table: its length, a double array of 32-bit units in which each step leads to
# another unit, and the replacements, each terminated by NUL.


def check_charsmap(charsmap: bytes) -> bool:
    """Check a compiled table; return False if it is one of those included in SentencePiece.

    Raises:
        ValueError: a step or a replacement lies outside the table, or a replacement is too long.
    """
    if (size := len(charsmap)) > _MAX_CHARSMAP_BYTES:
        raise ValueError(f"its normalizer has {size} bytes, expected at most {_MAX_CHARSMAP_BYTES}")
    if hashlib.sha256(charsmap).hexdigest() in _KNOWN_CHARSMAPS:
        return False
    if len(charsmap) < 4:
        raise ValueError("its normalizer is truncated")
    (num_bytes,) = struct.unpack("<I", charsmap[:4])
    texts = charsmap[4 + num_bytes :]
    if num_bytes % (4 * _BLOCK) or not 0 < num_bytes < len(charsmap) - 4:
        raise ValueError(f"its normalizer has an invalid array of {num_bytes} bytes")
    if not texts.endswith(b"\0"):
        raise ValueError("its normalizer has an unterminated replacement")
    units = struct.unpack(f"<{num_bytes // 4}I", charsmap[4 : 4 + num_bytes])
    if units[0] >> 31 or units[0] & 0x1FF:
        raise ValueError("its normalizer's array does not begin with a root")
    size = len(units)
    for position, unit in enumerate(units):
        if unit >> 31:  # a value, checked at the unit that leads to it
            continue
        target = position ^ ((unit >> 10) << ((unit & 0x200) >> 6))
        if target | (_BLOCK - 1) >= size:
            raise ValueError(f"its normalizer's unit {position} points outside the array")
        if unit >> 8 & 1:
            begin = units[target] & 0x7FFFFFFF
            if begin >= len(texts):
                raise ValueError(f"its normalizer's unit {position} points beyond the replacements")
            if texts.find(b"\0", begin, begin + MAX_TEXT_BYTES + 1) < 0:
                message = f"has a replacement of more than {MAX_TEXT_BYTES} bytes"
                raise ValueError(f"its normalizer's unit {position} {message}")
    return True


# The wire format of Protocol Buffers.


def fields(message: bytes, at: int = 0) -> Iterator[Field]:
    """Yield the fields of a message from an offset on.

    Raises:
        ValueError: the message is truncated, or has groups, which are obsolete.
    """
    size = len(message)
    while at < size:
        key, at = _varint(message, at)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise ValueError("it has a field 0")
        if wire_type == _VARINT:
            value, at = _varint(message, at)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            length, at = _varint(message, at)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"it has a field of the form {wire_type}")
        if length > size - at:
            raise ValueError(f"it ends within its field {number}")
        yield number, wire_type, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the variable-length number at an offset, and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it has a number of too many digits")
