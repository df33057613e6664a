"""Corpus files → a corpus on disk, written once."""

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import sentencepiece

from tfm_cli.console import counted, shown_progress
from tfm_cli.corpus.blocks import read_blocks
from tfm_cli.corpus.encoding_pool import encoding_pool
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.sources import CorpusFile
from tfm_cli.corpus.store import CorpusStore, no_usable_pairs
from tfm_cli.corpus.store_files import FORMAT, StoreWriter, locked_if_unused, open_store
from tfm_cli.errors import DataError, ResourceError
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_directory, atomic_file, remove_directory
from tfm_cli.files.layout import CACHE_HASHES
from tfm_cli.files.ownership import (
    is_prepared_name,
    is_prepared_text,
    is_temporary,
    output_error,
    sweep,
    try_lock,
)
from tfm_cli.files.untrusted import MAX_JSON_BYTES, open_private, read_private_json
from tfm_cli.parallel.cpu_cores import available_cores
from tfm_cli.text.reader import MAX_LINE_BYTES
from tfm_cli.text.repairs import Repairs
from tfm_cli.tokenizer.pair import TokenizerPair

logger = logging.getLogger(__name__)


_ALONE_BYTES = 8 << 20  # less text than this is done before other processes are up


def prepare(
    files: Sequence[CorpusFile],
    tokenizers: TokenizerPair,
    filters: Filters,
    directory: Path,
    *,
    workers: int,
    warn: bool = True,
) -> None:
    """Encode the files' pairs into a folder, which appears when all of it is written.

    The bytes do not depend on the number of processes.

    Args:
        files: with the text.
        tokenizers: of the two sides.
        filters: which pairs may stay.
        directory: the folder.
        workers: processes that encode; 0 for what suits the machine and the size of the text.
        warn: warn of lines that were repaired; False where that was done before.

    Raises:
        DataError: a file cannot be read, files do not align, a line is no UTF-8 or holds no pair,
            or no pair is left.
        ResourceError: the folder cannot be written, or a process was killed.
    """
    repairs: dict[str, Repairs] = {}
    with (
        atomic_directory(directory, may_replace=is_prepared_text) as aside,
        StoreWriter(
            aside, vocab_sizes=tokenizers.vocab_sizes, filters=filters, num_files=len(files)
        ) as writer,
        encoding_pool(tokenizers, filters, num_processes=num_workers(files, workers)) as pool,
        shown_progress("preparing the training text", logger) as show,
    ):
        began = time.monotonic()
        for block, found in pool.encode(read_blocks(files)):
            writer.add(found, file=block.file)
            for name, some in zip(block.names, found.repairs, strict=True):
                repairs.setdefault(name, Repairs()).merge(some)
            speed = len(writer) / max(time.monotonic() - began, 1e-9)
            show(f"{counted(len(writer), 'pair')}, {speed:.0f} pairs/s", block.share)
        if not len(writer):
            raise no_usable_pairs(", ".join(file.name for file in files), writer.dropped)
        writer.finish()
    for name, some in repairs.items() if warn else ():
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


# One preparation of a text at a time, in whatever process, container or machine.
#
# The lock is one of the file system's (flock) on `.KEY.lock` beside the folder `KEY`. The system
# releases it when its process ends, however that happens; no process is asked whether another one
# lives. Where the file system has no locks, two runs may do the same work, each in its own folder.

_NAME = re.compile(r"\.[0-9a-f]{32}\.lock")
_POLL_SECONDS = 0.1


