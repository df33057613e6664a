"""Corpus files as pairs of lines, one after the other."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tfm_cli.console import Show, counted
from tfm_cli.corpus.blocks import block_pairs, read_blocks
from tfm_cli.corpus.sources import CorpusFile, Pair, aligned_files
from tfm_cli.errors import DataError
from tfm_cli.text.reader import MAX_LINE_BYTES
from tfm_cli.text.repairs import Repairs

logger = logging.getLogger(__name__)


def read_pairs(
    source_paths: Sequence[str], target_paths: Sequence[str], *, warn: bool = True
) -> Iterator[Pair]:
    """Pairs of lines of the first source and target file, then of the second, and so on.

    Args:
        source_paths: files in the source language.
        target_paths: their translations, file by file and line by line.
        warn: warn of lines that were repaired while reading; False where that was done before.

    Raises:
        ConfigError: there are more files on one side.
        DataError: as of `read_corpus`.
    """
    return read_corpus(aligned_files(source_paths, target_paths), warn=warn)


def read_corpus(
    files: Sequence[CorpusFile],
    *,
    bad_utf8: str = "refuse",
    warn: bool = True,
    show: Show = lambda words, share: None,
) -> Iterator[Pair]:
    """The pairs of all files, in order.

    Args:
        files: with the text.
        bad_utf8: as of `block_pairs`.
        warn: as in `read_pairs`.
        show: is called now and then with how far this is.

    Raises:
        DataError: a file is missing or no UTF-8, or a line holds no pair; or files do not align,
            which is only known at the end and then said of all of them.
    """
    repairs: list[dict[str, Repairs]] = [{} for _ in files]
    before, num_pairs = 0, 0

    def finish(index: int) -> None:
        for name, some in repairs[index].items() if warn else ():
            for note in some.notes(MAX_LINE_BYTES):
                logger.warning("%s: %s", name, note)

    # By blocks, since a line that goes through a reader alone takes ten times as long.
    for block in read_blocks(files):
        for index in range(before, block.file):
            finish(index)
        before = block.file
        sources, targets, found, *_ = block_pairs(block, bad_utf8=bad_utf8)
        for name, some in zip(block.names, found, strict=True):
            repairs[block.file].setdefault(name, Repairs()).merge(some)
        num_pairs += len(sources)
        show(counted(num_pairs, "pair"), block.share)
        yield from zip(sources, targets, strict=True)
    for index in range(before, len(files)):
        finish(index)


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
