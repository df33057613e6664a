"""How long segments are and how much longer than the other side, in tables of a fixed size."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import numpy as np

from tfm_cli.tokenizer.tokenizer import Tokenizer

_MAX_EXACT = 1 << 14  # longer segments are one class, of which the longest is known
_STEPS = 64  # classes of ratios from 1 to 2, so that a quantile is known to 1 %
_MAX_POWER = 20


class LengthCounts:
    """Lengths of segments, counted by length.

    Attributes:
        count, total, longest: of all segments so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.longest = 0
        self._table = np.zeros(_MAX_EXACT + 1, dtype=np.int64)

    def add(self, lengths: np.ndarray) -> None:
        """Count segments."""
        if not len(lengths):
            return
        self.count += len(lengths)
        self.total += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))
        found = np.bincount(np.minimum(lengths, _MAX_EXACT))
        self._table[: len(found)] += found

    @property
    def mean(self) -> float:
        """0 where there are no segments."""
        return self.total / max(1, self.count)

    def quantile(self, share: float) -> int:
        """The smallest length that this share of the segments does not exceed.

        Exact up to 16,383; beyond, the longest length stands in.
        """
        length = _first_reaching(self._table, share)
        return self.longest if length >= _MAX_EXACT else length


class RatioCounts:
    """Target's length divided by the source's, counted in classes that grow by 1.09 %."""

    def __init__(self) -> None:
        self.count = 0
        self._table = np.zeros(2 * _MAX_POWER * _STEPS, dtype=np.int64)
        self._beyond = dict.fromkeys((2, 3, 9), 0)

    def add(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Count pairs by their lengths, none of which may be 0."""
        if not len(sources):
            return
        self.count += len(sources)
        shorter, longer = np.minimum(sources, targets), np.maximum(sources, targets)
        for factor in self._beyond:
            self._beyond[factor] += int((longer > factor * shorter).sum())
        power = np.log2(targets / sources) * _STEPS
        place = np.floor(power + 0.5).astype(np.int64) + _MAX_POWER * _STEPS
        found = np.bincount(np.clip(place, 0, len(self._table) - 1))
        self._table[: len(found)] += found

    def beyond(self, factor: int) -> int:
        """Pairs of which one side is more than 2, 3 or 9 times as long as the other."""
        return self._beyond[factor]

    def quantile(self, share: float) -> float:
        """The ratio that this share of the pairs does not exceed, within 0.6 %; 0 without pairs."""
        if not self.count:
            return 0.0
        place = _first_reaching(self._table, share) - _MAX_POWER * _STEPS
        return float(2.0 ** (place / _STEPS))


def _first_reaching(table: np.ndarray, share: float) -> int:
    wanted = max(1, math.ceil(share * int(table.sum())))
    return int(np.searchsorted(np.cumsum(table), wanted)) if table.any() else 0


# Which pairs of a corpus occur twice, or in another corpus: exact, in bounded memory.
#
# A line is known by a 64-bit hash: of 100 million lines, two have the same one by chance with a
# probability of 0.0003.

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


# Which text a tokenizer does not know, and the characters that are the cause.

_MAX_KINDS = 1 << 16  # as many are told apart; beyond, the rarest are forgotten


class UnknownPieces:
    """Counts unknown pieces of one side of a corpus.

    Attributes:
        count: unknown pieces so far.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.count = 0
        self._tokenizer = tokenizer
        special = {tokenizer.unk_id, tokenizer.eos_id, tokenizer.start_id, *tokenizer.banned_ids}
        text = (piece for i, piece in enumerate(tokenizer.pieces) if i not in special)
        self._known = set("".join(text))
        self._causes: Counter[str] = Counter()

    def add(self, lines: Sequence[str], encoded: Sequence[Sequence[int]]) -> None:
        """Count the unknown pieces of lines, whose ids are given."""
        unk_id = self._tokenizer.unk_id
        some = [index for index, ids in enumerate(encoded) if unk_id in ids]
        if not some:
            return
        written = self._tokenizer.encode_pieces([lines[index] for index in some])
        for index, pieces in zip(some, written, strict=True):
            for number, piece in zip(encoded[index], pieces, strict=True):
                if number == unk_id:
                    self.count += 1
                    self._causes.update(self._causes_in(piece))
        if len(self._causes) > _MAX_KINDS:
            self._causes = Counter(dict(self._causes.most_common(_MAX_KINDS // 2)))

    def _causes_in(self, piece: str) -> Iterator[str]:
        for word in piece.split("▁"):  # neighbours that are unknown are one piece
            unknown = [character for character in word if character not in self._known]
            # A tokenizer of words may know all characters of a word, but not the word.
            yield from unknown or ([word] if word else [])

    def commonest(self, number: int) -> list[tuple[str, int]]:
        """What causes them most often: characters, or words whose characters are all known."""
        # Equal counts by their text, so that the report is the same each time.
        return sorted(self._causes.items(), key=lambda cause: (-cause[1], cause[0]))[:number]