@contextlib.contextmanager
def key_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a prepared text inside the block; wait for another run that holds it.

    Args:
        directory: the folder of the text, which need not exist.

    Raises:
        ResourceError: the lock cannot be written, or its name leads to something else.
    """
    path = directory.with_name(f".{directory.name}.lock")
    try:
        stream = _taken(path, directory)
    except OSError as error:
        raise output_error(directory.parent, error) from error
    with stream:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                _remove_held(path, stream)


def sweep_locks(cache: Path) -> None:
    """Remove the locks that killed processes left in a cache."""
    for path in [path for path in sorted(cache.iterdir()) if _NAME.fullmatch(path.name)]:
        with contextlib.suppress(OSError), open_private(path) as stream:
            if try_lock(stream.fileno()):
                _remove_held(path, stream)


def _taken(path: Path, directory: Path) -> BinaryIO:
    is_waiting = False
    while True:
        durable.make_directory(path.parent)
        try:
            stream = durable.open_for_update(path)
        except FileNotFoundError:  # another run failed, and removed the cache that it had made
            continue
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(stream.close)
            while (is_held := try_lock(stream.fileno())) is False:
                if not is_waiting:
                    logger.info("%s: waiting for another run that prepares this text", directory)
                    is_waiting = True
                time.sleep(_POLL_SECONDS)
            if is_held is None or _has_name(path, stream):
                on_failure.pop_all()
                return stream
        # The other run has ended, and this was its lock.


def _remove_held(path: Path, stream: BinaryIO | FileIO) -> None:
    """Remove a lock that is held, unless there is anything in it: tfm writes nothing there."""
    if _has_name(path, stream) and not os.fstat(stream.fileno()).st_size:
        durable.remove(path)


def _has_name(path: Path, stream: BinaryIO | FileIO) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    return False


# Prepared corpora kept under a hash of what they were made from.

_MOST_FILES = 1000  # whose hashes are remembered
_LEFT = "it is left as it is, and treated as absent"
_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile("[0-9a-f]{64}")


def cached_store(
    cache: Path,
    files: Sequence[CorpusFile],
    tokenizers: TokenizerPair,
    filters: Filters,
    *,
    weights: Sequence[float],
    workers: int,
    warn: bool = True,
) -> tuple[CorpusStore, Path]:
    """The corpus in these files, prepared now unless it was before, and its folder.

    Args:
        cache: folder of prepared corpora.
        files: with the text.
        tokenizers: of the two sides.
        filters: which pairs may stay.
        weights: how often an epoch has the pairs of each file; none for all once.
        workers: processes that encode; 0 for what suits.
        warn: warn of lines that were repaired while reading.

    Raises:
        DataError: the text cannot be used, or was changed while it was read.
        ResourceError: the cache cannot be written.
    """
    known = FileHashes(cache / CACHE_HASHES)
    opened = partial(
        open_store,
        weights=weights,
        vocab_sizes=tokenizers.vocab_sizes,
        max_length=filters.max_length,
    )
    directory = cache / _key([known.of(file) for file in files], files, tokenizers, filters)
    with removed_on_failure(cache):
        known.save()
        with suppress(DataError):  # there is none, or it is told below what is wrong with it
            return opened(directory), directory
        with key_lock(directory):
            _sweep(cache)
            if directory.exists():
                try:
                    return opened(directory), directory  # another run has made it meanwhile
                except DataError as error:
                    logger.warning("%s; it is made anew", error)
            try:
                prepare(files, tokenizers, filters, directory, workers=workers, warn=warn)
            except ResourceError:
                # Without locks, another run may have put the same text there at the same moment.
                if not _is_whole(directory):
                    raise
            changed = [file.name for file in files if not known.still_has(file)]
            if changed:
                remove_directory(directory, is_ours=is_prepared_text)
                raise DataError(f"{', '.join(changed)}: was changed while it was read")
            return opened(directory), directory


def _is_whole(directory: Path) -> bool:
    with suppress(DataError):
        open_store(directory, ())
        return True
    return False


@contextmanager
def removed_on_failure(cache: Path) -> Iterator[None]:
    """Remove the cache again, and the folder around it, if they are new and nothing is in them."""
    before = [folder for folder in (cache, cache.parent) if folder.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if cache not in before and (cache / CACHE_HASHES).exists():
                durable.remove(cache / CACHE_HASHES)
            for folder in (cache, cache.parent):
                if folder not in before:
                    durable.remove(folder)
        raise


class FileHashes:
    """Hashes of files' content, remembered while size, times and inode stay; a class: it remembers.

    Args:
        path: where they are remembered; a file there that is not known to be ours is left as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = read_private_json(path, fallback=_LEFT) if _has_bytes(path) else {}
        self._known: dict[str, list[object]] = {
            k: v for k, v in (found or {}).items() if _is_entry(v)
        }
        self._is_theirs = found is None or (found != {} and not self._known)
        if found and self._is_theirs:
            logger.warning("%s: was not made by tfm, so it is left as it is", path)
        self._is_new = False

    def of(self, file: CorpusFile) -> list[str]:
        """The hash of each file's bytes, read now unless they were before."""
        return [
            self._of(Path(path), name) for path, name in zip(file.paths, file.names, strict=True)
        ]

    def still_has(self, file: CorpusFile) -> bool:
        """Whether the files are as they were when they were hashed."""
        with suppress(OSError):  # it is gone
            return all(self._known[_place(path)][:-1] == _mark(Path(path)) for path in file.paths)
        return False

    def save(self) -> None:
        """Remember for the next time, if there is anything new and it can be written."""
        if self._is_new and not self._is_theirs:
            lasting = [(k, v) for k, v in self._known.items() if not is_temporary(Path(k).name)]
            del lasting[:-_MOST_FILES]
            while len(content := json.dumps(dict(lasting), indent=0).encode()) > MAX_JSON_BYTES:
                del lasting[: len(lasting) // 2 + 1]  # paths can be long; more is not read again
            with suppress(ResourceError), atomic_file(self.path, follow=False) as stream:
                stream.write(content)

    def _of(self, path: Path, name: str) -> str:
        place = _place(path)
        try:
            mark = _mark(path)
            entry = self._known.get(place)
            if entry is None or entry[:-1] != mark:
                digest = hashlib.blake2b(digest_size=32)
                with path.open("rb") as stream:
                    while chunk := stream.read(_CHUNK_BYTES):
                        digest.update(chunk)
                entry = [*mark, digest.hexdigest()]
                self._known.pop(place, None)  # so that it is the newest
                self._known[place] = entry
                self._is_new = True
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error
        return str(entry[-1])


def _has_bytes(path: Path) -> bool:
    """Return False where there is no file, or an empty one, which nobody misses."""
    with suppress(OSError):
        return not stat.S_ISREG((status := path.lstat()).st_mode) or status.st_size > 0
    return False


def _is_entry(value: object) -> bool:
    """Return True for what `_mark` gives, and a digest."""
    return (
        isinstance(value, list)
        and [type(each) for each in value] == [int, int, int, int, str]
        and _DIGEST.fullmatch(value[-1]) is not None
    )


def _place(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - links are followed by nobody here


def _mark(path: Path) -> list[object]:
    status = path.stat()
    # The last change tells of new content whose time was set to that of the old.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _key(
    hashes: Sequence[Sequence[str]],
    files: Sequence[CorpusFile],
    tokenizers: TokenizerPair,
    filters: Filters,
) -> str:
    """The name of the folder: a hash of all that the ids depend on."""
    facts = [
        FORMAT,
        sys.byteorder,
        sentencepiece.__version__,
        tokenizers.sha256,
        asdict(filters),
        [[file.format, *each] for file, each in zip(files, hashes, strict=True)],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def remove_stale(directory: Path) -> None:
    """Remove what else was prepared in a cache: for an older text or tokenizer, or in part.

    The cache belongs to a run, which is the only one. What is not proven to be ours stays, and so
    does a text that another run uses, which was told to share this cache.
    """
    cache = directory.parent
    for path in sorted(cache.iterdir()):
        if path.name != directory.name and is_prepared_text(path):
            with suppress(OSError), locked_if_unused(path):
                remove_directory(path, is_ours=is_prepared_text)
    with suppress(OSError):
        _sweep(cache, of_0_1=True)


def _sweep(cache: Path, *, of_0_1: bool = False) -> None:
    """Remove what killed runs left in a cache, whichever text they were preparing."""
    sweep_locks(cache)
    stems = {path.name.split(".")[1] for path in cache.iterdir() if is_temporary(path.name)}
    ours = [stem for stem in stems if stem == "stdin" or is_prepared_name(stem)]
    sweep(cache, [*ours, CACHE_HASHES], of_0_1=of_0_1)
