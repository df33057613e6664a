"""A corpus as piece ids: two flat arrays and where each segment starts."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from tfm_cli.corpus.batching import CorpusSpan
from tfm_cli.errors import DataError
from tfm_cli.tokenizer_pair import TokenizerPair

_PAIRS_AT_A_TIME = 10_000


class Segments:
    """One side of a corpus; segment i is `ids[starts[i]:starts[i + 1]]`, without </s>."""

    def __init__(self, ids: np.ndarray, starts: np.ndarray) -> None:
        self._ids = ids
        self._starts = starts
        self.lengths = np.diff(starts) + 1  # pieces of each segment, </s> included

    def __getitem__(self, index: int) -> np.ndarray:
        return self._ids[self._starts[index] : self._starts[index + 1]]

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add all of it to a hash."""
        digest.update(self._starts.tobytes())
        digest.update(self._ids.tobytes())


class PieceStore:
    """Pairs of segments as piece ids.

    Attributes:
        source, target: the two sides.
        spans: the pairs of each training file, in their order.
        dropped: pairs that were left out, by reason.
    """

    def __init__(self, source: Segments, target: Segments, dropped: Counter[str]) -> None:
        self.source = source
        self.target = target
        self.dropped = dropped
        self.spans: tuple[CorpusSpan, ...] = ()

    def __len__(self) -> int:
        return len(self.source.lengths)

    def release(self) -> None:
        """Give back memory that can be read again."""

    def sha256(self) -> str:
        """A hash of all ids: the same for the same text and tokenizer, and for nothing else."""
        digest = hashlib.sha256()
        self.source.update_hash(digest)
        self.target.update_hash(digest)
        return digest.hexdigest()

    @staticmethod
    def build(
        pairs: Iterable[tuple[str, str]],
        tokenizers: TokenizerPair,
        *,
        max_length: int,
        name: str,
    ) -> "PieceStore":
        """Encode pairs of lines.

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
                sides[side].append(np.asarray(flat, dtype=np.int32))
        if not lengths[0]:
            counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
            raise DataError(f"{name}: 0 usable pairs" + (f", dropped: {counts}" if counts else ""))
        source, target = (
            Segments(np.concatenate(sides[side]), np.cumsum([0, *lengths[side]])) for side in (0, 1)
        )
        return PieceStore(source, target, dropped)


def _usable(pair: Sequence[list[int]], *, max_length: int, dropped: Counter[str]) -> bool:
    if not pair[0] or not pair[1]:  # nothing but characters that the normaliser removes
        dropped["blank side"] += 1
        return False
    if max(len(pair[0]), len(pair[1])) > max_length:
        dropped["too long"] += 1
        return False
    return True
