"""A corpus on disk: arrays as raw numbers, mapped and not read; `store.json` says what they are."""

import errno
import json
import mmap
import os
import re
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from tfm_cli.corpus.batching import CorpusSpan
from tfm_cli.corpus.encoding import EncodedBlock, id_type, length_type
from tfm_cli.corpus.filters import Filters, repeated_hashes
from tfm_cli.corpus.line_checks import RoundTrip, SourceTags
from tfm_cli.corpus.store import CorpusStore, Segments, SideHash, corpus_sha256, damaged
from tfm_cli.files import durable
from tfm_cli.files.layout import PREPARED_FACTS
from tfm_cli.files.ownership import try_lock
from tfm_cli.files.untrusted import open_private, parse_json_object, read_private

FORMAT = 2
_SIDES = ("source", "target")
_KINDS = ("ids", "lengths", "starts")
_HASHES, _FIRST = "pairs.hashes", "first"
_PAIRS_AT_A_TIME = 1 << 18
_MAX_FACTS_BYTES = 4 << 20  # a count for each training file; parsed, 20 times as much
_DIGEST = re.compile("[0-9a-f]{64}")
_REASON = re.compile("[A-Za-z0-9 -]{1,40}")  # why pairs were dropped; it is shown
_TYPES = tuple(np.dtype(kind).str for kind in (np.uint16, np.int32))  # see `id_type`


class StoreWriter:
    """Writes a corpus into an empty folder; a class because it is given part by part.

    Args:
        directory: an empty folder.
        vocab_sizes: of the two sides.
        filters: which pairs may stay; duplicates are found here, when all pairs are known.
        num_files: how many files the corpus is in.
    """

    def __init__(
        self, directory: Path, *, vocab_sizes: tuple[int, int], filters: Filters, num_files: int
    ) -> None:
        self._directory = directory
        self._vocab_sizes = vocab_sizes
        self._filters = filters
        self._counts = [0] * num_files  # pairs of each file
        self._dropped: Counter[str] = Counter()
        self._round_trips = RoundTrip(), RoundTrip()
        self._tags = SourceTags()
        self._open = ExitStack()
        self._hashes: IO[bytes] | None = None
        with ExitStack() as on_failure:
            on_failure.callback(self._open.close)
            # With duplicates among them, all pairs are written first, and then those that stay.
            self._begin(_FIRST if filters.duplicates else "")
            if filters.duplicates:
                self._hashes = self._opened(directory / _HASHES)
            on_failure.pop_all()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def dropped(self) -> Counter[str]:
        """Pairs that were left out so far, by reason."""
        return self._dropped

    def add(self, found: EncodedBlock, *, file: int) -> None:
        """Append the pairs of a block; blocks come file by file."""
        self._append(found.ids, found.lengths)
        self._counts[file] += len(found.lengths[0])
        self._dropped.update(found.dropped)
        self._tags.merge(found.tags)
        for trip, later in zip(self._round_trips, found.round_trips, strict=True):
            trip.merge(later)
        if self._hashes is not None:
            self._hashes.write(found.hashes.tobytes())

    def finish(self) -> None:
        """Drop duplicates if they are to be dropped, and say what there is."""
        self._open.close()
        if self._filters.duplicates:
            self._drop_duplicates()
        facts = {
            "format": FORMAT,
            "pairs": len(self),
            "pieces": list(self._totals),
            "id_types": [id_type(size).str for size in self._vocab_sizes],
            "vocab_sizes": list(self._vocab_sizes),
            "length_type": length_type(self._filters.max_length).str,
            "files": self._counts,
            "dropped": dict(self._dropped),
            "round_trips": [trip.to_json() for trip in self._round_trips],
            "tags": self._tags.to_json(),
            "sha256": corpus_sha256(*(digest.hexdigest() for digest in self._digests)),
        }
        text = json.dumps(facts, indent=1) + "\n"
        durable.write_file(self._directory / PREPARED_FACTS, text.encode())

    def _begin(self, prefix: str) -> None:
        self._digests = (SideHash(), SideHash())
        self._totals = [0, 0]
        self._files = [
            {
                kind: self._opened(_path(self._directory, prefix, side, kind))
                for kind in ("ids", "lengths", "starts")
            }
            for side in _SIDES
        ]
        for files in self._files:
            files["starts"].write(np.zeros(1, dtype=np.int64).tobytes())

    def _opened(self, path: Path) -> IO[bytes]:
        return self._open.enter_context(durable.create(path))

    def _append(self, ids: Sequence[np.ndarray], lengths: Sequence[np.ndarray]) -> None:
        for side, files in enumerate(self._files):
            self._digests[side].add(ids[side], lengths[side])
            ends = self._totals[side] + np.cumsum(lengths[side].astype(np.int64) - 1)
            files["ids"].write(ids[side].tobytes())
            files["lengths"].write(lengths[side].tobytes())
            files["starts"].write(ends.tobytes())
            self._totals[side] += len(ids[side])

    def _drop_duplicates(self) -> None:
        """Write the arrays anew, without pairs that occurred before."""
        hashes = np.memmap(self._directory / _HASHES, np.uint64, "r") if len(self) else np.zeros(0)
        is_later = repeated_hashes(hashes)
        total, counts = len(self), self._counts
        kinds = [id_type(size) for size in self._vocab_sizes]
        narrow = length_type(self._filters.max_length)
        self._dropped["duplicate"] += int(is_later.sum())
        bounds = np.cumsum([0, *counts])
        self._counts = [
            int((~is_later[first:end]).sum()) for first, end in pairwise(bounds.tolist())
        ]
        self._begin("")
        with self._open, ExitStack() as old:
            paths = [
                {kind: _path(self._directory, _FIRST, side, kind) for kind in ("ids", "lengths")}
                for side in _SIDES
            ]
            ids = [old.enter_context(path["ids"].open("rb")) for path in paths]
            lengths = [old.enter_context(path["lengths"].open("rb")) for path in paths]
            for first in range(0, total, _PAIRS_AT_A_TIME):
                keep = ~is_later[first : first + _PAIRS_AT_A_TIME]
                some, many = [], []
                for side in (0, 1):
                    raw = lengths[side].read(len(keep) * narrow.itemsize)
                    each = np.frombuffer(raw, dtype=narrow)
                    pieces = each.astype(np.int64) - 1
                    raw = ids[side].read(int(pieces.sum()) * kinds[side].itemsize)
                    flat = np.frombuffer(raw, dtype=kinds[side])
                    some.append(flat[np.repeat(keep, pieces)])
                    many.append(each[keep])
                self._append(some, many)
        del hashes
        for path in self._directory.iterdir():
            if path.name == _HASHES or path.name.startswith(f"{_FIRST}."):
                durable.remove(path)


