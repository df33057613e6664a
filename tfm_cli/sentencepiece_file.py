"""A SentencePiece model that others may have made: read from its file, and checked before use."""

import errno
import logging
import time
from pathlib import Path

from tfm_cli.errors import ModelError
from tfm_cli.plain_file import read_plain
from tfm_cli.sentencepiece_trial import check_version, try_in_child
from tfm_cli.sentencepiece_walk import walk_model

MAX_MODEL_BYTES = 64 << 20

logger = logging.getLogger(__name__)


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
        return read_plain(path, max_bytes=MAX_MODEL_BYTES)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EINVAL):
            told = f"{error.strerror}, wanted a SentencePiece model"
        else:
            told = f"cannot be read: {error.strerror}"
        raise ModelError(f"{path}: {told}") from error
    except ValueError as error:
        raise ModelError(f"{path}: {error} for a SentencePiece model") from error
