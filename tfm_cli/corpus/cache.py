"""Prepared corpora kept under a hash of what they were made from."""

import hashlib
import json
import logging
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import sentencepiece

from tfm_cli import durable
from tfm_cli.corpus.corpus_files import CorpusFile
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.key_lock import key_lock, sweep_locks
from tfm_cli.corpus.preparing import prepare
from tfm_cli.corpus.store import PieceStore
from tfm_cli.corpus.store_files import FORMAT, open_store, unused
from tfm_cli.errors import DataError, ResourceError
from tfm_cli.files import atomic_file, remove_directory
from tfm_cli.ownership import (
    is_prepared_name,
    is_prepared_text,
    is_temporary,
    sweep,
)
from tfm_cli.private_json import MAX_BYTES, read_private_json
from tfm_cli.tokenizer_pair import TokenizerPair

logger = logging.getLogger(__name__)

_FILES = "files.json"
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
    tell: bool = True,
) -> tuple[PieceStore, Path]:
    """The corpus in these files, prepared now unless it was before, and its folder.

    Args:
        cache: folder of prepared corpora.
        files: with the text.
        tokenizers: of the two sides.
        filters: which pairs may stay.
        weights: how often an epoch has the pairs of each file; none for all once.
        workers: processes that encode; 0 for what suits.
        tell: warn of lines that were mended while reading.

    Raises:
        DataError: the text cannot be used, or was changed while it was read.
        ResourceError: the cache cannot be written.
    """
    known = FileHashes(cache / _FILES)
    opened = partial(
        open_store,
        weights=weights,
        vocab_sizes=tokenizers.vocab_sizes,
        max_length=filters.max_length,
    )
    directory = cache / _key([known.of(file) for file in files], files, tokenizers, filters)
    with nothing_left_of_failure(cache):
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
                prepare(files, tokenizers, filters, directory, workers=workers, tell=tell)
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
def nothing_left_of_failure(cache: Path) -> Iterator[None]:
    """Remove the cache again, and the folder around it, if they are new and nothing is in them."""
    before = [folder for folder in (cache, cache.parent) if folder.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if cache not in before and (cache / _FILES).exists():
                durable.remove(cache / _FILES)
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
        found = read_private_json(path, otherwise=_LEFT) if _has_bytes(path) else {}
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
            while len(content := json.dumps(dict(lasting), indent=0).encode()) > MAX_BYTES:
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


def remove_others(directory: Path) -> None:
    """Remove what else was prepared in a cache: for an older text or tokenizer, or in part.

    The cache belongs to a run, which is the only one. What is not proven to be ours stays, and so
    does a text that another run uses, which was told to share this cache.
    """
    cache = directory.parent
    for path in sorted(cache.iterdir()):
        if path.name != directory.name and is_prepared_text(path):
            with suppress(OSError), unused(path):
                remove_directory(path, is_ours=is_prepared_text)
    with suppress(OSError):
        _sweep(cache, of_0_1=True)


def _sweep(cache: Path, *, of_0_1: bool = False) -> None:
    """Remove what killed runs left in a cache, whichever text they were preparing."""
    sweep_locks(cache)
    stems = {path.name.split(".")[1] for path in cache.iterdir() if is_temporary(path.name)}
    ours = [stem for stem in stems if stem == "stdin" or is_prepared_name(stem)]
    sweep(cache, [*ours, _FILES], of_0_1=of_0_1)
