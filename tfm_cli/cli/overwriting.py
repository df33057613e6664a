"""What a command must not write to: what it reads."""

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from tfm_cli.errors import ConfigError


def refuse_overwriting(
    output: str | Path, read: Iterable[str | Path], *, option: str = "--output"
) -> None:
    """Refuse an output that is a file which is read, by whatever name, link or redirection.

    Args:
        output: where the command writes; `-` is standard output.
        read: what it reads; `-` is standard input.
        option: by which the output is named.
    """
    place = _identity(output, sys.stdout)
    if place is None:
        return
    for path in read:
        if _identity(path, sys.stdin) == place:
            name = "standard output" if str(output) == "-" else str(output)
            same = "standard input" if str(path) == "-" else f"`{path}`"
            raise ConfigError(
                f"{name}: is the same file as {same}, which is read",
                hint=f"name another one with `{option}`",
            )


def model_files(path: Path) -> list[Path]:
    """The files of a model directory that are read; or the path itself, if it is a file."""
    from tfm_cli.model_config import CONFIG_FILE, WEIGHTS_FILE  # imports SentencePiece
    from tfm_cli.tokenizer_pair import TOKENIZER_FILES

    if not path.is_dir():
        return [path]
    return [path / name for name in (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES)]


def _identity(path: str | Path, standard: TextIO | None) -> tuple[int, int] | None:
    """What two names of the same plain file have in common; None for anything else."""
    try:
        if str(path) != "-":
            status = os.stat(path)  # noqa: PTH116 - a path with a NUL is a ValueError here
        elif standard is None:
            return None
        else:
            status = os.fstat(standard.fileno())
    except (OSError, ValueError):  # it is not there, or has no descriptor
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None
