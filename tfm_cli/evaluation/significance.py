"""Paired significance tests of several systems against a baseline, by sacreBLEU."""

import argparse
import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tfm_cli.errors import ConfigError
from tfm_cli.evaluation.scores import (
    DEFAULTS,
    Confidence,
    MetricOptions,
    build_metrics,
    check_aligned,
    decimals,
    out_of_memory,
    score_corpus,
)

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

Method = Literal["bootstrap", "randomization"]
System = tuple[str, Sequence[str]]

LEVEL = 0.05
_MARK = "\u2060"
_SHORT_NAMES: dict[Method, str] = {"bootstrap": "bs", "randomization": "ar"}


@dataclass(frozen=True, slots=True)
class SystemScore:
    """The score of one of several systems by one metric.

    Attributes:
        system: the system's name.
        metric: the metric's name in sacreBLEU, such as `chrF2`.
        value: as in `Score`.
        confidence: the interval from the paired bootstrap; None without it.
        p_value: the probability of at least this difference from the baseline under the null
            hypothesis that the systems are equal; None for the baseline, and without a test.
    """

    system: str
    metric: str
    value: float
    confidence: Confidence | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The scores of several systems by several metrics.

    Attributes:
        scores: grouped by metric, with the systems in the given order.
        signatures: signatures by the metric's name.
        short_signatures: short signatures by the metric's name.
        test: a description of the test; empty without one.
        method: of the test; None without one.
        num_samples: resamples or trials of the test.
    """

    scores: tuple[SystemScore, ...]
    signatures: dict[str, str]
    short_signatures: dict[str, str]
    test: str = ""
    method: Method | None = None
    num_samples: int = 0

    def quoted_signatures(self, *, short: bool = False) -> list[str]:
        """Return each signature preceded by the metric's name, as papers quote it."""
        signatures = self.short_signatures if short else self.signatures
        return [f"{metric}|{signature}" for metric, signature in signatures.items()]


def compare(
    systems: Sequence[System],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = ("bleu",),
    options: MetricOptions = DEFAULTS,
    extra: Mapping[str, "Metric"] | None = None,
) -> Comparison:
    """Return the scores of several systems without a significance test.

    Raises:
        DataError, ConfigError, ResourceError: as in `corpus_scores`.
    """
    for _, hypotheses in systems:
        check_aligned(hypotheses, references)
    rows, signatures, short_signatures = [], {}, {}
    for name, metric in build_metrics(metrics, references, options, extra).items():
        for system, hypotheses in systems:
            score = score_corpus(name, metric, hypotheses)
            rows.append(SystemScore(system, score.name, score.value))
            signatures[score.name] = score.signature
            short_signatures[score.name] = score.short_signature
    return Comparison(tuple(rows), signatures, short_signatures)


def paired_test(
    systems: Sequence[System],
    references: Sequence[Sequence[str]],
    *,
    method: Method = "bootstrap",
    metrics: Sequence[str] = ("bleu",),
    options: MetricOptions = DEFAULTS,
    num_samples: int = 0,
    extra: Mapping[str, "Metric"] | None = None,
) -> Comparison:
    """Return the scores of several systems, with the p-value of each against the first.

    Args:
        systems: name and hypotheses of each, the baseline first.
        references: as in `corpus_scores`.
        method: `bootstrap` resamples segments (Koehn 2004) and gives confidence intervals as well;
            `randomization` swaps segments of the two systems (Riezler and Maxwell 2005).
        metrics: some of METRICS and `extra`.
        options: the options of the metrics.
        extra: metrics beside METRICS, by name.
        num_samples: resamples or trials; 0 for sacreBLEU's defaults, 1000 and 10000. The seed is
            the environment variable SACREBLEU_SEED, or 12345, so that a test is reproducible.

    Raises:
        DataError, ConfigError, ResourceError: as in `corpus_scores`.
        ConfigError: fewer than two systems, or a seed of 0.
    """
    from sacrebleu.significance import PairedTest, Result

    if len(systems) < 2:
        raise ConfigError(f"a paired test compares systems with a baseline, got {len(systems)}")
    if os.environ.get("SACREBLEU_SEED") == "0":  # PairedTest of sacreBLEU 2.6 takes 0 for no seed
        raise ConfigError(
            "a paired test cannot be seeded with 0", hint="set another SACREBLEU_SEED"
        )
    for _, hypotheses in systems:
        check_aligned(hypotheses, references)
    built = build_metrics(metrics, references, options, extra)
    named = [(name, hypotheses) for name, hypotheses in systems]
    try:
        test = PairedTest(named, built, None, _SHORT_NAMES[method], num_samples)
        signatures, columns = test()
    except MemoryError as error:
        raise out_of_memory(num_samples, len(systems[0][1])) from error
    rows = []
    for metric in signatures:
        for (system, _), result in zip(systems, columns[metric], strict=True):
            assert isinstance(result, Result)
            confidence = None
            if result.mean is not None and result.ci is not None:
                confidence = Confidence(float(result.mean), float(result.ci))
            value = float(result.score)
            rows.append(SystemScore(system, metric, value, confidence, result.p_value))
    return Comparison(
        tuple(rows),
        {metric: signature.format() for metric, signature in signatures.items()},
        {metric: signature.format(short=True) for metric, signature in signatures.items()},
        f"paired {method} test, {test.n_samples} samples",
        method,
        int(test.n_samples),
    )


