"""Aligned files as pairs of lines."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from tfm_cli.errors import ConfigError, DataError
from tfm_cli.text import open_lines

logger = logging.getLogger(__name__)


def read_pairs(
    source_paths: Sequence[str], target_paths: Sequence[str], *, tell: bool = True
) -> Iterator[tuple[str, str]]:
    """Pairs of lines of the first source and target file, then of the second, and so on.

    Args:
        source_paths: files in the source language.
        target_paths: their translations, file by file and line by line.
        tell: warn of lines that were mended while reading; False where that was done before.

    Raises:
        ConfigError: there are more files on one side.
        DataError: a file is missing or no UTF-8; or files do not align, which is only known at
            the end and then said of all of them.
    """
    if len(source_paths) != len(target_paths):
        counts = f"{len(source_paths)} and {len(target_paths)}"
        raise ConfigError(f"source and target must be as many files, got {counts}")
    misaligned = []
    for source_path, target_path in zip(source_paths, target_paths, strict=True):
        with open_lines(source_path) as sources, open_lines(target_path) as targets:
            for source, target in zip_longest(sources, targets):
                if source is None or target is None:
                    continue  # one side goes on: count how far
                yield source, target
            for reader in (sources, targets):
                for note in reader.notes() if tell else ():
                    logger.warning("%s: %s", reader.name, note)
            if sources.num_lines != targets.num_lines:
                counts = f"{sources.num_lines} and {targets.num_lines} lines"
                misaligned.append(f"{source_path} and {target_path} do not align: {counts}")
    if misaligned:
        hint = "line N of one file must be the translation of line N of the other"
        raise DataError("\n  ".join(misaligned), hint=hint)


def check_files(paths: Iterable[str]) -> None:
    """Raise a DataError that names every file that cannot be read, and read again, from a disk.

    Text is read twice, for the tokenizer and for the pieces, so a pipe will not do.
    """
    wrong = [
        f"{path}: {reason}" for path in dict.fromkeys(paths) if (reason := _why_unusable(path))
    ]
    if wrong:
        title = [f"{len(wrong)} files cannot be used"] if len(wrong) > 1 else []
        raise DataError("\n  ".join(title + wrong))


def _why_unusable(path: str) -> str:
    if path == "-":
        return "standard input can be read only once, wanted a file"
    place = Path(path)
    try:
        if not place.exists():
            return "there is no such file"
        if place.is_dir():
            return "is a directory, wanted a file"
        if not place.is_file():
            return "can be read only once, wanted a file"
    except OSError as error:  # such as a name that is too long
        return f"cannot be read: {error.strerror}"
    return "" if os.access(place, os.R_OK) else "cannot be read: no permission"
