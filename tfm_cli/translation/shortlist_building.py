"""A shortlist from parallel text: which target pieces the model's attention ties to which."""

# B pairs, S source pieces, T target pieces, P of the source vocabulary, V of the target's,
# N target pieces for each source piece

import logging
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, islice

import numpy as np

from tfm_cli.corpus.batching import token_batches
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.search_engine import Matrix, SearchEngine
from tfm_cli.translation.shortlist import Shortlist
from tfm_cli.translation.worker_pool import Workers

logger = logging.getLogger(__name__)

_ORIGINS = 3  # source pieces that a target piece counts for
_SECONDS = 10  # between lines that say how far it is
_TOGETHER = 8  # batches that each process is given at a time


def build_shortlist(
    pairs: Iterable[tuple[str, str]],
    engine: SearchEngine,
    tokenizers: TokenizerPair,
    *,
    best: int,
    frequent: int,
    max_length: int,
    max_tokens: int,
    name: str,
    workers: int = 1,
) -> Shortlist:
    """The table of a parallel corpus.

    Each target piece counts for the three source pieces of its pair that it came from most, by the
    attention of the step that writes it. Frequent pieces stand in no list of their own.

    Three rather than one, which is often wrong: of the pieces that a Multi30k model wrote, lists
    lacked 0.21 % where they had 780 pieces a segment, and 0.33 % where they had 741 by one each.

    Args:
        pairs: lines and their translations.
        engine: the model.
        tokenizers: of the model.
        best: most target pieces for a source piece.
        frequent: target pieces that every translation may be written with.
        max_length: longer pairs, in pieces of either side, are left out.
        max_tokens: target pieces in a batch.
        name: what messages call the corpus.
        workers: processes that read side by side; on a CPU.

    Raises:
        DataError: no pair is left.
    """
    store = CorpusStore.build(pairs, tokenizers, max_length=max_length, name=name)
    for reason, count in store.dropped.items():
        if count:
            plural = "" if count == 1 else "s"
            logger.warning("%s: %d pair%s left out: %s", name, count, plural, reason)
    source_size, target_size = tokenizers.vocab_sizes
    seen = np.zeros(source_size, dtype=np.int64)
    written = np.zeros(target_size, dtype=np.int64)
    links: Counter[int] = Counter()  # by source id * V + target id
    order = np.lexsort((store.source.lengths, store.target.lengths))
    lengths = store.source.lengths[order].tolist(), store.target.lengths[order].tolist()
    told, done = time.monotonic(), 0
    batches = iter(token_batches(*lengths, max_tokens=max_tokens))
    with Workers(
        partial(_links, engine=engine, target_size=target_size),
        most=workers, begin=engine.begin_process,
    ) as processes:  # fmt: skip
        while some := list(islice(batches, _TOGETHER * workers)):
            jobs = [
                (
                    [store.source[i].tolist() for i in order[batch]],
                    [store.target[i].tolist() for i in order[batch]],
                )
                for batch in some
            ]
            for found in processes.finish(processes.begin(jobs)):
                links.update(found)
            for sources, targets in jobs:
                seen += np.bincount(list(chain.from_iterable(sources)), minlength=source_size)
                written += np.bincount(list(chain.from_iterable(targets)), minlength=target_size)
                done += len(sources)
            if time.monotonic() - told > _SECONDS:
                told = time.monotonic()
                logger.info("%d of %d pairs read", done, len(store))
    counted = np.array(sorted(links.items()), dtype=np.int64)  # (pairs of pieces, 2)
    often = np.argsort(-written, kind="stable")[:frequent]
    often = often[written[often] > 0]
    counted = counted[~np.isin(counted[:, 0] % target_size, often)]
    origin, target = np.divmod(counted[:, 0], target_size)
    best_ids, counts = _best(origin, target, counted[:, 1], rows=source_size, most=best)
    return Shortlist(*(_array(x) for x in (best_ids, counts, seen, often)))


def _links(
    pairs: tuple[Sequence[list[int]], Sequence[list[int]]],
    *,
    engine: SearchEngine,
    target_size: int,
) -> list[int]:
    """The pieces that belong together in some pairs, as source id * V + target id."""
    sources, targets = pairs
    found = list[int]()
    for weights, source, target in zip(
        _attention(engine, sources, targets), sources, targets, strict=True
    ):
        shares = np.asarray(weights)  # (T, S)
        places = np.argsort(-shares, axis=1, kind="stable")[:, :_ORIGINS]  # (T, 3)
        rows, which = np.nonzero(np.take_along_axis(shares, places, axis=1) > 0)
        origin = np.array(source, dtype=np.int64)[places[rows, which]]
        found += (origin * target_size + np.array(target, dtype=np.int64)[rows]).tolist()
    return found


def _attention(
    engine: SearchEngine, sources: Sequence[list[int]], targets: Sequence[list[int]]
) -> list[Matrix]:
    """The weights (T, S) of each pair; a batch that memory cannot hold is halved."""
    try:
        return engine.attention(sources, targets)
    except MemoryError:
        if len(sources) == 1:
            raise
    half = len(sources) // 2
    return [
        *_attention(engine, sources[:half], targets[:half]),
        *_attention(engine, sources[half:], targets[half:]),
    ]


def _array(values: np.ndarray) -> "array[int]":
    found = array("i")
    found.frombytes(np.ascontiguousarray(values, dtype=np.int32).tobytes())
    return found


def _best(
    origin: np.ndarray, target: np.ndarray, count: np.ndarray, *, rows: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent targets of each origin, -1 behind the last, and their counts, (P, N)."""
    order = np.lexsort((target, -count, origin))  # equals by their ids
    origin, target, count = origin[order], target[order], count[order]
    rank = np.arange(len(origin)) - np.searchsorted(origin, origin)
    kept = rank < most
    width = int(rank[kept].max(initial=-1)) + 1
    ids, counts = np.full((rows, width), -1), np.zeros((rows, width), dtype=np.int64)
    ids[origin[kept], rank[kept]] = target[kept]
    counts[origin[kept], rank[kept]] = count[kept]
    return ids, counts
