"""Which pairs make which batch: an order that is a pure function of seed and epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfm_cli.corpus.random_key import random_key

# Pairs of about the same length become batches within a budget of tokens.


def token_batches(
    source_lengths: Sequence[int], target_lengths: Sequence[int], *, max_tokens: int
) -> list[slice]:
    """Return slices of consecutive pairs, each a batch that keeps within a budget.

    Args:
        source_lengths: pieces of each source, </s> included.
        target_lengths: the same for the targets.
        max_tokens: target pieces in a batch, padding included. The padded source may have twice
            as many. A single pair beyond that is a batch of its own.
    """
    batches = []
    start, widest_source, widest_target = 0, 0, 0
    for end, (source, target) in enumerate(zip(source_lengths, target_lengths, strict=True)):
        widest_source, widest_target = max(widest_source, source), max(widest_target, target)
        size = end - start + 1
        if size > 1 and (
            size * widest_target > max_tokens or size * widest_source > 2 * max_tokens
        ):
            batches.append(slice(start, end))
            start, widest_source, widest_target = end, source, target
    if source_lengths:
        batches.append(slice(start, len(source_lengths)))
    return batches


POOL_PAIRS = 1 << 19
_BLOCK_PAIRS = 1 << 8  # neighbours on the disk that stay in one pool


@dataclass(frozen=True, slots=True)
class CorpusSpan:
    """The pairs of one training file among all, and how often an epoch passes over them."""

    first: int
    end: int  # one past the last
    weight: float = 1.0


class BatchOrder:
    """The batches of every epoch; a class because it holds the lengths that they are made from.

    An epoch is cut into pools of about half a million pairs, each drawn from the whole corpus in
    short runs of neighbours. Within a pool, pairs of about the same length on both sides stand
    together, so little is padding; ties and the order of the batches are drawn anew each epoch. So
    memory depends on the pool and not on the corpus, and a run can go on at any pool and batch
    without a look at what was before. A corpus of one pool is shuffled as a whole.

    Args:
        source_lengths: pieces of each source, </s> included, shape (num_pairs,).
        target_lengths: the same for the targets.
        max_tokens: target pieces in a batch, padding included. The padded source may have twice
            as many. A single pair beyond that is a batch of its own.
        seed: of the run.
        spans: how often which pairs are seen; empty for all of them once an epoch.
        pool_pairs: most pairs of a pool.
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
        self._newest: tuple[tuple[int, int], list[np.ndarray]] | None = None

    def batches(self, epoch: int, pool: int) -> list[np.ndarray]:
        """The batches of a pool, as indices of pairs.

        Over the pools of an epoch every pair is in exactly one batch, or in as many as its weight
        asks for.

        Args:
            epoch: from 0.
            pool: from 0, below `num_pools`.
        """
        newest = self._newest  # the first pool is asked for three times as a run begins
        if newest is None or newest[0] != (epoch, pool):
            newest = (epoch, pool), self._made(epoch, pool)
            self._newest = newest
        return newest[1]

    def _made(self, epoch: int, pool: int) -> list[np.ndarray]:
        key = ("epoch", self._seed, epoch, pool) if pool else ("epoch", self._seed, epoch)
        random = np.random.Generator(np.random.PCG64(random_key(*key)))
        members = self._members(epoch, pool)
        places = random.permutation(len(members))
        shuffled = members[places]
        # What is mapped from a disk is read in its order, and shuffled in memory.
        source = self._source[members].astype(np.int32)[places]
        target = self._target[members].astype(np.int32)[places]
        # Source lengths rise within one target length and fall within the next: no jump between.
        order = np.lexsort((np.where(target % 2, source, -source), target))
        batches = token_batches(
            source[order].tolist(), target[order].tolist(), max_tokens=self._max_tokens
        )
        ordered = shuffled[order]
        return [ordered[batches[i]] for i in random.permutation(len(batches))]

    def _members(self, epoch: int, pool: int) -> np.ndarray:
        """Indices of a pool's pairs, rising; one that is seen twice stands there twice."""
        num_pairs = len(self._source)
        if self.num_pools == 1:
            members = np.arange(num_pairs)
        else:
            num_blocks = -(-num_pairs // _BLOCK_PAIRS)
            random = np.random.Generator(np.random.PCG64(random_key("pools", self._seed, epoch)))
            shuffled = random.permutation(num_blocks)
            blocks = np.sort(np.array_split(shuffled, self.num_pools)[pool])
            members = (blocks[:, None] * _BLOCK_PAIRS + np.arange(_BLOCK_PAIRS)).reshape(-1)
            members = members[members < num_pairs]
        if not self._spans:
            return members
        ends = np.array([span.end for span in self._spans])
        weights = np.array([span.weight for span in self._spans])
        weight = weights[np.searchsorted(ends, members, side="right")]
        # A pair was seen floor(u + epochs * weight) times, with a u of its own in [0, 1): a weight
        # of 0.5 takes each pair every other epoch, half of them in this one.
        offset = _uniform(members, random_key("weights", self._seed))
        seen, soon = np.floor(offset + epoch * weight), np.floor(offset + (epoch + 1) * weight)
        return np.repeat(members, (soon - seen).astype(np.int64))


def _uniform(indices: np.ndarray, key: int) -> np.ndarray:
    """A number in [0, 1) for each index; always the same (SplitMix64: Steele et al. 2014)."""
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
    """Share of the padded batches, both sides together, that is padding."""
    real, padded = 0, 0
    for batch in batches:
        for lengths in (source_lengths[batch], target_lengths[batch]):
            real += int(lengths.sum())
            padded += int(lengths.max()) * len(lengths)
    return 1 - real / padded if padded else 0.0
