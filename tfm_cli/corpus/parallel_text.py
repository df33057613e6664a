"""Corpus files as pairs of lines, one after the other."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from tfm_cli.corpus.blocks import misaligned_text, raise_if_misaligned
from tfm_cli.corpus.corpus_files import CorpusFile, aligned_files
from tfm_cli.corpus.pair_formats import Pair, pairs_of
from tfm_cli.errors import DataError
from tfm_cli.text import open_lines

logger = logging.getLogger(__name__)


def read_pairs(
    source_paths: Sequence[str], target_paths: Sequence[str], *, tell: bool = True
) -> Iterator[Pair]:
    """Pairs of lines of the first source and target file, then of the second, and so on.

    Args:
        source_paths: files in the source language.
        target_paths: their translations, file by file and line by line.
        tell: warn of lines that were mended while reading; False where that was done before.

    Raises:
        ConfigError: there are more files on one side.
        DataError: as of `read_corpus`.
    """
    return read_corpus(aligned_files(source_paths, target_paths), tell=tell)


def read_corpus(files: Sequence[CorpusFile], *, tell: bool = True) -> Iterator[Pair]:
    """The pairs of all files, in order; `tell` is that of `read_pairs`.

    Raises:
        DataError: a file is missing or no UTF-8, or a line holds no pair; or files do not align,
            which is only known at the end and then said of all of them.
    """
    misaligned = []
    for file in files:
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(open_lines(path)) for path in file.paths]
            for reader, name in zip(readers, file.names, strict=True):
                reader.name = name
            if len(readers) == 1:
                mended = readers[0].mended
                yield from pairs_of(readers[0], file.format, mended, name=file.name)
            else:
                for source, target in zip_longest(*readers):
                    if source is None or target is None:
                        continue  # one side goes on: count how far
                    yield source, target
            for reader in readers:
                for note in reader.notes() if tell else ():
                    logger.warning("%s: %s", reader.name, note)
            counts = [reader.num_lines for reader in readers]
            if len(set(counts)) > 1:
                misaligned.append(misaligned_text(file, counts))
    raise_if_misaligned(misaligned)


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
