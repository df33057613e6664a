"""Statistics of each line, from which the score of any set of lines follows, with its bootstrap.

A metric counts matches once for each line; sums of these counts give the scores of single lines, of
groups of lines, and of the resamples of a bootstrap, all equal to those of sacreBLEU.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfm_cli.evaluation.scores import Confidence

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

# L lines, C counts of a metric, N resamples

Array = np.ndarray[tuple[int, ...], np.dtype[np.floating]]


@dataclass(frozen=True, slots=True)
class LineStatistics:
    """The counts of one system by one metric."""

    metric: "Metric"
    counts: Array  # (L, C)

    @property
    def name(self) -> str:
        """Return the name of the metric in sacreBLEU, such as `chrF2`."""
        return str(self.metric._compute_score_from_stats(self.counts.sum(0)).name)

    def score(self, lines: Sequence[int] | None = None) -> float:
        """Return the score of some lines, at least one; of all by default."""
        counts = self.counts if lines is None else self.counts[list(lines)]
        return _score(self.metric, counts.sum(0))

    def line_scores(self) -> list[float]:
        """Return the score of each line by itself."""
        return [_score(self.metric, row) for row in self.counts]


def line_statistics(metric: "Metric", hypotheses: Sequence[str]) -> LineStatistics:
    """Return the statistics of a system.

    Args:
        metric: a metric of `scores.build_metrics`, which keeps the references.
        hypotheses: as many as references.
    """
    counts = metric._extract_corpus_statistics(hypotheses, None)
    return LineStatistics(metric, np.array(counts, dtype=np.float64))


def resampled_scores(
    systems: Sequence[LineStatistics],
    *,
    num_resamples: int,
    lines: Sequence[int] | None = None,
) -> list[list[float]]:
    """Return the scores of each system on the same bootstrap resamples of some lines.

    The resamples are those of sacreBLEU, whose seed is the environment variable SACREBLEU_SEED.
    """
    chosen = slice(None) if lines is None else list(lines)
    counts = [each.counts[chosen].astype(np.float32) for each in systems]  # as in sacreBLEU
    seed = os.environ.get("SACREBLEU_SEED", "12345")
    generator = np.random.default_rng(None if seed.lower() == "none" else int(seed))
    num_lines = len(counts[0])
    drawn = generator.choice(num_lines, size=(num_resamples, num_lines), replace=True)  # (N, L)
    return [
        [_score(each.metric, matrix[indices].sum(0)) for indices in drawn]
        for each, matrix in zip(systems, counts, strict=True)
    ]


def confidence(resampled: Sequence[float]) -> Confidence:
    """Return the 95 % confidence interval of resampled scores."""
    from sacrebleu.significance import estimate_ci

    mean, half_width = estimate_ci(np.array(resampled))
    return Confidence(float(mean), float(half_width))


def paired_p_value(first: Sequence[float], second: Sequence[float], *, difference: float) -> float:
    """Return the p-value of the difference of two systems by the paired bootstrap.

    Args:
        first: scores of one system on the resamples.
        second: those of the other.
        difference: the difference of their scores on all lines.

    Source: Koehn 2004, as in sacreBLEU.
    """
    differences = np.abs(np.array(second) - np.array(first))  # (N,)
    as_far = (differences - differences.mean() > abs(difference)).sum()
    return (int(as_far) + 1) / (len(differences) + 1)


def _score(metric: "Metric", counts: Array) -> float:
    return float(metric._compute_score_from_stats(list(counts)).score)
