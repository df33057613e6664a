"""Preparation of a corpus: its files are encoded once, and cached under a hash of their content."""

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

from tfm_cli.console import counted, progress_display
from tfm_cli.corpus.encoding import encoding_pool
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.parallel_text import read_blocks, warn_of_repairs
from tfm_cli.corpus.sources import CorpusFile
from tfm_cli.corpus.store import (
    FORMAT,
    CorpusStore,
    StoreWriter,
    locked_if_unused,
    no_usable_pairs,
    open_store,
)
from tfm_cli.errors import DataError, ResourceError
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_directory, atomic_file, remove_directory
from tfm_cli.files.layout import CACHE_HASHES, PREPARED_LOCK
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
from tfm_cli.text.reader import Repairs
from tfm_cli.tokenizer.pair import TokenizerPair

logger = logging.getLogger(__name__)

_MIN_BYTES_FOR_PROCESSES = 8 << 20  # less text is encoded before other processes have started
_POLL_SECONDS = 0.1  # between attempts to take a lock
_MAX_HASHED_FILES = 1000
_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile("[0-9a-f]{64}")


def prepare(
    files: Sequence[CorpusFile],
    tokenizers: TokenizerPair,
    filters: Filters,
    directory: Path,
    *,
    workers: int,
    warn: bool = True,
) -> None:
    """Encode the pairs of all files into a folder, which appears once it is complete.

    The written bytes do not depend on the number of processes.

    Args:
        files: the corpus.
        tokenizers: the tokenizers of the two sides.
        filters: rules for the pairs to drop.
        directory: the folder.
        workers: processes that encode; 0 for a number that suits the machine and the text.
        warn: warn of repaired lines; False if an earlier pass has done so.

    Raises:
        DataError: a file cannot be read, files do not align, a line is not UTF-8 or holds no pair,
            or no pair is left.
        ResourceError: the folder cannot be written, or a process was killed.
    """
    repairs: dict[str, Repairs] = {}
    with (
        atomic_directory(directory, may_replace=is_prepared_text) as temporary,
        StoreWriter(
            temporary, vocab_sizes=tokenizers.vocab_sizes, filters=filters, num_files=len(files)
        ) as writer,
        encoding_pool(tokenizers, filters, num_processes=num_workers(files, workers)) as pool,
        progress_display("preparing the training text", logger) as show,
    ):
        start = time.monotonic()
        for block, encoded in pool.encode(read_blocks(files)):
            writer.add(encoded, file=block.file)
            for name, later in zip(block.names, encoded.repairs, strict=True):
                repairs.setdefault(name, Repairs()).merge(later)
            speed = len(writer) / max(time.monotonic() - start, 1e-9)
            show(f"{counted(len(writer), 'pair')}, {speed:.0f} pairs/s", block.share)
        if not len(writer):
            raise no_usable_pairs(", ".join(file.name for file in files), writer.dropped)
        writer.finish()
    warn_of_repairs(repairs if warn else {})


def num_workers(files: Sequence[CorpusFile], setting: int) -> int:
    """Return the number of processes that encode; 0 for this one alone.

    Args:
        files: the corpus.
        setting: the number that the user set, or 0.
    """
    if setting:
        return setting
    # OMP_NUM_THREADS, which torchrun sets, is ignored: the other ranks are idle at this time.
    cores = available_cores(heeds_openmp=False)
    return cores if cores > 1 and sum(map(_size, files)) >= _MIN_BYTES_FOR_PROCESSES else 0


def _size(file: CorpusFile) -> int:
    return sum(Path(path).stat().st_size for path in file.paths)


