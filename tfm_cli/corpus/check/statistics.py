"""Statistics of a corpus in bounded memory: lengths, length ratios, repeats and unknown text."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import numpy as np

from tfm_cli.tokenizer.tokenizer import Tokenizer

_MAX_EXACT_LENGTH = 1 << 14  # longer segments share one bin
_BINS_PER_OCTAVE = 64  # ratio bins between 1 and 2, for quantiles within 1 %
_MAX_OCTAVES = 20

_BUCKET_BITS = 6
NUM_BUCKETS = 1 << _BUCKET_BITS  # one at a time is in memory: 25 MB for 100 million pairs
MAX_IN_MEMORY = 1 << 20  # pairs of 16 bytes; more are written to an unnamed file

_MAX_CAUSES = 1 << 16  # different causes of unknown tokens; with more, the rarest are dropped


class LengthCounts:
    """A histogram of segment lengths.

    Attributes:
        count: the number of segments.
        total: the sum of their lengths.
        longest: the largest length.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.longest = 0
        self._histogram = np.zeros(_MAX_EXACT_LENGTH + 1, dtype=np.int64)

    def add(self, lengths: np.ndarray) -> None:
        """Count segments."""
        if not len(lengths):
            return
        self.count += len(lengths)
        self.total += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))
        counts = np.bincount(np.minimum(lengths, _MAX_EXACT_LENGTH))
        self._histogram[: len(counts)] += counts

    @property
    def mean(self) -> float:
        """Return the mean length; 0 without segments."""
        return self.total / max(1, self.count)

    def quantile(self, share: float) -> int:
        """Return the smallest length that this share of the segments does not exceed.

        The result is exact up to 16,383; beyond, it is the largest length.
        """
        length = _first_reaching(self._histogram, share)
        return self.longest if length >= _MAX_EXACT_LENGTH else length


