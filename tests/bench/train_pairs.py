"""Pairs of random ids with the lengths of a corpus, and how each side's users cut batches of them.

A budget is about the real target pieces of a batch, but for JoeyNMT, which counts padding in. Plans
are made for the whole corpus, since a plan for the few pairs of some updates would have far more
padding; then a few batches that are as the plan is on average are learned from.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tfm_cli.corpus.batching import BatchOrder
from tfm_cli.corpus.store import CorpusStore, Segments
from tfm_cli.corpus.token_budget import token_batches

UNK_ID, PAD_ID, START_ID, EOS_ID = range(4)
NUM_SPECIAL = 4
Plan = list[np.ndarray]
Cut = Callable[[np.ndarray, np.ndarray, int], Plan]  # lengths of both sides, budget → batches


@dataclass(frozen=True, slots=True)
class Lengths:
    """Pieces of the two sides of a pair, </s> included: log-normal, rounded and clipped."""

    mean_logs: tuple[float, float]
    spreads: tuple[float, float]
    correlation: float
    longest: int
    shortest: int = 3


# With the mean, spread and correlation that Multi30k's 29,000 pairs have in 4,000 joint pieces:
# 16.8 ± 5.6 and 18.0 ± 6.8, 0.84; then one pair in a hundred is longer than 34 and 39 pieces, as
# there.
MULTI30K = Lengths((2.767, 2.826), (0.327, 0.365), 0.848, longest=100)


def draw_lengths(
    number: int, *, seed: int = 1, lengths: Lengths = MULTI30K
) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of each side of each pair, </s> included; shape (number,) each."""
    common, other = np.random.default_rng(seed).standard_normal((2, number))
    second = lengths.correlation * common + np.sqrt(1 - lengths.correlation**2) * other
    normals = (common, second)
    source, target = (
        np.clip(np.rint(np.exp(mean + spread * normal)), lengths.shortest, lengths.longest)
        .astype(np.int64)
        for mean, spread, normal in zip(lengths.mean_logs, lengths.spreads, normals, strict=True)
    )  # fmt: skip
    return source, target


def draw_store(
    number: int, vocab_size: int, *, seed: int = 1, lengths: Lengths = MULTI30K
) -> CorpusStore:
    """Such pairs; a piece is drawn with a probability that falls as 1 / rank, as in text."""
    random = np.random.default_rng(seed + 1)
    weights = 1 / (np.arange(vocab_size - NUM_SPECIAL) + 3)

    def side(counts: np.ndarray) -> Segments:
        starts = np.concatenate([[0], np.cumsum(counts - 1)])
        ids = random.choice(len(weights), size=int(starts[-1]), p=weights / weights.sum())
        return Segments((ids + NUM_SPECIAL).astype(np.int32), starts)

    source, target = draw_lengths(number, seed=seed, lengths=lengths)
    return CorpusStore(side(source), side(target), Counter())


def tfm_plan(source: np.ndarray, target: np.ndarray, max_tokens: int) -> Plan:
    """As `tfm train` does by itself."""
    return BatchOrder(source, target, max_tokens=max_tokens, seed=1).batches(0, 0)


def hf_plan(source: np.ndarray, target: np.ndarray, max_tokens: int) -> Plan:
    """As Hugging Face's Trainer does with `group_by_length`.

    Batches of a fixed number of pairs; mega-batches of 50 of them, or of a quarter of the corpus,
    are sorted by source length.
    """
    size = max(1, round(max_tokens / target.mean()))
    mega_batch = size * max(1, min(len(source) // (4 * size), 50))
    plan = []
    for pairs in _pools(len(source), mega_batch):
        ordered = pairs[np.argsort(-source[pairs], kind="stable")]
        plan += [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return plan


def torch_plan(source: np.ndarray, target: np.ndarray, max_tokens: int) -> Plan:
    """As torchtext's BucketIterator did: pools of 100 batches are sorted by target length."""
    plan = []
    for pairs in _pools(len(source), round(100 * max_tokens / target.mean())):
        ordered = pairs[np.argsort(target[pairs], kind="stable")]
        lengths = target[ordered].tolist()
        plan += [ordered[part] for part in token_batches(lengths, lengths, max_tokens=max_tokens)]
    return plan


def joeynmt_plan(source: np.ndarray, target: np.ndarray, max_tokens: int) -> Plan:
    """As JoeyNMT's TokenBatchSampler does: in random order, until so many padded pieces are there.

    More than half of them are padding. With more in a batch, logits took gigabytes.
    """
    plan, batch, longest = [], [], 0
    for pair in _shuffled(len(source)).tolist():
        batch.append(pair)
        longest = max(longest, int(source[pair]), int(target[pair]))
        if longest * len(batch) >= max_tokens:
            plan.append(np.array(batch))
            batch, longest = [], 0
    return [*plan, np.array(batch)] if batch else plan


def shuffled_plan(source: np.ndarray, target: np.ndarray, max_tokens: int) -> Plan:
    """In random order, with a budget of padded pieces at which so many are real."""
    pairs = _shuffled(len(source))
    wanted = max(1, round(target.sum() / max_tokens))
    sides = source[pairs].tolist(), target[pairs].tolist()
    low, high = max_tokens, 16 * max_tokens
    while low < high:
        budget = (low + high) // 2
        if len(token_batches(*sides, max_tokens=budget)) > wanted:
            low = budget + 1
        else:
            high = budget
    return [pairs[part] for part in token_batches(*sides, max_tokens=low)]


PLANS: dict[str, Cut] = {
    "tfm": tfm_plan, "hf": hf_plan, "torch": torch_plan, "joeynmt": joeynmt_plan,
}  # fmt: skip


def representative(plan: Plan, source: np.ndarray, target: np.ndarray, number: int) -> Plan:
    """So many batches with about the pieces, real and padded, that the plan has on average."""
    if number >= len(plan):
        return plan
    facts = np.array(
        [
            [count for lengths in (source[pairs], target[pairs])
             for count in (lengths.sum(), lengths.max() * len(lengths))]
            for pairs in plan
        ],
        dtype=np.float64,
    )  # fmt: skip
    random = np.random.default_rng(1)
    candidates = [random.choice(len(plan), number, replace=False) for _ in range(2000)]
    means = np.array([facts[chosen].mean(axis=0) for chosen in candidates])
    distances = np.abs(means / facts.mean(axis=0) - 1).max(axis=1)
    return [plan[i] for i in candidates[int(distances.argmin())]]


def _shuffled(number: int) -> np.ndarray:
    return np.random.default_rng(1).permutation(number)


def _pools(number: int, size: int) -> Plan:
    pairs = _shuffled(number)
    return [pairs[start : start + size] for start in range(0, number, size)]