# Cache


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
    """Return the store of a corpus and its folder, after preparing it if it is not in the cache.

    Args:
        cache: the folder of prepared corpora.
        files: the corpus.
        tokenizers: the tokenizers of the two sides.
        filters: rules for the pairs to drop.
        weights: passes per epoch over the pairs of each file; empty for one pass over each.
        workers: as in `prepare`.
        warn: as in `prepare`.

    Raises:
        DataError: the text cannot be used, or was changed while it was read.
        ResourceError: the cache cannot be written.
    """
    hashes = FileHashes(cache / CACHE_HASHES)
    opened = partial(
        open_store,
        weights=weights,
        vocab_sizes=tokenizers.vocab_sizes,
        max_length=filters.max_length,
    )
    directory = cache / _key([hashes.of(file) for file in files], files, tokenizers, filters)
    with removed_on_failure(cache):
        hashes.save()
        with suppress(DataError):  # it is missing, or damaged, which is reported below
            return opened(directory), directory
        with key_lock(directory):
            _sweep(cache)
            if directory.exists():
                try:
                    return opened(directory), directory  # another run has prepared it in between
                except DataError as error:
                    logger.warning("%s; preparing it again", error)
            try:
                prepare(files, tokenizers, filters, directory, workers=workers, warn=warn)
            except ResourceError:
                # Without locks, another run may have prepared the same text at the same time.
                if not _is_complete(directory):
                    raise
            changed = [file.name for file in files if not hashes.are_current(file)]
            if changed:
                remove_directory(directory, is_ours=is_prepared_text)
                raise DataError(f"{', '.join(changed)}: was changed while it was read")
            return opened(directory), directory


def _is_complete(directory: Path) -> bool:
    with suppress(DataError):
        open_store(directory, ())
        return True
    return False


