"""A shortlist from parallel text: which target pieces the model's attention ties to which."""

# B pairs, S source pieces, T target pieces, P of the source vocabulary, V of the target's,
# N target pieces for each source piece

import logging
import time
from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch

from tfm_cli.corpus.store import PieceStore
from tfm_cli.corpus.token_batches import token_batches
from tfm_cli.model.transformer import Transformer
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.translation.alignment import piece_weights
from tfm_cli.translation.shortlist import Shortlist

logger = logging.getLogger(__name__)

_ORIGINS = 3  # source pieces that a target piece counts for
_SECONDS = 10  # between lines that say how far it is


@torch.inference_mode()
def build_shortlist(
    pairs: Iterable[tuple[str, str]],
    transformer: Transformer,
    tokenizers: TokenizerPair,
    *,
    best: int,
    frequent: int,
    max_length: int,
    max_tokens: int,
    device: torch.device,
    name: str,
) -> Shortlist:
    """The table of a parallel corpus.

    Each target piece counts for the three source pieces of its pair that it came from most, by the
    attention of the step that writes it. Frequent pieces stand in no list of their own.

    Three rather than one, which is often wrong: of the pieces that a Multi30k model wrote, lists
    lacked 0.21 % where they had 780 pieces a segment, and 0.33 % where they had 741 by one each.

    Args:
        pairs: lines and their translations.
        transformer: on `device`, in evaluation mode.
        tokenizers: of the model.
        best: most target pieces for a source piece.
        frequent: target pieces that every translation may be written with.
        max_length: longer pairs, in pieces of either side, are left out.
        max_tokens: target pieces in a batch.
        device: where to compute.
        name: what messages call the corpus.

    Raises:
        DataError: no pair is left.
    """
    store = PieceStore.build(pairs, tokenizers, max_length=max_length, name=name)
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
    for batch in token_batches(*lengths, max_tokens=max_tokens):
        sources = [store.source[i] for i in order[batch]]
        targets = [store.target[i] for i in order[batch]]
        weights = piece_weights([transformer], tokenizers, sources, targets, device=device)
        most, places = weights.topk(min(_ORIGINS, weights.shape[2]), dim=2)  # (B, T, 3)
        for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
            rows, which = (most[row] > 0).nonzero(as_tuple=True)  # padding came from nowhere
            origin = source[places[row][rows, which].numpy()].astype(np.int64)
            links.update((origin * target_size + target[rows.numpy()]).tolist())
        seen += np.bincount(np.concatenate(sources), minlength=source_size)
        written += np.bincount(np.concatenate(targets), minlength=target_size)
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
    tensors = (torch.from_numpy(x.astype(np.int32)) for x in (best_ids, counts, seen, often))
    return Shortlist(*tensors)


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
