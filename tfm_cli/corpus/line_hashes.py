"""Which pairs of a corpus occur twice, or in another corpus: exact, in bounded memory.

A line is known by a 64-bit hash: of 100 million lines, two have the same one by chance with a
probability of 0.0003.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import numpy as np

_BITS = 6
NUM_BUCKETS = 1 << _BITS  # one is held in memory: of 100 million pairs, 25 MB
MAX_IN_MEMORY = 1 << 20  # pairs of 16 bytes; beyond, they go to a file without a name


@dataclass(frozen=True, slots=True)
class Repeats:
    """How often a corpus says the same again.

    Attributes:
        pairs: pairs that an earlier line had already.
        sources: different sources.
        several_targets: sources that have more than one target.
    """

    pairs: int
    sources: int
    several_targets: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of a corpus stands in another one: pairs, and pairs whose source does."""

    pairs: int
    sources: int


@dataclass(slots=True)
class _Chunk:
    """What went to the file at once: its buckets one after the other."""

    begin: int
    starts: np.ndarray = field(repr=False)  # (buckets + 1,) in pairs


class LineHashes:
    """The hashes of the pairs of a corpus, in buckets by their source.

    A source is in one bucket with all its pairs, so a bucket can be looked at by itself.
    """

    def __init__(self, *, max_in_memory: int = MAX_IN_MEMORY) -> None:
        self._max_in_memory = max_in_memory
        self._held: list[np.ndarray] = []  # (n, 2) hashes of source and pair
        self._num_held = 0
        self._chunks: list[_Chunk] = []
        self._file: BinaryIO | None = None

    def add(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Note pairs of lines."""
        # Python's hash of a string is SipHash, keyed anew by each process, and quick.
        rows = np.empty((len(sources), 2), dtype=np.int64)
        rows[:, 0] = np.fromiter(map(hash, sources), np.int64, len(sources))
        pairs = map(hash, zip(sources, targets, strict=True))
        rows[:, 1] = np.fromiter(pairs, np.int64, len(sources))
        self._held.append(rows.view(np.uint64))
        self._num_held += len(rows)
        if self._num_held > self._max_in_memory:
            self._put_aside()

    def buckets(self) -> Iterator[np.ndarray]:
        """The hashes (n, 2) of each bucket, in no order inside."""
        held = np.concatenate([np.empty((0, 2), dtype=np.uint64), *self._held])
        self._held = [held]
        number = _bucket(held)
        for bucket in range(NUM_BUCKETS):
            parts = [self._part(chunk, bucket) for chunk in self._chunks]
            yield np.concatenate([*parts, held[number == bucket]])

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()

    def _put_aside(self) -> None:
        if self._file is None:
            # It stays open as long as there are pairs to be found in it.
            self._file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - see `close`
        rows = np.concatenate(self._held)
        number = _bucket(rows)
        counts = np.bincount(number, minlength=NUM_BUCKETS)
        begin = self._file.seek(0, 2)
        self._file.write(rows[np.argsort(number, kind="stable")].tobytes())
        self._chunks.append(_Chunk(begin, np.cumsum([0, *counts])))
        self._held, self._num_held = [], 0

    def _part(self, chunk: _Chunk, bucket: int) -> np.ndarray:
        assert self._file is not None
        begin, end = (int(place) * 16 for place in chunk.starts[bucket : bucket + 2])
        self._file.seek(chunk.begin + begin)
        return np.frombuffer(self._file.read(end - begin), dtype=np.uint64).reshape(-1, 2)


def repeats(corpus: LineHashes) -> Repeats:
    """What a corpus has twice."""
    pairs = sources = several = 0
    for rows in corpus.buckets():
        if not len(rows):
            continue
        ordered = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        new_source = np.append(True, ordered[1:, 0] != ordered[:-1, 0])
        new_pair = new_source | np.append(True, ordered[1:, 1] != ordered[:-1, 1])
        targets = np.add.reduceat(new_pair, np.flatnonzero(new_source), dtype=np.int64)
        pairs += int(len(rows) - new_pair.sum())
        sources += len(targets)
        several += int((targets > 1).sum())
    return Repeats(pairs, sources, several)


def overlap(corpus: LineHashes, other: LineHashes) -> Overlap:
    """How much of `corpus` stands in `other`."""
    pairs = sources = 0
    for rows, known in zip(corpus.buckets(), other.buckets(), strict=True):
        sources += int(np.isin(rows[:, 0], known[:, 0]).sum())
        pairs += int(np.isin(rows[:, 1], known[:, 1]).sum())
    return Overlap(pairs, sources)


def _bucket(rows: np.ndarray) -> np.ndarray:
    return (rows[:, 0] >> np.uint64(64 - _BITS)).astype(np.uint8)
