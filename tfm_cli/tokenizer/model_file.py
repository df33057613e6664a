"""Reading and checking of SentencePiece model files from untrusted sources."""

import errno
import functools
import hashlib
import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import sentencepiece

from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.files.untrusted import read_regular
from tfm_cli.tokenizer.model_check import walk_model

logger = logging.getLogger(__name__)


MAX_MODEL_BYTES = 64 << 20
# SentencePiece's spelling of a blank. It puts one before each line, so that the piece of a language
# tag must begin with it; a tag without it would become two pieces.
BLANK = "▁"
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
_tried: set[str] = set()  # SHA-256 of the models that a child process loaded successfully


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


def try_in_child(model: bytes) -> bool:
    """Load a model and use it in a child process, so that only the child can crash.

    Returns:
        False if this process has tried the same model before.

    Raises:
        ValueError: the child crashed or timed out.
        ResourceError: no process can be started.
    """
    sha256 = hashlib.sha256(model).hexdigest()
    if sha256 in _tried:
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
    _tried.add(sha256)
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
        if walk_model(model):
            began = time.monotonic()
            if try_in_child(model):
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
