"""COMET as a metric of sacreBLEU, from scores that are known, for its formats and its tests.

Importing this module imports sacreBLEU.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sacrebleu.metrics.base import Metric, Signature
from sacrebleu.metrics.base import Score as SacreBleuScore

from tfm_cli.evaluation.comet import CometModel, CometScores
from tfm_cli.evaluation.scores import COMET, Score, decimals, score_of


class CometScore(SacreBleuScore):
    """A score of COMET, which has more decimals than those of sacreBLEU."""

    def format(
        self, width: int = 1, score_only: bool = False, signature: str = "", is_json: bool = False
    ) -> str:
        """Return the score as sacreBLEU formats its own."""
        digits = decimals(COMET, width)
        shown, mean, half = (f"{each:.{digits}f}" for each in (self.score, self._mean, self._ci))
        interval = f"μ = {mean} ± {half}" if self._ci >= 0 else ""
        text = f"{shown} ({interval})" if interval else shown
        if score_only:
            return text
        if not is_json:
            return f"{self.name}|{signature} = {text}"
        table: dict[str, object] = {
            "name": self.name, "score": float(shown), "signature": signature,
        }  # fmt: skip
        if interval:
            table |= {"confidence_mean": float(mean), "confidence_var": float(half)}
            table["confidence"] = interval
        for pair in signature.split("|"):
            key, _, value = pair.partition(":")
            table[key] = value
        return json.dumps(table, indent=1, ensure_ascii=False)


class CometSignature(Signature):
    """The model, its class and its license, and the version of COMET."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        model, scores = args["model"], args["scores"]
        own = {
            "model": model.name,
            "revision": model.revision,
            "class": model.kind,
            "license": model.license,
        }
        # `|` and `:` separate the parts of a signature.
        cleaned = {
            key: value.replace("|", "_").replace(":", "_") or None for key, value in own.items()
        }
        self.info = {**cleaned, **self.info, "version": scores.version}
        self._abbr |= {"model": "m", "revision": "r", "class": "c", "license": "lic"}


class CometMetric(Metric):
    """A metric whose scores of some systems were computed before.

    Args:
        model: the model.
        systems: the hypotheses of each system.
        scores: their scores.
    """

    _SIGNATURE_TYPE = CometSignature

    def __init__(
        self, model: CometModel, systems: Sequence[Sequence[str]], scores: CometScores
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.scores = model, scores
        self.num_refs = int(scores.uses_references)
        self._segments = {
            tuple(system): segments
            for system, segments in zip(systems, scores.segments, strict=True)
        }

    def sentence_scores(self, hypotheses: Sequence[str]) -> Iterator[Score]:
        """Yield the score of each segment of a system, in order."""
        for value in self._segments[tuple(hypotheses)]:
            yield score_of(COMET, self, CometScore("COMET", value))

    def _extract_corpus_statistics(
        self, hypotheses: Sequence[str], references: Any
    ) -> list[list[float]]:
        """Return the score of each segment and its weight, whose sums give the mean."""
        return [[value, 1.0] for value in self._segments[tuple(hypotheses)]]

    def _aggregate_and_compute(self, stats: Any) -> CometScore:
        return self._compute_score_from_stats([sum(column) for column in zip(*stats, strict=True)])

    def _compute_score_from_stats(self, stats: Any) -> CometScore:
        return CometScore("COMET", float(stats[0]) / float(stats[1]))

    # The methods by which sacreBLEU computes the statistics, which are known here.

    def _preprocess_segment(self, sent: str) -> str:
        raise NotImplementedError

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        raise NotImplementedError

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: Any) -> list[Any]:
        raise NotImplementedError
