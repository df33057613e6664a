"""The assignment of pairs to batches, and their order as a pure function of seed and epoch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tfm_cli.corpus.random_key import random_key
from tfm_cli.corpus.token_budget import token_batches

if TYPE_CHECKING:
    from tfm_cli.corpus.store import FlatSegments

POOL_PAIRS = 1 << 19
_BLOCK_PAIRS = 1 << 8  # adjacent pairs on disk that stay in one pool


@dataclass(frozen=True, slots=True)
class CorpusSpan:
    """The index range of the pairs of one training file, and its passes per epoch."""

    first: int
    end: int  # exclusive
    weight: float = 1.0


class Lengths(Protocol):
    """The tokens of segments, including </s>, by the index of the pair."""

    def __getitem__(self, pairs: np.ndarray, /) -> np.ndarray:
        """Return the lengths of some segments, in any order."""


class Side(Protocol):
    """The segments of one side of a text, by the index of the pair."""

    @property
    def lengths(self) -> Lengths:
        """Return the tokens of each segment, including </s>."""

    def gather(self, indices: np.ndarray) -> "FlatSegments":
        """Return the ids of some segments, in any order."""


class PairText(Protocol):
    """The text of pairs: a corpus, or the text of a pool in one epoch."""

    @property
    def source(self) -> Side:
        """Return one side."""

    @property
    def target(self) -> Side:
        """Return the other side."""


# Returns the text of pairs, given by ascending indices, in an epoch.
Sampling = Callable[[int, np.ndarray], PairText]


class BatchOrder:
    """The batches of every epoch, computed from the lengths of all pairs.

    An epoch is cut into pools of about half a million pairs, each drawn from the whole corpus in
    short runs of adjacent pairs. Within a pool, pairs of similar lengths on both sides are batched
    together to reduce padding; ties and the order of the batches are shuffled in each epoch.
    Memory therefore depends on the pool size rather than the corpus size, and a run can resume at
    any pool and batch without replaying earlier ones. A corpus that fits one pool is shuffled as a
    whole.

    Args:
        source_lengths: tokens of each source, including </s>, shape (num_pairs,).
        target_lengths: the same for the targets.
        max_tokens: as in `token_batches`.
        seed: the seed of the run.
        spans: the weight of each training file; empty if all pairs occur once per epoch.
        pool_pairs: the maximum size of a pool.
        sampling: samples the text of each epoch; None if it is always that of the corpus.
    """

    def __init__(
        self,
        source_lengths: np.ndarray,
        target_lengths: np.ndarray,
        *,
        max_tokens: int,
        seed: int,
        spans: Sequence[CorpusSpan] = (),
        pool_pairs: int = POOL_PAIRS,
        sampling: Sampling | None = None,
    ) -> None:
        self._source = source_lengths
        self._target = target_lengths
        self._max_tokens = max_tokens
        self._seed = seed
        self._spans = spans if any(span.weight != 1 for span in spans) else ()
        self.num_pools = max(1, -(-len(source_lengths) // pool_pairs))
        self._sampling = sampling
        self._cached: tuple[tuple[int, int], list[np.ndarray], PairText | None] | None = None

    @property
    def is_sampled(self) -> bool:
        """Return True if the text differs between epochs."""
        return self._sampling is not None

    def batches(self, epoch: int, pool: int) -> list[np.ndarray]:
        """Return the batches of a pool as arrays of pair indices.

        Over the pools of an epoch, each pair is in exactly one batch, or in as many as its weight
        demands.

        Args:
            epoch: counted from 0.
            pool: counted from 0, below `num_pools`.
        """
        return self._batches_and_text(epoch, pool)[0]

    def text(self, epoch: int, pool: int) -> PairText | None:
        """Return the sampled text of a pool; None if it is that of the corpus."""
        return self._batches_and_text(epoch, pool)[1] if self.is_sampled else None

    def _batches_and_text(self, epoch: int, pool: int) -> tuple[list[np.ndarray], PairText | None]:
        cached = self._cached  # a run needs its first pool three times
        if cached is None or cached[0] != (epoch, pool):
            self._cached = None  # a pool takes memory
            cached = (epoch, pool), *self._compute_batches(epoch, pool)
            self._cached = cached
        return cached[1:]

    def _compute_batches(self, epoch: int, pool: int) -> tuple[list[np.ndarray], PairText | None]:
        key = ("epoch", self._seed, epoch, pool) if pool else ("epoch", self._seed, epoch)
        rng = np.random.Generator(np.random.PCG64(random_key(*key)))
        members = self._members(epoch, pool)
        permutation = rng.permutation(len(members))
        shuffled = members[permutation]
        # Memory-mapped lengths are read in the order of the disk, then shuffled in memory.
        text = None if self._sampling is None else self._sampling(epoch, members)
        lengths: tuple[Lengths, Lengths] = (self._source, self._target)
        if text is not None:
            lengths = (text.source.lengths, text.target.lengths)
        source, target = (each[members].astype(np.int32)[permutation] for each in lengths)
        # Source lengths ascend within one target length and descend within the next, so that they
        # do not jump where the target length changes.
        order = np.lexsort((np.where(target % 2, source, -source), target))
        batches = token_batches(
            source[order].tolist(), target[order].tolist(), max_tokens=self._max_tokens
        )
        ordered = shuffled[order]
        return [ordered[batches[i]] for i in rng.permutation(len(batches))], text

    def _members(self, epoch: int, pool: int) -> np.ndarray:
        """Return the pair indices of a pool, ascending; an index is repeated by its weight."""
        num_pairs = len(self._source)
        if self.num_pools == 1:
            members = np.arange(num_pairs)
        else:
            num_blocks = -(-num_pairs // _BLOCK_PAIRS)
            rng = np.random.Generator(np.random.PCG64(random_key("pools", self._seed, epoch)))
            shuffled = rng.permutation(num_blocks)
            blocks = np.sort(np.array_split(shuffled, self.num_pools)[pool])
            members = (blocks[:, None] * _BLOCK_PAIRS + np.arange(_BLOCK_PAIRS)).reshape(-1)
            members = members[members < num_pairs]
        if not self._spans:
            return members
        ends = np.array([span.end for span in self._spans])
        weights = np.array([span.weight for span in self._spans])
        weight = weights[np.searchsorted(ends, members, side="right")]
        # By the end of n epochs, a pair has occurred floor(u + n * weight) times, with its own u in
        # [0, 1). With a weight of 0.5, each epoch thus takes half of the pairs, and each pair
        # occurs in every other epoch.
        offset = _uniform(members, random_key("weights", self._seed))
        before, after = np.floor(offset + epoch * weight), np.floor(offset + (epoch + 1) * weight)
        return np.repeat(members, (after - before).astype(np.int64))


def _uniform(indices: np.ndarray, key: int) -> np.ndarray:
    """Return a number in [0, 1) for each index and key."""
    bits = scrambled(indices, np.uint64(key))
    uniform: np.ndarray = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform


def scrambled(indices: np.ndarray, keys: np.ndarray | np.uint64) -> np.ndarray:
    """Return 64 random bits for each index and key, uint64 (SplitMix64: Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x: np.ndarray = indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + keys
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def padding_share(
    batches: Sequence[np.ndarray], source_lengths: Lengths, target_lengths: Lengths
) -> float:
    """Return the share of padding in the padded batches, both sides together."""
    real, padded = 0, 0
    for batch in batches:
        for lengths in (source_lengths[batch], target_lengths[batch]):
            real += int(lengths.sum())
            padded += int(lengths.max()) * len(lengths)
    return 1 - real / padded if padded else 0.0
