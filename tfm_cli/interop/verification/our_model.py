"""Our model as verification runs it: by rules that other programs keep to as well."""

# B segments, S source pieces, T target pieces with </s>, V vocabulary

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tfm_cli.corpus.batch import make_batch, pad_source
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.interface import Hypothesis, refuse_non_finite
from tfm_cli.interop.verification.runtime import Ids
from tfm_cli.model_directory.weights import TrainedModel


class OurSide:
    """A model on the CPU, and which pieces share the probability.

    Args:
        model: in evaluation mode.
        bans_before_softmax: whether the mass of pieces that are never written goes to the others.
    """

    def __init__(self, model: TrainedModel, *, bans_before_softmax: bool) -> None:
        self._transformer = model.transformer
        self._pair = model.tokenizers
        self._banned = torch.tensor(model.tokenizers.target.banned_ids, dtype=torch.long)
        self._bans_before_softmax = bans_before_softmax

    def logits(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[Tensor]:
        """Of each next piece of given targets, padded together: (T, V) for each segment.

        Raises:
            NonFiniteScoresError: they are not finite numbers.
        """
        batch = make_batch(
            [np.asarray(ids, dtype=np.int64) for ids in sources],
            [np.asarray(ids, dtype=np.int64) for ids in targets],
            start_id=self._pair.target.start_id,
            eos_id=self._pair.target.eos_id,
            source_eos_id=self._pair.source.eos_id,
        )
        logits = self._transformer(batch.source, batch.source_keep, batch.target_in)  # (B, T, V)
        refuse_non_finite(logits)
        return [logits[row, : len(target) + 1] for row, target in enumerate(targets)]

    def search(
        self, sources: Sequence[Ids], *, beam_size: int, limit: int
    ) -> list[list[Hypothesis]]:
        """Translations of each segment, best first, as `Runtime.search` says."""
        source, keep = pad_source([list(ids) for ids in sources], self._pair.source.eos_id)
        return beam_search(
            self._transformer,
            source,
            keep,
            limits=[limit] * len(sources),
            start_id=self._pair.target.start_id,
            eos_id=self._pair.target.eos_id,
            banned_ids=self._pair.target.banned_ids,
            beam_size=beam_size,
            length_penalty=1.0,
            early_stopping=True,
            renormalize=self._bans_before_softmax,
        )

    def score(self, source: Ids, target: Ids) -> float:
        """What the search scores a translation: the mean log-probability of its pieces."""
        logits = self.logits([source], [target])[0]  # (T, V)
        if self._bans_before_softmax:
            logits = logits.index_fill(1, self._banned, -math.inf)
        pieces = torch.tensor([*target, self._pair.target.eos_id])  # (T,)
        return float(logits.log_softmax(dim=1).gather(1, pieces[:, None]).mean())
