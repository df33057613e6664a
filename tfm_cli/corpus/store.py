"""A corpus as piece ids: of each side one flat array, and where each segment starts in it."""

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
_GATHERED_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class FlatSegments:
    """Segments as piece ids without </s>, one after the other."""

    ids: np.ndarray  # (sum of lengths,)
    lengths: np.ndarray  # (B,) int64

    @staticmethod
    def of(segments: Sequence[Sequence[int] | np.ndarray]) -> "FlatSegments":
        """From ids of each segment."""
        arrays = [np.asarray(segment, dtype=np.int64) for segment in segments]
        return FlatSegments(np.concatenate(arrays), np.array([len(array) for array in arrays]))


class Segments:
    """One side of a corpus; segment i is `ids[starts[i]:starts[i + 1]]`, without </s>.

    Attributes:
        lengths: pieces of each segment, </s> included; uint16 where that suffices, else int32.
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
        """As above; with `vocab_size`, what is gathered from the disk is looked at first."""
        self._vocab_size = vocab_size
        self._name = name
        self._release = release
        self._gathered = 0  # segments since memory was released
        self._ids = ids
        self._starts = starts
        if lengths is None:
            lengths = np.diff(starts) + 1
            lengths = lengths.astype(length_type(int(lengths.max(initial=0))))
        self.lengths = lengths

    def __getitem__(self, index: int) -> np.ndarray:
        return self._ids[self._starts[index] : self._starts[index + 1]]

    def gather(self, indices: np.ndarray) -> FlatSegments:
        """Some segments, without a step of Python for each.

        Raises:
            DataError: what the disk holds is damaged, as far as that shows.
        """
        lengths = self.lengths[indices].astype(np.int64) - 1
        starts = self._starts[indices]
        if self._vocab_size is not None:
            self._check_places(starts, lengths, self._starts[indices + 1])
        before = np.cumsum(lengths) - lengths  # ids of the segments before each
        places = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
        gathered = FlatSegments(self._ids[places].astype(np.int64), lengths)
        if self._vocab_size is not None and not _all_within(gathered.ids, self._vocab_size):
            raise damaged(self._name, "has ids that the tokenizer does not have")
        self._gathered += len(indices)
        if self._gathered >= _GATHERED_AT_A_TIME:  # each may have brought 64 KiB into memory
            self._release()
            self._gathered = 0
        return gathered

    def _check_places(self, starts: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> None:
        fits = (lengths >= 0) & (starts >= 0) & (ends <= len(self._ids))
        if not bool((fits & (starts + lengths == ends)).all()):
            raise damaged(self._name, "has segments that are not where they should be")

    def sha256(self) -> str:
        """A hash of ids and lengths, which does not depend on how they are stored."""
        digest = SideHash()
        digest.add(self._ids, self.lengths)
        return digest.hexdigest()


class SideHash:
    """The hash of one side of a corpus, part by part; a class because it is fed."""

    def __init__(self) -> None:
        self._ids = hashlib.sha256()
        self._lengths = hashlib.sha256()

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Add ids, of the type that suits the vocabulary, and lengths."""
        self._ids.update(ids.tobytes())
        self._lengths.update(lengths.astype("<i4").tobytes())

    def hexdigest(self) -> str:
        """That of all that was added."""
        both = self._ids.digest() + self._lengths.digest()
        return hashlib.sha256(both).hexdigest()


class CorpusStore:
    """Pairs of segments as piece ids.

    Attributes:
        source, target: the two sides.
        dropped: pairs that were left out, by reason.
        spans: the pairs of each training file, in their order; without any, all are of one.
        round_trips: what source and target lost when they were encoded, where that was counted.
        tags: source lines by their language tags, where they were counted.
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
        """As above; `sha256` where it is known, `release` for what is mapped."""
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
        """A hash of all ids: the same for the same text and tokenizer, and for nothing else."""
        return self._sha256 or corpus_sha256(self.source.sha256(), self.target.sha256())

    def release(self) -> None:
        """Give back the memory in which the disk's content was seen; what is used comes again."""
        self._release()

    @staticmethod
    def build(
        pairs: Iterable[tuple[str, str]],
        tokenizers: TokenizerPair,
        *,
        max_length: int,
        name: str,
    ) -> "CorpusStore":
        """Encode pairs of lines and hold them in memory: for a small text.

        Args:
            pairs: source and target text.
            tokenizers: of the two sides.
            max_length: pairs with more pieces than this on a side are dropped and counted.
            name: what messages call the corpus.

        Raises:
            DataError: no pair is left.
        """
        dropped: Counter[str] = Counter()
        sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        lengths: tuple[list[int], list[int]] = ([], [])
        kinds = [id_type(size) for size in tokenizers.vocab_sizes]
        iterator = iter(pairs)
        while lines := list(islice(iterator, _PAIRS_AT_A_TIME)):
            some = [pair for pair in lines if pair[0].strip() and pair[1].strip()]
            dropped["blank side"] += len(lines) - len(some)
            encoded = [
                tokenizers.source.encode([source for source, _ in some]),
                tokenizers.target.encode([target for _, target in some]),
            ]
            kept = [
                pair
                for pair in zip(*encoded, strict=True)
                if _usable(pair, max_length=max_length, dropped=dropped)
            ]
            for side in (0, 1):
                lengths[side].extend(len(pair[side]) for pair in kept)
                flat = [piece for pair in kept for piece in pair[side]]
                sides[side].append(np.asarray(flat, dtype=kinds[side]))
        if not lengths[0]:
            raise no_usable_pairs(name, dropped)
        source, target = (
            Segments(np.concatenate(sides[side]), np.cumsum([0, *lengths[side]])) for side in (0, 1)
        )
        return CorpusStore(source, target, dropped)


def _all_within(ids: np.ndarray, vocab_size: int) -> bool:
    return not len(ids) or bool(ids.min() >= 0 and ids.max() < vocab_size)


def damaged(name: str, told: str) -> DataError:
    """What to say of a corpus on a disk that cannot be used."""
    return DataError(
        f"{name}: is no whole corpus: {told}", hint="remove the folder, it is made anew"
    )


def corpus_sha256(source: str, target: str) -> str:
    """The hash of a corpus from those of its sides."""
    return hashlib.sha256(f"{source}\n{target}\n".encode()).hexdigest()


def no_usable_pairs(name: str, dropped: Counter[str]) -> DataError:
    """What to say where nothing is left to learn from."""
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return DataError(f"{name}: 0 usable pairs" + (f", dropped: {counts}" if counts else ""))


def _usable(pair: Sequence[list[int]], *, max_length: int, dropped: Counter[str]) -> bool:
    if not pair[0] or not pair[1]:  # nothing but characters that the normaliser removes
        dropped["blank side"] += 1
        return False
    if max(len(pair[0]), len(pair[1])) > max_length:
        dropped["too long"] += 1
        return False
    return True