@contextmanager
def removed_on_failure(cache: Path) -> Iterator[None]:
    """Remove the cache and its parent folder after an error, if they are new and empty."""
    existing = [folder for folder in (cache, cache.parent) if folder.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if cache not in existing and (cache / CACHE_HASHES).exists():
                durable.remove(cache / CACHE_HASHES)
            for folder in (cache, cache.parent):
                if folder not in existing:
                    durable.remove(folder)
        raise


def _key(
    hashes: Sequence[Sequence[str]],
    files: Sequence[CorpusFile],
    tokenizers: TokenizerPair,
    filters: Filters,
) -> str:
    """Return the name of the folder: a hash of everything that the ids depend on."""
    facts = [
        FORMAT,
        sys.byteorder,
        sentencepiece.__version__,
        tokenizers.sha256,
        asdict(filters),
        [[file.format, *digests] for file, digests in zip(files, hashes, strict=True)],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def remove_stale(directory: Path) -> None:
    """Remove all prepared texts but this one from the cache of a run.

    They are of older text or tokenizers, or incomplete. Folders that tfm did not write stay, and so
    does a text that another run with the same cache has open.
    """
    cache = directory.parent
    for path in sorted(cache.iterdir()):
        if path.name != directory.name and is_prepared_text(path):
            with suppress(OSError), locked_if_unused(path):
                remove_directory(path, is_ours=is_prepared_text)
    with suppress(OSError):
        _sweep(cache, of_0_1=True)


def _sweep(cache: Path, *, of_0_1: bool = False) -> None:
    """Remove the temporary files and locks of killed runs from a cache, for any text."""
    sweep_locks(cache)
    stems = {path.name.split(".")[1] for path in cache.iterdir() if is_temporary(path.name)}
    ours = [stem for stem in stems if stem == "stdin" or is_prepared_name(stem)]
    sweep(cache, [*ours, CACHE_HASHES], of_0_1=of_0_1)


# Hashes of corpus files


class FileHashes:
    """Hashes of file contents, cached as long as size, times and inode do not change.

    Args:
        path: the file of cached hashes; a file that tfm did not write is left unchanged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ignored = "it is left unchanged and ignored"
        table = read_private_json(path, fallback=ignored) if _has_bytes(path) else {}
        self._known: dict[str, list[object]] = {
            k: v for k, v in (table or {}).items() if _is_entry(v)
        }
        self._is_foreign = table is None or (table != {} and not self._known)
        if table and self._is_foreign:
            logger.warning("%s: was not written by tfm; it is left unchanged", path)
        self._is_changed = False

    def of(self, file: CorpusFile) -> list[str]:
        """Return the hash of each file's content, reading files that are new or changed.

        Raises:
            DataError: a file cannot be read.
        """
        return [
            self._of(Path(path), name) for path, name in zip(file.paths, file.names, strict=True)
        ]

    def are_current(self, file: CorpusFile) -> bool:
        """Return True if the files have not changed since they were hashed."""
        with suppress(OSError):  # a file is gone
            return all(
                self._known[_absolute(path)][:-1] == _fingerprint(Path(path)) for path in file.paths
            )
        return False

    def save(self) -> None:
        """Write the hashes for the next run, if they have changed and can be written."""
        if self._is_changed and not self._is_foreign:
            lasting = [(k, v) for k, v in self._known.items() if not is_temporary(Path(k).name)]
            del lasting[:-_MAX_HASHED_FILES]
            while len(content := json.dumps(dict(lasting), indent=0).encode()) > MAX_JSON_BYTES:
                del lasting[: len(lasting) // 2 + 1]  # a larger file would not be read again
            with suppress(ResourceError), atomic_file(self.path, follow=False) as stream:
                stream.write(content)

    def _of(self, path: Path, name: str) -> str:
        key = _absolute(path)
        try:
            fingerprint = _fingerprint(path)
            entry = self._known.get(key)
            if entry is None or entry[:-1] != fingerprint:
                digest = hashlib.blake2b(digest_size=32)
                with path.open("rb") as stream:
                    while chunk := stream.read(_CHUNK_BYTES):
                        digest.update(chunk)
                entry = [*fingerprint, digest.hexdigest()]
                self._known.pop(key, None)  # reinserted as the newest
                self._known[key] = entry
                self._is_changed = True
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error
        return str(entry[-1])


def _has_bytes(path: Path) -> bool:
    """Return False if the file is missing or empty, and can be replaced without loss."""
    with suppress(OSError):
        return not stat.S_ISREG((status := path.lstat()).st_mode) or status.st_size > 0
    return False


def _is_entry(value: object) -> bool:
    """Return True for a list of a fingerprint's four integers and a digest."""
    return (
        isinstance(value, list)
        and [type(each) for each in value] == [int, int, int, int, str]
        and _DIGEST.fullmatch(value[-1]) is not None
    )


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - unlike Path.resolve, it follows no links


def _fingerprint(path: Path) -> list[object]:
    status = path.stat()
    # `st_ctime` changes even if a program sets the modification time back.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


# Locks
#
# A text is prepared by one process at a time, in any container or on any machine. The lock is a
# file lock (flock) on `.KEY.lock` beside the folder `KEY`; the system releases it however its
# process ends. On a file system without locks, two runs may prepare the same text, each in a
# temporary folder of its own.


@contextmanager
def key_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a prepared text, after waiting for another run that holds it.

    Args:
        directory: the folder of the text, which need not exist.

    Raises:
        ResourceError: the lock cannot be written, or its path is not a regular file.
    """
    path = directory.with_name(f".{directory.name}.lock")
    try:
        stream = _acquire(path, directory)
    except OSError as error:
        raise output_error(directory.parent, error) from error
    with stream:
        try:
            yield
        finally:
            with suppress(OSError):
                _remove_held(path, stream)


def sweep_locks(cache: Path) -> None:
    """Remove the locks of killed processes from a cache."""
    for path in [path for path in sorted(cache.iterdir()) if PREPARED_LOCK.fullmatch(path.name)]:
        with suppress(OSError), open_private(path) as stream:
            if try_lock(stream.fileno()):
                _remove_held(path, stream)


def _acquire(path: Path, directory: Path) -> BinaryIO:
    is_waiting = False
    while True:
        durable.make_directory(path.parent)
        try:
            stream = durable.open_for_update(path)
        except FileNotFoundError:  # another run failed, and removed the cache that it had created
            continue
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(stream.close)
            while (is_held := try_lock(stream.fileno())) is False:
                if not is_waiting:
                    logger.info("%s: waiting for another run that prepares this text", directory)
                    is_waiting = True
                time.sleep(_POLL_SECONDS)
            if is_held is None or _is_at(path, stream):
                on_failure.pop_all()
                return stream
        # The other run has ended and removed this lock file, so a new one is opened.


def _remove_held(path: Path, stream: BinaryIO | FileIO) -> None:
    """Remove a held lock file, unless it has content, which is not from tfm."""
    if _is_at(path, stream) and not os.fstat(stream.fileno()).st_size:
        durable.remove(path)


def _is_at(path: Path, stream: BinaryIO | FileIO) -> bool:
    """Return True if the path still refers to the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    return False
