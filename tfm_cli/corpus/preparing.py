"""Corpus files → a corpus on disk, written once."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from tfm_cli.cores import available_cores
from tfm_cli.corpus.blocks import read_blocks
from tfm_cli.corpus.corpus_files import CorpusFile
from tfm_cli.corpus.encoders import encoders
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.store import no_usable_pairs
from tfm_cli.corpus.store_files import StoreWriter
from tfm_cli.files import atomic_directory
from tfm_cli.log import counted
from tfm_cli.mended import Mended
from tfm_cli.ownership import is_prepared_text
from tfm_cli.progress import shown_progress
from tfm_cli.text import MAX_LINE_BYTES
from tfm_cli.tokenizer_pair import TokenizerPair

logger = logging.getLogger(__name__)

_ALONE_BYTES = 8 << 20  # less text than this is done before other processes are up


def prepare(
    files: Sequence[CorpusFile],
    tokenizers: TokenizerPair,
    filters: Filters,
    directory: Path,
    *,
    workers: int,
    tell: bool = True,
) -> None:
    """Encode the files' pairs into a folder, which appears when all of it is written.

    The bytes do not depend on the number of processes.

    Args:
        files: with the text.
        tokenizers: of the two sides.
        filters: which pairs may stay.
        directory: the folder.
        workers: processes that encode; 0 for what suits the machine and the size of the text.
        tell: warn of lines that were mended; False where that was done before.

    Raises:
        DataError: a file cannot be read, files do not align, a line is no UTF-8 or holds no pair,
            or no pair is left.
        ResourceError: the folder cannot be written, or a process was killed.
    """
    mended: dict[str, Mended] = {}
    with (
        atomic_directory(directory, may_replace=is_prepared_text) as aside,
        StoreWriter(
            aside, vocab_sizes=tokenizers.vocab_sizes, filters=filters, num_files=len(files)
        ) as writer,
        encoders(tokenizers, filters, workers=num_workers(files, workers)) as encode,
        shown_progress("preparing the training text", logger) as show,
    ):
        began = time.monotonic()
        for block, found in encode(read_blocks(files)):
            writer.add(found, file=block.file)
            for name, some in zip(block.names, found.mended, strict=True):
                mended.setdefault(name, Mended()).merge(some)
            speed = len(writer) / max(time.monotonic() - began, 1e-9)
            show(f"{counted(len(writer), 'pair')}, {speed:.0f} pairs/s", block.share)
        if not len(writer):
            raise no_usable_pairs(", ".join(file.name for file in files), writer.dropped)
        writer.finish()
    for name, some in mended.items() if tell else ():
        for note in some.notes(MAX_LINE_BYTES):
            logger.warning("%s: %s", name, note)


def num_workers(files: Sequence[CorpusFile], asked: int) -> int:
    """How many processes are to encode; 0 for this one alone."""
    if asked:
        return asked
    # Under torchrun, whoever prepares is the only one of its machine that works.
    cores = available_cores(heeds_openmp=False)
    return cores if cores > 1 and sum(map(_size, files)) >= _ALONE_BYTES else 0


def _size(file: CorpusFile) -> int:
    return sum(Path(path).stat().st_size for path in file.paths)
