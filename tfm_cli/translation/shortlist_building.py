"""Building of a shortlist from parallel text, with the attention of a model."""

# B pairs, S source tokens, T target tokens, P source vocabulary, V target vocabulary,
# N target tokens for each source token

import logging
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import numpy as np

from tfm_cli.console import counted
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.corpus.token_budget import token_batches
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.alignment import attention_in_memory
from tfm_cli.translation.search import SearchEngine
from tfm_cli.translation.shortlist import Shortlist
from tfm_cli.translation.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

_NUM_ORIGINS = 3  # source tokens that each target token is counted for
_LOG_SECONDS = 10
_BATCHES_PER_PROCESS = 8  # batches that each process gets at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortlistOptions:
    """The size of a shortlist, and the batching of the text that it is built from.

    Args:
        best: maximum number of target tokens for a source token.
        frequent: number of frequent target tokens that every translation may use.
        max_length: skip pairs with more tokens on either side.
        max_tokens: target tokens in a batch.
        workers: number of processes; more than one only on a CPU.
    """

    best: int
    frequent: int
    max_length: int
    max_tokens: int
    workers: int = 1


def build_shortlist(
    pairs: Iterable[tuple[str, str]],
    engine: SearchEngine,
    tokenizers: TokenizerPair,
    options: ShortlistOptions,
    *,
    name: str,
) -> Shortlist:
    """Return the shortlist of a parallel corpus.

    Each target token is counted for the three source tokens of its pair with the largest attention
    at the step that predicts it. The lists do not repeat the frequent tokens.

    A single source token is often the wrong one: of the output tokens of a Multi30k model, lists
    with three lacked 0.21 % at 780 tokens a segment, and lists with one lacked 0.33 % at 741.

    Args:
        pairs: lines and their translations.
        engine: the model.
        tokenizers: tokenizers of the model.
        options: size of the shortlist.
        name: name of the corpus in messages.

    Raises:
        DataError: no pair is usable.
    """
    store = CorpusStore.build(pairs, tokenizers, max_length=options.max_length, name=name)
    for reason, count in store.dropped.items():
        if count:
            logger.warning("%s: %s left out: %s", name, counted(count, "pair"), reason)
    counts = _count(store, engine, options, vocab_sizes=tokenizers.vocab_sizes)
    return _table(counts, best=options.best, frequent=options.frequent)


@dataclass(slots=True)
class _Counts:
    """Token counts of a corpus."""

    source: np.ndarray  # (P,)
    target: np.ndarray  # (V,)
    links: Counter[int]  # counts of aligned tokens, by source id * V + target id


def _count(
    store: CorpusStore,
    engine: SearchEngine,
    options: ShortlistOptions,
    *,
    vocab_sizes: tuple[int, int],
) -> _Counts:
    """Count tokens and aligned pairs of tokens, in parallel processes."""
    source_size, target_size = vocab_sizes
    source, target = (np.zeros(size, dtype=np.int64) for size in vocab_sizes)
    counts = _Counts(source, target, Counter())
    order = np.lexsort((store.source.lengths, store.target.lengths))
    lengths = store.source.lengths[order].tolist(), store.target.lengths[order].tolist()
    last_log, num_done = time.monotonic(), 0
    batches = iter(token_batches(*lengths, max_tokens=options.max_tokens))
    with WorkerPool(
        partial(_links, engine=engine, target_size=target_size),
        max_workers=options.workers, initializer=engine.begin_process,
    ) as processes:  # fmt: skip
        while some := list(islice(batches, _BATCHES_PER_PROCESS * options.workers)):
            jobs = [
                (
                    [store.source[i].tolist() for i in order[batch]],
                    [store.target[i].tolist() for i in order[batch]],
                )
                for batch in some
            ]
            for links in processes.results(processes.submit(jobs)):
                counts.links.update(links)
            for sources, targets in jobs:
                sides = (list(chain.from_iterable(side)) for side in (sources, targets))
                source_ids, target_ids = sides
                counts.source += np.bincount(source_ids, minlength=source_size)
                counts.target += np.bincount(target_ids, minlength=target_size)
                num_done += len(sources)
            if time.monotonic() - last_log > _LOG_SECONDS:
                last_log = time.monotonic()
                logger.info("%d of %d pairs read", num_done, len(store))
    return counts


def _links(
    pairs: tuple[Sequence[list[int]], Sequence[list[int]]],
    *,
    engine: SearchEngine,
    target_size: int,
) -> list[int]:
    """Return the aligned tokens of a batch of pairs, as source id * V + target id."""
    sources, targets = pairs
    links = list[int]()
    for weights, source, target in zip(
        attention_in_memory(engine, sources, targets), sources, targets, strict=True
    ):
        attention = np.asarray(weights)  # (T, S)
        best = np.argsort(-attention, axis=1, kind="stable")[:, :_NUM_ORIGINS]  # (T, 3)
        rows, columns = np.nonzero(np.take_along_axis(attention, best, axis=1) > 0)
        origin = np.array(source, dtype=np.int64)[best[rows, columns]]
        links += (origin * target_size + np.array(target, dtype=np.int64)[rows]).tolist()
    return links


def _table(counts: _Counts, *, best: int, frequent: int) -> Shortlist:
    """Return the shortlist with these counts."""
    source_size, target_size = len(counts.source), len(counts.target)
    links = np.array(sorted(counts.links.items()), dtype=np.int64)  # (pairs of ids, 2)
    frequent_ids = np.argsort(-counts.target, kind="stable")[:frequent]
    frequent_ids = frequent_ids[counts.target[frequent_ids] > 0]
    links = links[~np.isin(links[:, 0] % target_size, frequent_ids)]
    origin, target = np.divmod(links[:, 0], target_size)
    best_ids, best_counts = _best(origin, target, links[:, 1], rows=source_size, limit=best)
    return Shortlist(*(_array(x) for x in (best_ids, best_counts, counts.source, frequent_ids)))


def _best(
    origin: np.ndarray, target: np.ndarray, count: np.ndarray, *, rows: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the most frequent targets of each origin, padded with -1, and their counts, (P, N)."""
    order = np.lexsort((target, -count, origin))  # ties are broken by the target id
    origin, target, count = origin[order], target[order], count[order]
    rank = np.arange(len(origin)) - np.searchsorted(origin, origin)
    selected = rank < limit
    width = int(rank[selected].max(initial=-1)) + 1
    ids, counts = np.full((rows, width), -1), np.zeros((rows, width), dtype=np.int64)
    ids[origin[selected], rank[selected]] = target[selected]
    counts[origin[selected], rank[selected]] = count[selected]
    return ids, counts


def _array(values: np.ndarray) -> "array[int]":
    result = array("i")
    result.frombytes(np.ascontiguousarray(values, dtype=np.int32).tobytes())
    return result
