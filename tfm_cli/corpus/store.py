"""A corpus as token ids, in memory or memory-mapped, and its files.

Each side is one flat array of ids, with the start of each segment in it. On a disk, the arrays are
described by `store.json`.
"""

import errno
import hashlib
import json
import mmap
import os
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from tfm_cli.corpus.batching import CorpusSpan
from tfm_cli.corpus.encoding import EncodedBlock, encode_pairs, id_type, length_type
from tfm_cli.corpus.filters import Filters, filter_texts, repeated_hashes
from tfm_cli.corpus.line_checks import RoundTrip, SourceTags, is_count
from tfm_cli.errors import DataError, plain_reason
from tfm_cli.files import durable
from tfm_cli.files.layout import PREPARED_FACTS
from tfm_cli.files.ownership import try_lock
from tfm_cli.files.untrusted import open_private, parse_json_object, read_private
from tfm_cli.tokenizer.pair import TokenizerPair

_ENCODED_PAIRS = 10_000  # at a time
_COPIED_PAIRS = 1 << 18  # at a time
_RELEASE_AFTER = 4096  # gathered segments

FORMAT = 2
_SIDES = ("source", "target")
_KINDS = ("ids", "lengths", "starts")
_HASHES, _UNFILTERED = "pairs.hashes", "first"
_MAX_METADATA_BYTES = 4 << 20  # a count for each training file; parsed, it takes 20 times as much
_DIGEST = re.compile("[0-9a-f]{64}")
_REASON = re.compile("[A-Za-z0-9 -]{1,40}")  # why pairs were dropped; messages show it
_TYPES = tuple(np.dtype(kind).str for kind in (np.uint16, np.int32))  # see `id_type`


@dataclass(frozen=True, slots=True)
class FlatSegments:
    """Token ids of some segments without </s>, concatenated."""

    ids: np.ndarray  # (sum of lengths,)
    lengths: np.ndarray  # (B,) int64

    @staticmethod
    def of(segments: Sequence[Sequence[int] | np.ndarray]) -> "FlatSegments":
        """Concatenate the ids of segments."""
        arrays = [np.asarray(segment, dtype=np.int64) for segment in segments]
        return FlatSegments(np.concatenate(arrays), np.array([len(array) for array in arrays]))


