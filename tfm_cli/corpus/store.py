"""A corpus as token ids: for each side one flat array, and the start of each segment in it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tfm_cli.corpus.batching import CorpusSpan
from tfm_cli.corpus.encoding import id_type, length_type
from tfm_cli.corpus.line_checks import RoundTrip, SourceTags
from tfm_cli.errors import DataError
from tfm_cli.tokenizer.pair import TokenizerPair

_PAIRS_AT_A_TIME = 10_000
_RELEASE_AFTER = 4096  # gathered segments


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
            raise damaged(self._name, "has ids that the tokenizer does not have")
        self._num_gathered += len(indices)
        if self._num_gathered >= _RELEASE_AFTER:  # each may have mapped 64 KiB into memory
            self._release()
            self._num_gathered = 0
        return gathered

    def _check_offsets(self, starts: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> None:
        fits = (lengths >= 0) & (starts >= 0) & (ends <= len(self._ids))
        if not bool((fits & (starts + lengths == ends)).all()):
            raise damaged(self._name, "has segments with wrong offsets")

    def sha256(self) -> str:
        """Return a hash of ids and lengths that does not depend on their storage."""
        digest = SideHash()
        digest.add(self._ids, self.lengths)
        return digest.hexdigest()


class SideHash:
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


class CorpusStore:
    """Pairs of segments as token ids.

    Args:
        source: one side.
        target: the other side.
        dropped: the number of dropped pairs, by reason.
        spans: the pairs of each training file, in order; empty for a single file.
        sha256: the hash of all ids, if it is known already.
        round_trips: text of each side that decoding does not restore, if it was counted.
        tags: source lines by language tag, if they were counted.
        release: releases the memory of mapped arrays.
    """

    def __init__(
        self,
        source: Segments,
        target: Segments,
        dropped: Counter[str],
        *,
        spans: Sequence[CorpusSpan] = (),
        sha256: str = "",
        round_trips: Sequence[RoundTrip] = (),
        tags: SourceTags | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.source = source
        self.target = target
        self.dropped = dropped
        self.spans = tuple(spans)
        self.round_trips = tuple(round_trips)
        self.tags = tags or SourceTags()
        self._sha256 = sha256
        self._release = release

    def __len__(self) -> int:
        return len(self.source.lengths)

    def sha256(self) -> str:
        """Return a hash of all ids, equal for the same text and tokenizer only."""
        return self._sha256 or corpus_sha256(self.source.sha256(), self.target.sha256())

    def release(self) -> None:
        """Release the memory of mapped arrays; the system reads them again when they are used."""
        self._release()

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
        dropped: Counter[str] = Counter()
        sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        lengths: tuple[list[int], list[int]] = ([], [])
        types = [id_type(size) for size in tokenizers.vocab_sizes]
        iterator = iter(pairs)
        while lines := list(islice(iterator, _PAIRS_AT_A_TIME)):
            with_text = [pair for pair in lines if pair[0].strip() and pair[1].strip()]
            dropped["blank side"] += len(lines) - len(with_text)
            encoded = [
                tokenizers.source.encode([source for source, _ in with_text]),
                tokenizers.target.encode([target for _, target in with_text]),
            ]
            usable = [
                pair
                for pair in zip(*encoded, strict=True)
                if _is_usable(pair, max_length=max_length, dropped=dropped)
            ]
            for side in (0, 1):
                lengths[side].extend(len(pair[side]) for pair in usable)
                flat = [token for pair in usable for token in pair[side]]
                sides[side].append(np.asarray(flat, dtype=types[side]))
        if not lengths[0]:
            raise no_usable_pairs(name, dropped)
        source, target = (
            Segments(np.concatenate(sides[side]), np.cumsum([0, *lengths[side]])) for side in (0, 1)
        )
        return CorpusStore(source, target, dropped)


def _all_within(ids: np.ndarray, vocab_size: int) -> bool:
    return not len(ids) or bool(ids.min() >= 0 and ids.max() < vocab_size)


def damaged(name: str, reason: str) -> DataError:
    """Return the error for a corpus on disk that cannot be used."""
    return DataError(
        f"{name}: is not a complete corpus: {reason}",
        hint="remove the folder, and it will be written again",
    )


def corpus_sha256(source: str, target: str) -> str:
    """Return the hash of a corpus, given the hashes of its sides."""
    return hashlib.sha256(f"{source}\n{target}\n".encode()).hexdigest()


def no_usable_pairs(name: str, dropped: Counter[str]) -> DataError:
    """Return the error for a corpus without usable pairs."""
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return DataError(f"{name}: 0 usable pairs" + (f", dropped: {counts}" if counts else ""))


def _is_usable(pair: Sequence[list[int]], *, max_length: int, dropped: Counter[str]) -> bool:
    if not pair[0] or not pair[1]:  # the normalizer removed every character
        dropped["blank side"] += 1
        return False
    if max(len(pair[0]), len(pair[1])) > max_length:
        dropped["too long"] += 1
        return False
    return True