def open_store(
    directory: Path,
    weights: Sequence[float],
    *,
    vocab_sizes: tuple[int, int] | None = None,
    max_length: int | None = None,
) -> CorpusStore:
    """The corpus that a StoreWriter wrote; as long as it is used, `locked_if_unused` is not for it.

    Args:
        directory: its folder.
        weights: how often an epoch has the pairs of each file; none for all once.
        vocab_sizes: those that it has to have.
        max_length: most pieces that a segment may have.

    Raises:
        DataError: it is torn: a file is missing, or is not as large as it should be, or lengths
            are not those that were written. Single ids are looked at when they are gathered.
    """
    with ExitStack() as on_failure:
        try:
            descriptor = _in_use(directory)
        except OSError as error:
            raise damaged(str(directory), f"{type(error).__name__}: {error}") from error
        on_failure.callback(os.close, descriptor)
        store = _opened(directory, weights, vocab_sizes, max_length)
        on_failure.pop_all()
    weakref.finalize(store, os.close, descriptor)
    return store


@contextmanager
def locked_if_unused(directory: Path) -> Iterator[None]:
    """Inside, no process has the corpus open, nor opens it.

    Raises:
        OSError: a process has it open, or that cannot be known, as where there are no locks.
    """
    with open_private(directory / PREPARED_FACTS) as file:
        if not try_lock(file.fileno()):
            raise BlockingIOError(errno.EWOULDBLOCK, "is in use", str(directory))
        yield


def _in_use(directory: Path) -> int:
    """Return an open file whose lock keeps a corpus from being removed."""
    with open_private(directory / PREPARED_FACTS) as file:
        if try_lock(file.fileno(), shared=True) is False:
            raise BlockingIOError(errno.EWOULDBLOCK, "is being removed", str(directory))
        return os.dup(file.fileno())  # which has the lock as well


