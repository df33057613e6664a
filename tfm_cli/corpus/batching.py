"""The assignment of pairs to batches, and their order as a pure function of seed and epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfm_cli.corpus.random_key import random_key
from tfm_cli.corpus.token_budget import token_batches

POOL_PAIRS = 1 << 19
_BLOCK_PAIRS = 1 << 8  # adjacent pairs on disk that stay in one pool


@dataclass(frozen=True, slots=True)
class CorpusSpan:
    """The index range of the pairs of one training file, and its passes per epoch."""

    first: int
    end: int  # exclusive
    weight: float = 1.0


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
    ) -> None:
        self._source = source_lengths
        self._target = target_lengths
        self._max_tokens = max_tokens
        self._seed = seed
        self._spans = spans if any(span.weight != 1 for span in spans) else ()
        self.num_pools = max(1, -(-len(source_lengths) // pool_pairs))
        self._cached: tuple[tuple[int, int], list[np.ndarray]] | None = None

    def batches(self, epoch: int, pool: int) -> list[np.ndarray]:
        """Return the batches of a pool as arrays of pair indices.

        Over the pools of an epoch, each pair is in exactly one batch, or in as many as its weight
        demands.

        Args:
            epoch: counted from 0.
            pool: counted from 0, below `num_pools`.
        """
        cached = self._cached  # a run needs its first pool three times
        if cached is None or cached[0] != (epoch, pool):
            cached = (epoch, pool), self._compute_batches(epoch, pool)
            self._cached = cached
        return cached[1]

    def _compute_batches(self, epoch: int, pool: int) -> list[np.ndarray]:
        key = ("epoch", self._seed, epoch, pool) if pool else ("epoch", self._seed, epoch)
        rng = np.random.Generator(np.random.PCG64(random_key(*key)))
        members = self._members(epoch, pool)
        permutation = rng.permutation(len(members))
        shuffled = members[permutation]
        # Memory-mapped lengths are read in the order of the disk, then shuffled in memory.
        source = self._source[members].astype(np.int32)[permutation]
        target = self._target[members].astype(np.int32)[permutation]
        # Source lengths ascend within one target length and descend within the next, so that they
        # do not jump where the target length changes.
        order = np.lexsort((np.where(target % 2, source, -source), target))
        batches = token_batches(
            source[order].tolist(), target[order].tolist(), max_tokens=self._max_tokens
        )
        ordered = shuffled[order]
        return [ordered[batches[i]] for i in rng.permutation(len(batches))]

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
    """Return a number in [0, 1) for each index and key (SplitMix64: Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    uniform: np.ndarray = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform


def padding_share(
    batches: Sequence[np.ndarray], source_lengths: np.ndarray, target_lengths: np.ndarray
) -> float:
    """Return the share of padding in the padded batches, both sides together."""
    real, padded = 0, 0
    for batch in batches:
        for lengths in (source_lengths[batch], target_lengths[batch]):
            real += int(lengths.sum())
            padded += int(lengths.max()) * len(lengths)
    return 1 - real / padded if padded else 0.0
