"""A SentencePiece model that others may have made: read from its file, and checked before use."""

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


# SentencePiece on trial: recent enough, and for a model with code of its own first in a child.
#
# What a crash would take along is then a process that was made for it.

LEAST_VERSION = (0, 2, 2)  # before, models could make it read outside its memory
_SECONDS = 20.0
# Loads the model and lets it look up every character that there is, alone and beside others.
_PROGRAM = """
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
_passed: set[str] = set()  # SHA-256 of what has been tried


@functools.cache
def check_version() -> None:
    """Raise a ResourceError if the SentencePiece that is installed is one with known faults."""
    found = sentencepiece.__version__
    if _numbers(found) < LEAST_VERSION:
        wanted = ".".join(map(str, LEAST_VERSION))
        raise ResourceError(
            f"sentencepiece {found} is installed, wanted {wanted} or newer: models that others "
            "made can crash older ones",
            hint=f"pip install 'sentencepiece>={wanted}'",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", version)[:3]))


def try_in_child(model: bytes) -> bool:
    """Load a model in a process of its own, which may crash, and let it encode what it can.

    Returns:
        False if this process has tried the same model before.

    Raises:
        ValueError: it crashed, or did not end.
        ResourceError: no process can be started.
    """
    sha256 = hashlib.sha256(model).hexdigest()
    if sha256 in _passed:
        return False
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM],
            input=model, capture_output=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"SentencePiece had not read it after {_SECONDS:g} seconds") from error
    except OSError as error:
        raise ResourceError(f"no process can be started: {error.strerror}") from error
    if done.returncode:
        told = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        raise ValueError(f"SentencePiece crashed when it read it, with {told}")
    _passed.add(sha256)
    return True


MAX_MODEL_BYTES = 64 << 20


def check_model(model: bytes, *, name: str) -> None:
    """Raise an error unless SentencePiece may be given this serialized model.

    A model that changes characters by a table of its own is tried in a child process first, and
    the log says how long that took.

    Raises:
        ModelError: it has something that SentencePiece would not write, or crashed the child.
        ResourceError: the SentencePiece that is installed is one that crafted models can crash.
    """
    check_version()
    try:
        if walk_model(model):
            began = time.monotonic()
            if try_in_child(model):
                logger.info(
                    "%s: has normalization rules of its own, with which each process tries it in "
                    "a child first, which took %.1f s",
                    name, time.monotonic() - began,
                )  # fmt: skip
    except ValueError as error:
        raise ModelError(f"{name}: is no SentencePiece model: {error}") from error


def read_model_file(path: Path) -> bytes:
    """The content of a tokenizer's file.

    Raises:
        ModelError: the file is missing, unreadable, no regular file, or over 64 MiB.
    """
    try:
        return read_regular(path, max_bytes=MAX_MODEL_BYTES)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EINVAL):
            told = f"{error.strerror}, wanted a SentencePiece model"
        else:
            told = f"cannot be read: {error.strerror}"
        raise ModelError(f"{path}: {told}") from error
    except ValueError as error:
        raise ModelError(f"{path}: {error} for a SentencePiece model") from error