def _opened(
    directory: Path,
    weights: Sequence[float],
    vocab_sizes: tuple[int, int] | None,
    max_length: int | None,
) -> CorpusStore:
    try:
        facts = _facts(directory)
        if weights and len(weights) != len(facts.files):
            raise damaged(str(directory), f"has {len(facts.files)} files, wanted {len(weights)}")
        if vocab_sizes is not None and tuple(facts.vocab_sizes) != vocab_sizes:
            raise damaged(
                str(directory), f"was made for {facts.vocab_sizes} pieces, wanted {vocab_sizes}"
            )
        maps: list[mmap.mmap] = []
        sides = []
        for side, num_pieces, kind, vocab_size in zip(
            _SIDES, facts.pieces, facts.id_types, facts.vocab_sizes, strict=True
        ):
            shapes = (
                ("ids", num_pieces, kind),
                ("starts", facts.pairs + 1, np.dtype(np.int64)),
                ("lengths", facts.pairs, facts.length_type),
            )
            arrays = [
                _mapped(_path(directory, "", side, name), count, of, maps)
                for name, count, of in shapes
            ]
            own = maps[-len(shapes) :][:2]  # lengths are looked at as a whole
            _, starts, lengths = arrays
            if lengths.min() < 1 or (max_length is not None and lengths.max() > max_length + 1):
                raise damaged(str(directory), f"lengths of the {side} are out of range")
            told = starts[0], starts[-1], lengths.sum(dtype=np.int64) - facts.pairs
            if told != (0, num_pieces, num_pieces):
                raise damaged(str(directory), f"lengths of the {side} do not sum up to its pieces")
            sides.append(
                Segments(
                    *arrays,
                    release=partial(_let_go, own),
                    vocab_size=vocab_size,
                    name=str(directory),
                )
            )
    except (OSError, ValueError) as error:
        raise damaged(str(directory), f"{type(error).__name__}: {error}") from error
    ends = np.cumsum(facts.files).tolist()
    firsts = [0, *ends[:-1]]
    each = list(weights) or [1.0] * len(ends)
    spans = [CorpusSpan(*span) for span in zip(firsts, ends, each, strict=True)]

    return CorpusStore(
        sides[0],
        sides[1],
        Counter(facts.dropped),
        spans=spans,
        sha256=facts.sha256,
        round_trips=facts.round_trips,
        tags=facts.tags,
        release=partial(_let_go, maps),
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    """What `store.json` tells, checked."""

    pairs: int
    pieces: list[int]  # of each side, like the next two
    id_types: list[np.dtype[Any]]
    vocab_sizes: list[int]
    length_type: np.dtype[Any]
    files: list[int]  # pairs of each
    dropped: dict[str, int]
    sha256: str
    round_trips: tuple[RoundTrip, ...]  # none of a corpus that 0.1.0 prepared
    tags: SourceTags


def _facts(directory: Path) -> _Facts:
    """Read and check `store.json`.

    Raises:
        OSError, ValueError: it cannot be read, or its content is wrong.
    """
    path = directory / PREPARED_FACTS
    table = parse_json_object(read_private(path, max_bytes=_MAX_FACTS_BYTES))
    if table.get("format") != FORMAT:
        raise ValueError(
            f"`{PREPARED_FACTS}` has format {table.get('format')!r:.60}, wanted {FORMAT}"
        )
    counts = {"pairs": [table.get("pairs")], "dropped": table.get("dropped")}
    if isinstance(counts["dropped"], dict):
        counts["dropped"] = list(counts["dropped"].values())
    counts |= {name: table.get(name) for name in ("pieces", "vocab_sizes", "files")}
    kinds = table.get("id_types"), [table.get("length_type")]
    for name, values in counts.items():
        if not isinstance(values, list) or not all(map(_is_count, values)):
            raise ValueError(f"`{PREPARED_FACTS}`: `{name}` is missing or no count")
    if not all(_REASON.fullmatch(reason) for reason in table["dropped"]):
        raise ValueError(f"`{PREPARED_FACTS}`: `dropped` names no reason")
    if not all(isinstance(kind, list) and all(k in _TYPES for k in kind) for kind in kinds):
        raise ValueError(f"`{PREPARED_FACTS}` names unknown types of numbers")
    if not isinstance(table.get("sha256"), str) or not _DIGEST.fullmatch(table["sha256"]):
        raise ValueError(f"`{PREPARED_FACTS}`: `sha256` is missing or no hash")
    if not table["files"] or sum(table["files"]) != table["pairs"]:
        raise ValueError(f"`{PREPARED_FACTS}` contradicts itself")
    trips = table.get("round_trips", [])
    if not isinstance(trips, list) or len(trips) not in (0, len(_SIDES)):
        raise ValueError(f"`{PREPARED_FACTS}`: `round_trips` are not of both sides")
    return _Facts(
        pairs=table["pairs"],
        pieces=table["pieces"],
        id_types=[np.dtype(kind) for kind in table["id_types"]],
        vocab_sizes=table["vocab_sizes"],
        length_type=np.dtype(table["length_type"]),
        files=table["files"],
        dropped=table["dropped"],
        sha256=table["sha256"],
        round_trips=tuple(map(RoundTrip.from_json, trips)),
        tags=SourceTags.from_json(table["tags"]) if "tags" in table else SourceTags(),
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _let_go(maps: Sequence[mmap.mmap]) -> None:
    """Give back the memory in which files were seen, where the system can."""
    for each in maps:
        if hasattr(mmap, "MADV_DONTNEED"):
            each.madvise(mmap.MADV_DONTNEED)


def _mapped(path: Path, count: int, kind: np.dtype[Any], maps: list[mmap.mmap]) -> np.ndarray:
    with open_private(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != count * kind.itemsize or not size:
            raise damaged(
                str(path.parent), f"`{path.name}` has {size} bytes of {count * kind.itemsize}"
            )
        maps.append(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    return np.frombuffer(maps[-1], dtype=kind)


def _path(directory: Path, prefix: str, side: str, kind: str) -> Path:
    return directory / ".".join(filter(None, (prefix, side, kind)))
