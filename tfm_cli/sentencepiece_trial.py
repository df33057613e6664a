"""SentencePiece on trial: recent enough, and for a model with code of its own first in a child.

What a crash would take along is then a process that was made for it.
"""

import functools
import hashlib
import re
import subprocess
import sys

import sentencepiece

from tfm_cli.errors import ResourceError

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
