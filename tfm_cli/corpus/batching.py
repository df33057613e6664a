"""Which pairs make which batch: an order that is a pure function of seed and epoch."""

import hashlib
from collections.abc import Sequence

import numpy as np


def random_key(*parts: int | str) -> int:
    """A number in [0, 2**63) that depends on all parts, the same on every machine."""
    text = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def epoch_batches(
    source_lengths: np.ndarray,
    target_lengths: np.ndarray,
    *,
    max_tokens: int,
    seed: int,
    epoch: int,
) -> list[np.ndarray]:
    """The batches of an epoch, as indices of pairs; every pair is in exactly one.

    Pairs of about the same length on both sides stand together, so little is padding; ties and
    the order of the batches are drawn anew each epoch.

    Args:
        source_lengths: pieces of each source, </s> included, shape (num_pairs,).
        target_lengths: the same for the targets.
        max_tokens: target pieces in a batch, padding included. The padded source may have twice
            as many. A single pair beyond that is a batch of its own.
        seed: of the run.
        epoch: from 0.
    """
    random = np.random.Generator(np.random.PCG64(random_key("epoch", seed, epoch)))
    shuffled = random.permutation(len(source_lengths))
    source, target = source_lengths[shuffled], target_lengths[shuffled]
    # Source lengths rise within one target length and fall within the next: no jump between them.
    order = shuffled[np.lexsort((np.where(target % 2, source, -source), target))]
    batches = token_batches(source_lengths[order], target_lengths[order], max_tokens=max_tokens)
    return [order[batches[i]] for i in random.permutation(len(batches))]


def token_batches(
    source_lengths: np.ndarray, target_lengths: np.ndarray, *, max_tokens: int
) -> list[slice]:
    """Slices of consecutive pairs that keep within the budget of `epoch_batches`."""
    batches = []
    start, widest_source, widest_target = 0, 0, 0
    for end, (source, target) in enumerate(
        zip(source_lengths.tolist(), target_lengths.tolist(), strict=True)
    ):
        widest_source, widest_target = max(widest_source, source), max(widest_target, target)
        size = end - start + 1
        if size > 1 and (
            size * widest_target > max_tokens or size * widest_source > 2 * max_tokens
        ):
            batches.append(slice(start, end))
            start, widest_source, widest_target = end, source, target
    if len(source_lengths):
        batches.append(slice(start, len(source_lengths)))
    return batches


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
