"""The native engine as the search engine on CPUs, without PyTorch."""

# T target tokens, S source tokens

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tfm_cli.config.settings import ModelConfig
from tfm_cli.native.model import NativeModel
from tfm_cli.native.search import NativeSearch, Segments
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.search import (
    BatchHypotheses,
    Matrix,
    SearchOptions,
    alignment_layer,
    output_limits,
)
from tfm_cli.translation.segments import Segment

if TYPE_CHECKING:
    from tfm_cli.translation.shortlist import Shortlist

logger = logging.getLogger(__name__)

# Size of the keys and values of a part of a batch. Each step reads all of them, so they should stay
# in the processor's caches. On a Xeon with 2 MiB of L2 cache for each core, `tiny` is fastest with
# 6 to 10 MiB of them, `base` with more than 100.
_CACHED_BYTES = 8 << 20


class NativeEngine:
    """One native model or an ensemble; consecutive searches reuse the memory of the caches.

    Args:
        models: over the same vocabulary.
        options: of the searches.
    """

    device_name = "cpu"

    def __init__(self, models: Sequence[NativeModel], options: SearchOptions) -> None:
        self._models = models
        self._options = options
        self.max_segment_tokens = min(_max_segment_tokens(model.config.model) for model in models)
        self._search = NativeSearch(
            models,
            options.settings,
            sampling=options.sampling,
            scores=options.scores,
            token_log_probs=options.word_scores,
            stops_loops=options.stops_loops,
            check=options.check,
            cache_bytes=options.cache_bytes,
        )
        self._readers = [
            NativeSearch([model], options.settings, cache_bytes=options.cache_bytes)
            for model in models
        ]

    @property
    def num_bytes(self) -> int:
        """Return the memory of the weights and of the caches, which the next batch reuses."""
        weights = sum(model.num_bytes for model in self._models)
        return weights + sum(each.num_bytes for each in (self._search, *self._readers))

    def begin_process(self) -> None:
        """Do nothing, since processes share the weights and searches allocate their own caches."""

    def search(self, batch: Sequence[Segment], beam_size: int) -> BatchHypotheses:
        """Return hypotheses of each segment, best first."""
        options = self._options
        found: BatchHypotheses = []
        for part in self._parts(batch, beam_size):
            if options.check is not None:  # the engine does not call it in a short search
                options.check()
            found += self._search(self._segments(part), beam_size=beam_size)
        return found

    def _segments(self, batch: Sequence[Segment]) -> Segments:
        options = self._options
        prefixes = [segment.prefix for segment in batch]
        return Segments(
            sources=[segment.ids for segment in batch],
            limits=output_limits(batch, options.settings, self.max_segment_tokens),
            prefixes=prefixes if any(prefixes) else None,
            seeds=[segment.seed for segment in batch] if options.sampling else None,
            allowed=_allowed(batch, options.shortlist, self._models[0].tokenizers),
        )

    def _parts(self, batch: Sequence[Segment], beam_size: int) -> Iterator[Sequence[Segment]]:
        """Yield parts of a batch, whose size makes the search fast.

        A step reads the weights once for all rows, and the keys and values of each row. The keys
        and values of a part are no larger than the weights or the caches of a processor, whichever
        are larger, if translations are as long as their sources. Results do not depend on parts.
        """
        tokens = [len(segment.ids) + 1 for segment in batch]
        of_token = sum(map(_cache_bytes, self._models)) * (1 + beam_size)
        max_bytes = max(_CACHED_BYTES, *(model.num_bytes for model in self._models))
        count = -(-sum(tokens) * of_token // max_bytes)  # rounded up
        size = max(1, -(-len(batch) // count))
        for start in range(0, len(batch), size):
            yield batch[start : start + size]

    def attention(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[Matrix]:
        """Return the attention of each target token to each source token, (T, S) of each pair."""
        of_models = [
            reader.attention(
                sources, targets, layer=alignment_layer(model.config.model.decoder_layers)
            )
            for model, reader in zip(self._models, self._readers, strict=True)
        ]  # (T + 1, S + 1) of each pair
        if len(of_models) == 1:
            return [[row[:-1] for row in weights[:-1]] for weights in of_models[0]]
        return [_mean(weights) for weights in zip(*of_models, strict=True)]

    def score(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return the log-probabilities of each target's tokens and of the </s> after them."""
        of_models = [reader.score(sources, targets) for reader in self._readers]
        if len(of_models) == 1:
            return of_models[0]
        return [
            [_log_mean_exp(values) for values in zip(*rows, strict=True)]
            for rows in zip(*of_models, strict=True)
        ]


def warn_of_slow_bf16(model: NativeModel) -> None:
    """Log a warning if the processor has no instructions for bf16."""
    if not model.library.has_bf16:
        logger.warning(
            "this processor has no bf16 instructions: the native engine is no "
            "faster with bf16 than with fp32"
        )


def _allowed(
    batch: Sequence[Segment], shortlist: "Shortlist | None", tokenizers: TokenizerPair
) -> list[list[int]] | None:
    if shortlist is None:
        return None
    target = tokenizers.target
    special = {target.eos_id, target.start_id, *target.banned_ids}
    found = []
    for segment in batch:
        ids = shortlist.allowed(segment.ids, segment.prefix, tokenizers)
        found.append([] if ids is None else sorted(special.union(ids)))
    return found


def _cache_bytes(model: NativeModel) -> int:
    """Return the bytes of a token's keys and values in all decoder layers."""
    shape = model.config.model
    return shape.decoder_layers * 2 * shape.width * (4 if model.precision == "fp32" else 2)


def _max_segment_tokens(shape: ModelConfig) -> int:
    """Return the maximum number of tokens of a source or a target that the positions allow."""
    # </s> of the source and the start of the target need a position as well.
    return shape.max_positions - 1 if shape.positions == "learned" else sys.maxsize


def _mean(matrices: Sequence[Matrix]) -> Matrix:
    """Return the mean over models, without the row and the column of </s>."""
    return [
        [sum(values) / len(values) for values in zip(*rows, strict=True)][:-1]
        for rows in list(zip(*matrices, strict=True))[:-1]
    ]


def _log_mean_exp(log_probs: Sequence[float]) -> float:
    """Return the logarithm of the mean of probabilities, given their logarithms."""
    largest = max(log_probs)
    mean = sum(math.exp(each - largest) for each in log_probs) / len(log_probs)
    return largest + math.log(mean)