def render(
    comparison: Comparison,
    style: Literal["json", "text", "latex"],
    *,
    width: int = 1,
    short: bool = False,
    value_only: bool = False,
) -> str:
    """Return the comparison as JSON or a table, or bare values with one line for each system.

    `latex` is what sacreBLEU prints with `--format latex`: a table for the package booktabs,
    followed by the signatures.
    """
    if value_only:
        values: dict[str, list[str]] = {}
        for score in comparison.scores:
            values.setdefault(score.system, []).append(shown(score.value, score.metric, width))
        return "\n".join("\t".join(row) for row in values.values())
    if style == "latex":
        return _latex(comparison, width, short=short)
    return _json(comparison) if style == "json" else _table(comparison, width, short=short)


class _Rounded(float):
    """A number that is always formatted with its own number of decimals."""

    def __new__(cls, value: float, digits: int) -> "_Rounded":
        number = super().__new__(cls, value)
        number._digits = digits
        return number

    _digits: int

    def __format__(self, specification: str) -> str:
        return format(float(self), f".{self._digits}f")


def _latex(comparison: Comparison, width: int, *, short: bool) -> str:
    """Return what sacreBLEU itself prints, without colors."""
    from sacrebleu.significance import Result
    from sacrebleu.utils import Color, print_results_table

    systems = list(dict.fromkeys(score.system for score in comparison.scores))
    results: dict[str, list[Any]] = {"System": [*systems]}
    signatures = comparison.short_signatures if short else comparison.signatures
    # Without a test sacreBLEU sorts the metrics, and takes scores that are formatted.
    for metric in list(signatures) if comparison.method else sorted(signatures, key=str.lower):
        for score in comparison.scores:
            if score.metric == metric:
                confidence = score.confidence
                mean, half = (
                    (confidence.mean, confidence.half_width) if confidence else (None, None)
                )
                numbers: list[Any] = [
                    None if each is None else _Rounded(each, decimals(metric, width))
                    for each in (score.value, mean, half)
                ]
                value = Result(numbers[0], score.p_value, *numbers[1:])
                cell = value if comparison.method else shown(score.value, metric, width)
                if cell is not value and decimals(metric, width) != width:
                    cell = f"{cell}{_MARK}"  # tabulate would take it for a number, and round it
                results.setdefault(metric, []).append(cell)
    arguments = argparse.Namespace(
        format="latex",
        width=width,
        paired_bs=comparison.method == "bootstrap",
        paired_ar=comparison.method == "randomization",
        paired_bs_n=comparison.num_samples,
        paired_ar_n=comparison.num_samples,
    )
    had_colors, Color.ENABLE_COLORS = Color.ENABLE_COLORS, False
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            print_results_table(
                results, {name: signatures[name] for name in list(results)[1:]}, arguments
            )
    finally:
        Color.ENABLE_COLORS = had_colors
    return printed.getvalue().replace(_MARK, "").rstrip("\n")


def _json(comparison: Comparison) -> str:
    """Return a JSON list of systems in the format of sacreBLEU, with signatures added."""
    systems: dict[str, dict[str, object]] = {}
    for score in comparison.scores:
        entry = systems.setdefault(score.system, {"system": score.system})
        confidence = score.confidence
        entry[score.metric] = {
            "score": score.value,
            "p_value": score.p_value,
            "mean": confidence.mean if confidence else None,
            "ci": confidence.half_width if confidence else None,
            "signature": comparison.signatures[score.metric],
        }
    return json.dumps(list(systems.values()), indent=4, ensure_ascii=False)


def _table(comparison: Comparison, width: int, *, short: bool) -> str:
    """Return a row for each metric and system, followed by the signatures and the test."""
    rows = [["metric", "system", "score", "95% interval", "p-value"]]
    for score in comparison.scores:
        confidence, p_value = score.confidence, ""
        if score.p_value is not None:
            p_value = f"{score.p_value:.4f}{' *' if score.p_value < LEVEL else ''}"
        value, *limits = (
            shown(each, score.metric, width)
            for each in (
                score.value, *((confidence.mean, confidence.half_width) if confidence else ())
            )
        )  # fmt: skip
        rows.append([score.metric, score.system, value, " ± ".join(limits), p_value])
    lines = aligned(rows)
    lines += ["", *comparison.quoted_signatures(short=short)]
    if comparison.test:
        baseline = comparison.scores[0].system
        lines += ["", f"{comparison.test}; * differs from {baseline} (p < {LEVEL})"]
    return "\n".join(lines)


def shown(value: float, metric: str, width: int) -> str:
    """Return a score with the number of decimals that its metric has."""
    return f"{value:.{decimals(metric, width)}f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with a heading, without columns that are empty below it."""
    nonempty = [column for column in zip(*rows, strict=True) if any(column[1:])]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in nonempty]
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