class RatioCounts:
    """A histogram of target length / source length, in bins that grow by 1.09 %."""

    def __init__(self) -> None:
        self.count = 0
        self._histogram = np.zeros(2 * _MAX_OCTAVES * _BINS_PER_OCTAVE, dtype=np.int64)
        self._beyond = dict.fromkeys((2, 3, 9), 0)

    def add(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Count pairs by their lengths, which must be positive."""
        if not len(sources):
            return
        self.count += len(sources)
        shorter, longer = np.minimum(sources, targets), np.maximum(sources, targets)
        for factor in self._beyond:
            self._beyond[factor] += int((longer > factor * shorter).sum())
        octaves = np.log2(targets / sources)
        bins = np.floor(octaves * _BINS_PER_OCTAVE + 0.5).astype(np.int64)
        bins += _MAX_OCTAVES * _BINS_PER_OCTAVE
        counts = np.bincount(np.clip(bins, 0, len(self._histogram) - 1))
        self._histogram[: len(counts)] += counts

    def beyond(self, factor: int) -> int:
        """Return the number of pairs with one side over 2, 3 or 9 times as long as the other."""
        return self._beyond[factor]

    def quantile(self, share: float) -> float:
        """Return the ratio that this share of the pairs does not exceed, within 0.6 %.

        The result is 0 without pairs.
        """
        if not self.count:
            return 0.0
        index = _first_reaching(self._histogram, share) - _MAX_OCTAVES * _BINS_PER_OCTAVE
        return float(2.0 ** (index / _BINS_PER_OCTAVE))


def _first_reaching(histogram: np.ndarray, share: float) -> int:
    """Return the first bin at which the cumulative count reaches this share of the total."""
    count = max(1, math.ceil(share * int(histogram.sum())))
    return int(np.searchsorted(np.cumsum(histogram), count)) if histogram.any() else 0


@dataclass(frozen=True, slots=True)
class Repeats:
    """Repetitions within a corpus.

    Attributes:
        pairs: pairs that also occur on an earlier line.
        sources: different sources.
        several_targets: sources that have more than one target.
    """

    pairs: int
    sources: int
    several_targets: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """The pairs of a corpus that another one contains, and those whose source it contains."""

    pairs: int
    sources: int


@dataclass(slots=True)
class _Chunk:
    """Pairs that were written to the file at once, sorted by bucket."""

    begin: int  # offset in the file, in bytes
    starts: np.ndarray = field(repr=False)  # (buckets + 1,) of each bucket, in pairs


class LineHashes:
    """64-bit hashes of the pairs of a corpus, in buckets by their source.

    All pairs of a source are in one bucket, so repeats and overlaps are counted bucket by bucket.
    Among 100 million lines, two have the same hash by chance with a probability of 0.0003.

    Args:
        max_in_memory: the number of pairs in memory; more are written to a file.
    """

    def __init__(self, *, max_in_memory: int = MAX_IN_MEMORY) -> None:
        self._max_in_memory = max_in_memory
        self._in_memory: list[np.ndarray] = []  # (n, 2) hashes of source and pair
        self._num_in_memory = 0
        self._chunks: list[_Chunk] = []
        self._file: BinaryIO | None = None

    def add(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Add pairs of lines."""
        # Python's hash of a string is SipHash, which is fast, with a random key for each process.
        rows = np.empty((len(sources), 2), dtype=np.int64)
        rows[:, 0] = np.fromiter(map(hash, sources), np.int64, len(sources))
        pairs = map(hash, zip(sources, targets, strict=True))
        rows[:, 1] = np.fromiter(pairs, np.int64, len(sources))
        self._in_memory.append(rows.view(np.uint64))
        self._num_in_memory += len(rows)
        if self._num_in_memory > self._max_in_memory:
            self._write_to_file()

    def buckets(self) -> Iterator[np.ndarray]:
        """Yield the hashes (n, 2) of each bucket, in arbitrary order within it."""
        rows = np.concatenate([np.empty((0, 2), dtype=np.uint64), *self._in_memory])
        self._in_memory = [rows]
        buckets = _bucket(rows)
        for bucket in range(NUM_BUCKETS):
            parts = [self._read_bucket(chunk, bucket) for chunk in self._chunks]
            yield np.concatenate([*parts, rows[buckets == bucket]])

    def close(self) -> None:
        """Close the file, which the system then removes."""
        if self._file is not None:
            self._file.close()

    def _write_to_file(self) -> None:
        if self._file is None:
            # The file stays open until `close`, since it has no name to open it by.
            self._file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - see `close`
        rows = np.concatenate(self._in_memory)
        buckets = _bucket(rows)
        counts = np.bincount(buckets, minlength=NUM_BUCKETS)
        begin = self._file.seek(0, 2)
        self._file.write(rows[np.argsort(buckets, kind="stable")].tobytes())
        self._chunks.append(_Chunk(begin, np.cumsum([0, *counts])))
        self._in_memory, self._num_in_memory = [], 0

    def _read_bucket(self, chunk: _Chunk, bucket: int) -> np.ndarray:
        assert self._file is not None
        begin, end = (int(start) * 16 for start in chunk.starts[bucket : bucket + 2])
        self._file.seek(chunk.begin + begin)
        return np.frombuffer(self._file.read(end - begin), dtype=np.uint64).reshape(-1, 2)


def repeats(corpus: LineHashes) -> Repeats:
    """Count the repetitions within a corpus."""
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
    """Count the pairs of `corpus` that `other` contains."""
    pairs = sources = 0
    for rows, known in zip(corpus.buckets(), other.buckets(), strict=True):
        sources += int(np.isin(rows[:, 0], known[:, 0]).sum())
        pairs += int(np.isin(rows[:, 1], known[:, 1]).sum())
    return Overlap(pairs, sources)


def _bucket(rows: np.ndarray) -> np.ndarray:
    return (rows[:, 0] >> np.uint64(64 - _BUCKET_BITS)).astype(np.uint8)


class UnknownTokens:
    """The number of unknown tokens on one side of a corpus, and the text that causes them.

    Args:
        tokenizer: the tokenizer of this side.

    Attributes:
        count: the number of unknown tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.count = 0
        self._tokenizer = tokenizer
        special = {tokenizer.unk_id, tokenizer.eos_id, tokenizer.start_id, *tokenizer.banned_ids}
        text = (piece for i, piece in enumerate(tokenizer.pieces) if i not in special)
        self._known = set("".join(text))
        self._causes: Counter[str] = Counter()

    def add(self, lines: Sequence[str], encoded: Sequence[Sequence[int]]) -> None:
        """Count the unknown tokens of lines, given the ids of each line."""
        unk_id = self._tokenizer.unk_id
        with_unknown = [index for index, ids in enumerate(encoded) if unk_id in ids]
        if not with_unknown:
            return
        pieces_by_line = self._tokenizer.encode_pieces([lines[index] for index in with_unknown])
        for index, pieces in zip(with_unknown, pieces_by_line, strict=True):
            for token_id, piece in zip(encoded[index], pieces, strict=True):
                if token_id == unk_id:
                    self.count += 1
                    self._causes.update(self._causes_in(piece))
        if len(self._causes) > _MAX_CAUSES:
            self._causes = Counter(dict(self._causes.most_common(_MAX_CAUSES // 2)))

    def _causes_in(self, piece: str) -> Iterator[str]:
        for word in piece.split("▁"):  # SentencePiece joins adjacent unknown text into one piece
            unknown = [character for character in word if character not in self._known]
            # The vocabulary of a word model may lack a word, but contain all of its characters.
            yield from unknown or ([word] if word else [])

    def commonest(self, number: int) -> list[tuple[str, int]]:
        """Return the most frequent causes: characters, or words of known characters only."""
        # Ties are sorted by text, so that the report is reproducible.
        return sorted(self._causes.items(), key=lambda cause: (-cause[1], cause[0]))[:number]
