"""Reading of corpus files, pair by pair."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tfm_cli.console import Show, counted
from tfm_cli.corpus.blocks import block_pairs, read_blocks
from tfm_cli.corpus.sources import CorpusFile, Pair, aligned_files
from tfm_cli.errors import DataError
from tfm_cli.text.reader import MAX_LINE_BYTES, Repairs

logger = logging.getLogger(__name__)


def read_pairs(
    source_paths: Sequence[str], target_paths: Sequence[str], *, warn: bool = True
) -> Iterator[Pair]:
    """Yield pairs of lines of the first source and target file, then of the second, and so on.

    Args:
        source_paths: files in the source language.
        target_paths: their translations, file by file and line by line.
        warn: warn of repaired lines; False if an earlier pass has done so.

    Raises:
        ConfigError: there are more files on one side.
        DataError: as in `read_corpus`.
    """
    return read_corpus(aligned_files(source_paths, target_paths), warn=warn)


def read_corpus(
    files: Sequence[CorpusFile],
    *,
    bad_utf8: str = "refuse",
    warn: bool = True,
    show: Show = lambda words, share: None,
) -> Iterator[Pair]:
    """Yield the pairs of all files, in order.

    Args:
        files: the corpus.
        bad_utf8: as in `block_pairs`.
        warn: as in `read_pairs`.
        show: called after each block with the progress.

    Raises:
        DataError: a file is missing or not UTF-8, a line holds no pair, or files do not align.
            Misaligned files are reported together after the last pair.
    """
    repairs: list[dict[str, Repairs]] = [{} for _ in files]
    current, num_pairs = 0, 0

    # Reading blocks rather than single lines is ten times as fast.
    for block in read_blocks(files):
        for index in range(current, block.file):
            warn_of_repairs(repairs[index] if warn else {})
        current = block.file
        sources, targets, block_repairs, *_ = block_pairs(block, bad_utf8=bad_utf8)
        for name, later in zip(block.names, block_repairs, strict=True):
            repairs[block.file].setdefault(name, Repairs()).merge(later)
        num_pairs += len(sources)
        show(counted(num_pairs, "pair"), block.share)
        yield from zip(sources, targets, strict=True)
    for index in range(current, len(files)):
        warn_of_repairs(repairs[index] if warn else {})


def warn_of_repairs(repairs: dict[str, Repairs]) -> None:
    """Log a warning for each kind of repair, given those of each file by name."""
    for name, counts in repairs.items():
        for note in counts.notes(MAX_LINE_BYTES):
            logger.warning("%s: %s", name, note)


def check_files(paths: Iterable[str]) -> None:
    """Raise a DataError that names every path that is not a readable file.

    Training reads text twice, for the tokenizer and for the ids, so a pipe is not accepted.
    """
    problems = [
        f"{path}: {reason}" for path in dict.fromkeys(paths) if (reason := _why_unusable(path))
    ]
    if problems:
        title = [f"{len(problems)} files cannot be used"] if len(problems) > 1 else []
        raise DataError("\n  ".join(title + problems))


def _why_unusable(name: str) -> str:
    if name == "-":
        return "standard input can be read only once, expected a file"
    path = Path(name)
    try:
        if not path.exists():
            return "there is no such file"
        if path.is_dir():
            return "is a directory, expected a file"
        if not path.is_file():
            return "can be read only once, expected a file"
    except OSError as error:  # such as a name that is too long
        return f"cannot be read: {error.strerror}"
    return "" if os.access(path, os.R_OK) else "cannot be read: no permission"
