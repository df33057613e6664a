"""The mean and the standard deviation of scores over runs of one system."""

import json
import statistics
from dataclasses import dataclass
from typing import Literal

from tfm_cli.errors import ConfigError
from tfm_cli.evaluation.scores import decimals
from tfm_cli.evaluation.significance import Comparison, SystemScore, aligned, shown


@dataclass(frozen=True, slots=True)
class Spread:
    """The scores of the runs of one system by one metric.

    Attributes:
        metric: the metric's name in sacreBLEU, such as `chrF2`.
        runs: the score of each run.
        mean: of the scores.
        deviation: the standard deviation of the sample, with the divisor n - 1.
    """

    metric: str
    runs: tuple[SystemScore, ...]
    mean: float
    deviation: float


def spreads(comparison: Comparison) -> list[Spread]:
    """Return the mean and the standard deviation of each metric over the systems compared.

    Raises:
        ConfigError: there is only one run.
    """
    by_metric: dict[str, list[SystemScore]] = {}
    for score in comparison.scores:
        by_metric.setdefault(score.metric, []).append(score)
    found = []
    for metric, runs in by_metric.items():
        if len(runs) < 2:
            raise ConfigError("a standard deviation needs two runs or more, got 1")
        values = [run.value for run in runs]
        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        found.append(Spread(metric, tuple(runs), mean, deviation))
    return found


def render(
    comparison: Comparison,
    style: Literal["json", "text"],
    *,
    width: int = 1,
    short: bool = False,
    value_only: bool = False,
) -> str:
    """Return the spreads as a JSON list or a table, or the bare means in one line."""
    found = spreads(comparison)
    if value_only:
        return "\t".join(shown(spread.mean, spread.metric, width) for spread in found)
    if style == "json":
        table = [
            {
                "name": spread.metric,
                "mean": spread.mean,
                "std": spread.deviation,
                "runs": [{"system": run.system, "score": run.value} for run in spread.runs],
                "signature": comparison.signatures[spread.metric],
            }
            for spread in found
        ]
        return json.dumps(table, indent=4, ensure_ascii=False)
    rows = [["metric", "run", "score"]]
    for spread in found:
        metric, digits = spread.metric, decimals(spread.metric, max(width, 1))
        rows += [[metric, run.system, shown(run.value, metric, width)] for run in spread.runs]
        mean = f"{shown(spread.mean, metric, width)} ± {spread.deviation:.{digits}f}"
        rows.append([metric, "mean ± standard deviation", mean])
    count = len(found[0].runs)
    last = f"{count} runs; standard deviation of the sample, divisor {count - 1}"
    return "\n".join([*aligned(rows), "", *comparison.quoted_signatures(short=short), "", last])