class Segments:
    """One side of a corpus; segment i is `ids[starts[i]:starts[i + 1]]`, without </s>.

    Args:
        ids: token ids of all segments, shape (num_tokens,).
        starts: offsets in `ids`, shape (num_segments + 1,).
        lengths: tokens of each segment, including </s>; computed if None.
        release: called regularly to release the memory of mapped arrays.
        vocab_size: if given, gathered segments are checked, since they come from a disk.
        name: the name of the corpus in errors.

    Attributes:
        lengths: tokens of each segment, including </s>; uint16 if that suffices, else int32.
    """

    def __init__(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray | None = None,
        *,
        release: Callable[[], None] = lambda: None,
        vocab_size: int | None = None,
        name: str = "",
    ) -> None:
        self._vocab_size = vocab_size
        self._name = name
        self._release = release
        self._num_gathered = 0  # since memory was released
        self._ids = ids
        self._starts = starts
        if lengths is None:
            lengths = np.diff(starts) + 1
            lengths = lengths.astype(length_type(int(lengths.max(initial=0))))
        self.lengths = lengths

    @property
    def id_type(self) -> np.dtype[Any]:
        """Return the type of the ids."""
        return self._ids.dtype

    def __getitem__(self, index: int) -> np.ndarray:
        return self._ids[self._starts[index] : self._starts[index + 1]]

    def gather(self, indices: np.ndarray) -> FlatSegments:
        """Return some segments, without a Python loop over them.

        Raises:
            DataError: offsets, lengths or ids from the disk are inconsistent or out of range.
        """
        lengths = self.lengths[indices].astype(np.int64) - 1
        starts = self._starts[indices]
        if self._vocab_size is not None:
            self._check_offsets(starts, lengths, self._starts[indices + 1])
        before = np.cumsum(lengths) - lengths  # ids of the preceding segments
        positions = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
        gathered = FlatSegments(self._ids[positions].astype(np.int64), lengths)
        if self._vocab_size is not None and not _all_within(gathered.ids, self._vocab_size):
            raise _damaged(self._name, "has ids outside the vocabulary")
        self._num_gathered += len(indices)
        if self._num_gathered >= _RELEASE_AFTER:  # each may have mapped 64 KiB into memory
            self._release()
            self._num_gathered = 0
        return gathered

    def _check_offsets(self, starts: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> None:
        fits = (lengths >= 0) & (starts >= 0) & (ends <= len(self._ids))
        if not bool((fits & (starts + lengths == ends)).all()):
            raise _damaged(self._name, "has segments with wrong offsets")

    def sha256(self) -> str:
        """Return a hash of ids and lengths that does not depend on their storage."""
        digest = _SideHash()
        digest.add(self._ids, self.lengths)
        return digest.hexdigest()


class _SideHash:
    """The hash of one side of a corpus, computed part by part."""

    def __init__(self) -> None:
        self._ids = hashlib.sha256()
        self._lengths = hashlib.sha256()

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Add ids of type `id_type` and lengths."""
        self._ids.update(ids.tobytes())
        self._lengths.update(lengths.astype("<i4").tobytes())

    def hexdigest(self) -> str:
        """Return the hash of all that was added."""
        both = self._ids.digest() + self._lengths.digest()
        return hashlib.sha256(both).hexdigest()


@dataclass(frozen=True, eq=False)
class CorpusStore:
    """Pairs of segments as token ids.

    Attributes:
        source: one side.
        target: the other side.
        dropped: the number of dropped pairs, by reason.
        spans: the pairs of each training file, in order; empty for a single file.
        known_sha256: the hash of all ids, if it is known already.
        round_trips: text of each side that decoding does not restore, if it was counted.
        tags: source lines by language tag, if they were counted.
        release: releases the memory of mapped arrays, which the system reads again when needed.
    """

    source: Segments
    target: Segments
    dropped: Counter[str] = field(default_factory=Counter)
    spans: tuple[CorpusSpan, ...] = ()
    known_sha256: str = ""
    round_trips: tuple[RoundTrip, ...] = ()
    tags: SourceTags = field(default_factory=SourceTags)
    release: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.source.lengths)

    def sha256(self) -> str:
        """Return a hash of all ids, equal for the same text and tokenizer only."""
        return self.known_sha256 or _corpus_sha256(self.source.sha256(), self.target.sha256())

    @staticmethod
    def build(
        pairs: Iterable[tuple[str, str]],
        tokenizers: TokenizerPair,
        *,
        max_length: int,
        name: str,
    ) -> "CorpusStore":
        """Encode pairs of lines and hold them in memory; meant for small texts.

        Args:
            pairs: source and target text.
            tokenizers: the tokenizers of the two sides.
            max_length: pairs with more tokens than this on a side are dropped.
            name: the name of the corpus in errors.

        Raises:
            DataError: no pair is left.
        """
        filters, dropped = Filters(max_length), Counter[str]()
        parts = []
        iterator = iter(pairs)
        while lines := list(islice(iterator, _ENCODED_PAIRS)):
            sources, targets = [source for source, _ in lines], [target for _, target in lines]
            texts = filter_texts(sources, targets, filters, dropped)
            parts.append(encode_pairs(*texts, tokenizers, filters, dropped))
        if not any(len(part.lengths[0]) for part in parts):
            raise no_usable_pairs(name, dropped)
        sides = []
        for side in (0, 1):
            lengths = np.concatenate([part.lengths[side] for part in parts]).astype(np.int64)
            starts = np.concatenate([[0], np.cumsum(lengths - 1)])
            sides.append(Segments(np.concatenate([part.ids[side] for part in parts]), starts))
        return CorpusStore(sides[0], sides[1], +dropped)  # without counts of 0


def _all_within(ids: np.ndarray, vocab_size: int) -> bool:
    return not len(ids) or bool(ids.min() >= 0 and ids.max() < vocab_size)


def _damaged(name: str, reason: str) -> DataError:
    """Return the error for a corpus on disk that cannot be used."""
    return DataError(
        f"{name}: is not a complete corpus: {reason}",
        hint="remove the folder, and it will be written again",
    )


def _corpus_sha256(source: str, target: str) -> str:
    """Return the hash of a corpus, given the hashes of its sides."""
    return hashlib.sha256(f"{source}\n{target}\n".encode()).hexdigest()


def no_usable_pairs(name: str, dropped: Counter[str]) -> DataError:
    """Return the error for a corpus without usable pairs."""
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return DataError(f"{name}: 0 usable pairs" + (f", dropped: {counts}" if counts else ""))


# A corpus on disk


class StoreWriter:
    """A writer of a corpus, block by block, into an empty folder.

    Args:
        directory: the empty folder.
        vocab_sizes: the vocabulary sizes of the two sides.
        filters: duplicates are dropped at the end, when all pairs are known.
        num_files: the number of training files.
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
        self._open_files = ExitStack()
        self._hashes: IO[bytes] | None = None
        with ExitStack() as on_failure:
            on_failure.callback(self._open_files.close)
            # To drop duplicates, all pairs are written first, and then copied without them.
            self._create_arrays(_UNFILTERED if filters.duplicates else "")
            if filters.duplicates:
                self._hashes = self._create(directory / _HASHES)
            on_failure.pop_all()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._open_files.close()

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def dropped(self) -> Counter[str]:
        """Return the number of pairs that were dropped so far, by reason."""
        return self._dropped

    def add(self, encoded: EncodedBlock, *, file: int) -> None:
        """Append the pairs of a block; the blocks of a file must be consecutive."""
        self._append(encoded.ids, encoded.lengths)
        self._counts[file] += len(encoded.lengths[0])
        self._dropped.update(encoded.dropped)
        self._tags.merge(encoded.tags)
        for trip, later in zip(self._round_trips, encoded.round_trips, strict=True):
            trip.merge(later)
        if self._hashes is not None:
            self._hashes.write(encoded.hashes.tobytes())

    def finish(self) -> None:
        """Drop duplicates if the filters require it, and write `store.json`."""
        self._open_files.close()
        if self._filters.duplicates:
            self._drop_duplicates()
        table = {
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
            "sha256": _corpus_sha256(*(digest.hexdigest() for digest in self._digests)),
        }
        text = json.dumps(table, indent=1) + "\n"
        durable.write_file(self._directory / PREPARED_FACTS, text.encode())

    def _create_arrays(self, prefix: str) -> None:
        self._digests = (_SideHash(), _SideHash())
        self._totals = [0, 0]
        self._files = [
            {kind: self._create(_path(self._directory, prefix, side, kind)) for kind in _KINDS}
            for side in _SIDES
        ]
        for files in self._files:
            files["starts"].write(np.zeros(1, dtype=np.int64).tobytes())

    def _create(self, path: Path) -> IO[bytes]:
        return self._open_files.enter_context(durable.create(path))

    def _append(self, ids: Sequence[np.ndarray], lengths: Sequence[np.ndarray]) -> None:
        for side, files in enumerate(self._files):
            self._digests[side].add(ids[side], lengths[side])
            ends = self._totals[side] + np.cumsum(lengths[side].astype(np.int64) - 1)
            files["ids"].write(ids[side].tobytes())
            files["lengths"].write(lengths[side].tobytes())
            files["starts"].write(ends.tobytes())
            self._totals[side] += len(ids[side])

    def _drop_duplicates(self) -> None:
        """Copy the arrays without the pairs that occurred before."""
        hashes = np.memmap(self._directory / _HASHES, np.uint64, "r") if len(self) else np.zeros(0)
        is_repeated = repeated_hashes(hashes)
        total, counts = len(self), self._counts
        types = [id_type(size) for size in self._vocab_sizes]
        narrow = length_type(self._filters.max_length)
        self._dropped["duplicate"] += int(is_repeated.sum())
        bounds = np.cumsum([0, *counts])
        self._counts = [
            int((~is_repeated[first:end]).sum()) for first, end in pairwise(bounds.tolist())
        ]
        self._create_arrays("")
        with self._open_files, ExitStack() as unfiltered:
            ids, lengths = (
                [
                    unfiltered.enter_context(
                        _path(self._directory, _UNFILTERED, side, kind).open("rb")
                    )
                    for side in _SIDES
                ]
                for kind in ("ids", "lengths")
            )
            for first in range(0, total, _COPIED_PAIRS):
                select = ~is_repeated[first : first + _COPIED_PAIRS]
                selected_ids, selected_lengths = [], []
                for side in (0, 1):
                    raw = lengths[side].read(len(select) * narrow.itemsize)
                    side_lengths = np.frombuffer(raw, dtype=narrow)
                    num_tokens = side_lengths.astype(np.int64) - 1
                    raw = ids[side].read(int(num_tokens.sum()) * types[side].itemsize)
                    flat = np.frombuffer(raw, dtype=types[side])
                    selected_ids.append(flat[np.repeat(select, num_tokens)])
                    selected_lengths.append(side_lengths[select])
                self._append(selected_ids, selected_lengths)
        del hashes
        for path in self._directory.iterdir():
            if path.name == _HASHES or path.name.startswith(f"{_UNFILTERED}."):
                durable.remove(path)


def open_store(
    directory: Path,
    weights: Sequence[float],
    *,
    vocab_sizes: tuple[int, int] | None = None,
    max_length: int | None = None,
) -> CorpusStore:
    """Open a corpus that a StoreWriter wrote; while it is in use, it cannot be removed.

    Args:
        directory: its folder.
        weights: passes per epoch over the pairs of each file; empty for one pass over each.
        vocab_sizes: the expected sizes.
        max_length: the maximum number of tokens of a segment.

    Raises:
        DataError: a file is missing or has a wrong size, or lengths are inconsistent. Single ids
            are checked when they are gathered.
    """
    with ExitStack() as on_failure:
        try:
            descriptor = _lock_shared(directory)
        except OSError as error:
            raise _damaged(str(directory), plain_reason(error)) from error
        on_failure.callback(os.close, descriptor)
        store = _open_locked(directory, weights, vocab_sizes, max_length)
        on_failure.pop_all()
    weakref.finalize(store, os.close, descriptor)
    return store


@contextmanager
def locked_if_unused(directory: Path) -> Iterator[None]:
    """Lock a corpus that no process has open; until the end of the context, none can open it.

    Raises:
        OSError: a process has it open, or the file system has no locks.
    """
    with open_private(directory / PREPARED_FACTS) as file:
        if not try_lock(file.fileno()):
            raise BlockingIOError(errno.EWOULDBLOCK, "is in use", str(directory))
        yield


def _lock_shared(directory: Path) -> int:
    """Return a file descriptor whose lock keeps a corpus from being removed."""
    with open_private(directory / PREPARED_FACTS) as file:
        if try_lock(file.fileno(), shared=True) is False:
            raise BlockingIOError(errno.EWOULDBLOCK, "is being removed", str(directory))
        return os.dup(file.fileno())  # a duplicate shares the lock


def _open_locked(
    directory: Path,
    weights: Sequence[float],
    vocab_sizes: tuple[int, int] | None,
    max_length: int | None,
) -> CorpusStore:
    maps: list[mmap.mmap] = []
    try:
        metadata = _read_metadata(directory)
        num_files = len(metadata.files)
        if weights and len(weights) != num_files:
            raise _damaged(str(directory), f"has {num_files} files, expected {len(weights)}")
        if vocab_sizes is not None and tuple(metadata.vocab_sizes) != vocab_sizes:
            sizes = f"{metadata.vocab_sizes}, expected {list(vocab_sizes)}"
            raise _damaged(str(directory), f"has vocabularies of {sizes} tokens")
        source, target = (
            _open_side(directory, side, metadata, max_length, maps) for side in range(len(_SIDES))
        )
    except (OSError, ValueError) as error:
        raise _damaged(str(directory), plain_reason(error)) from error
    ends = np.cumsum(metadata.files).tolist()
    starts = [0, *ends[:-1]]
    file_weights = list(weights) or [1.0] * num_files
    return CorpusStore(
        source,
        target,
        Counter(metadata.dropped),
        spans=tuple(map(CorpusSpan, starts, ends, file_weights)),
        known_sha256=metadata.sha256,
        round_trips=metadata.round_trips,
        tags=metadata.tags,
        release=partial(_release, maps),
    )


def _open_side(
    directory: Path,
    side: int,
    metadata: "_Metadata",
    max_length: int | None,
    maps: list[mmap.mmap],
) -> Segments:
    """Map the arrays of one side, add the maps to `maps`, and check the lengths."""
    name, num_tokens = _SIDES[side], metadata.num_tokens[side]
    own_maps: list[mmap.mmap] = []
    ids, starts, lengths = (
        _map_array(_path(directory, "", name, kind), count, dtype, own_maps)
        for kind, count, dtype in (
            ("ids", num_tokens, metadata.id_types[side]),
            ("starts", metadata.pairs + 1, np.dtype(np.int64)),
            ("lengths", metadata.pairs, metadata.length_type),
        )
    )
    maps.extend(own_maps)
    if lengths.min() < 1 or (max_length is not None and lengths.max() > max_length + 1):
        raise _damaged(str(directory), f"lengths of the {name} are out of range")
    totals = starts[0], starts[-1], lengths.sum(dtype=np.int64) - metadata.pairs
    if totals != (0, num_tokens, num_tokens):
        raise _damaged(str(directory), f"lengths of the {name} do not add up to its tokens")
    return Segments(
        ids,
        starts,
        lengths,
        release=partial(_release, own_maps[:2]),  # all lengths remain in use
        vocab_size=metadata.vocab_sizes[side],
        name=str(directory),
    )


@dataclass(frozen=True, slots=True)
class _Metadata:
    """The checked content of `store.json`."""

    pairs: int
    num_tokens: list[int]  # by side, as the next two are
    id_types: list[np.dtype[Any]]
    vocab_sizes: list[int]
    length_type: np.dtype[Any]
    files: list[int]  # pairs of each
    dropped: dict[str, int]
    sha256: str
    round_trips: tuple[RoundTrip, ...]  # empty in a corpus that tfm 0.1.0 wrote
    tags: SourceTags


def _read_metadata(directory: Path) -> _Metadata:
    """Read and check `store.json`.

    Raises:
        OSError, ValueError: it cannot be read, or its content is wrong.
    """
    path = directory / PREPARED_FACTS
    table = parse_json_object(read_private(path, max_bytes=_MAX_METADATA_BYTES))
    if table.get("format") != FORMAT:
        raise ValueError(
            f"`{PREPARED_FACTS}` has format {table.get('format')!r:.60}, expected {FORMAT}"
        )
    counts = {"pairs": [table.get("pairs")], "dropped": table.get("dropped")}
    if isinstance(counts["dropped"], dict):
        counts["dropped"] = list(counts["dropped"].values())
    counts |= {name: table.get(name) for name in ("pieces", "vocab_sizes", "files")}
    types = table.get("id_types"), [table.get("length_type")]
    for name, values in counts.items():
        if not isinstance(values, list) or not all(map(is_count, values)):
            raise ValueError(f"`{PREPARED_FACTS}`: `{name}` is missing or not a count")
    if not all(_REASON.fullmatch(reason) for reason in table["dropped"]):
        raise ValueError(f"`{PREPARED_FACTS}`: a key of `dropped` is not a reason")
    if not all(isinstance(kind, list) and all(k in _TYPES for k in kind) for kind in types):
        raise ValueError(f"`{PREPARED_FACTS}` has unknown number types")
    if not isinstance(table.get("sha256"), str) or not _DIGEST.fullmatch(table["sha256"]):
        raise ValueError(f"`{PREPARED_FACTS}`: `sha256` is missing or not a hash")
    if not all(len(table[name]) == len(_SIDES) for name in ("pieces", "id_types", "vocab_sizes")):
        raise ValueError(f"`{PREPARED_FACTS}`: a list does not have one entry for each side")
    if not table["files"] or sum(table["files"]) != table["pairs"]:
        raise ValueError(f"`{PREPARED_FACTS}` contradicts itself")
    trips = table.get("round_trips", [])
    if not isinstance(trips, list) or len(trips) not in (0, len(_SIDES)):
        raise ValueError(f"`{PREPARED_FACTS}`: `round_trips` does not have one entry for each side")
    return _Metadata(
        pairs=table["pairs"],
        num_tokens=table["pieces"],
        id_types=[np.dtype(kind) for kind in table["id_types"]],
        vocab_sizes=table["vocab_sizes"],
        length_type=np.dtype(table["length_type"]),
        files=table["files"],
        dropped=table["dropped"],
        sha256=table["sha256"],
        round_trips=tuple(map(RoundTrip.from_json, trips)),
        tags=SourceTags.from_json(table["tags"]) if "tags" in table else SourceTags(),
    )


def _release(maps: Sequence[mmap.mmap]) -> None:
    """Release the memory of mapped files, where the system can."""
    for each in maps:
        if hasattr(mmap, "MADV_DONTNEED"):
            each.madvise(mmap.MADV_DONTNEED)


def _map_array(path: Path, count: int, dtype: np.dtype[Any], maps: list[mmap.mmap]) -> np.ndarray:
    with open_private(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != count * dtype.itemsize or not size:
            raise _damaged(
                str(path.parent), f"`{path.name}` has {size} bytes of {count * dtype.itemsize}"
            )
        maps.append(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    return np.frombuffer(maps[-1], dtype=dtype)


def _path(directory: Path, prefix: str, side: str, kind: str) -> Path:
    return directory / ".".join(filter(None, (prefix, side, kind)))
