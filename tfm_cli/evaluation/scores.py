"""Scores as sacreBLEU computes and prints them, each with its signature."""

import dataclasses
import difflib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tfm_cli.errors import ConfigError, DataError, ResourceError
from tfm_cli.evaluation.bleu_tokenizer import check_available

if TYPE_CHECKING:  # importing sacreBLEU takes 0.2 s, which `--help` must not spend
    from sacrebleu.metrics.base import Metric
    from sacrebleu.metrics.base import Score as SacreBleuScore

METRICS = ("bleu", "chrf", "ter")
COMET = "comet"  # computed by another program, see comet.py
SMOOTH_METHODS = ("none", "floor", "add-k", "exp")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricOptions:
    """Options of the metrics; the defaults are those of sacreBLEU.

    Attributes:
        tokenize: BLEU's tokenizer; None for sacreBLEU's default, 13a.
        lowercase: compute BLEU on lowercased text.
        smooth_method: BLEU's smoothing, one of `SMOOTH_METHODS`.
        smooth_value: the constant of the `floor` and `add-k` methods; None for the default.
        effective_order: leave out n-gram orders without a match, for BLEU of a single segment.
        force: do not warn of hypotheses that look tokenized.
        chrf_char_order: the longest character n-grams of chrF.
        chrf_word_order: the longest word n-grams of chrF; 2 for chrF++.
        chrf_beta: the weight of recall against precision in chrF.
        chrf_whitespace: count spaces among the characters of chrF.
        chrf_lowercase: compute chrF on lowercased text.
        chrf_eps_smoothing: smooth chrF by a small number, as chrF++.py, NLTK and Moses do, and not
            by leaving out orders without n-grams.
        ter_case_sensitive: compute TER on text that is not lowercased.
        ter_asian_support: split Chinese and Japanese characters in TER; `ter_normalized` is needed.
        ter_no_punct: leave out punctuation in TER.
        ter_normalized: normalize and tokenize text for TER.
    """

    tokenize: str | None = None
    lowercase: bool = False
    smooth_method: str = "exp"
    smooth_value: float | None = None
    effective_order: bool = False
    force: bool = False
    chrf_char_order: int = 6
    chrf_word_order: int = 0
    chrf_beta: int = 2
    chrf_whitespace: bool = False
    chrf_lowercase: bool = False
    chrf_eps_smoothing: bool = False
    ter_case_sensitive: bool = False
    ter_asian_support: bool = False
    ter_no_punct: bool = False
    ter_normalized: bool = False


DEFAULTS = MetricOptions()


@dataclass(frozen=True, slots=True)
class Confidence:
    """The 95 % confidence interval of bootstrap resampling: mean ± half_width."""

    mean: float
    half_width: float


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one system by one metric.

    Attributes:
        metric: `bleu`, `chrf`, `ter` or `comet`.
        name: the metric's name in sacreBLEU, such as `chrF2++`.
        value: 0 to 100; TER may exceed 100, and lower is better; COMET is mostly between 0 and 1.
        signature: that of sacreBLEU, to be quoted with the value.
        short_signature: the same with abbreviated keys.
        confidence: the interval from bootstrap resampling; None without it.
    """

    metric: str
    name: str
    value: float
    signature: str
    short_signature: str
    confidence: Confidence | None
    _sacrebleu: "SacreBleuScore" = field(repr=False, compare=False)

    def quoted_signature(self, *, short: bool = False) -> str:
        """Return the signature preceded by the name, as papers quote it."""
        return f"{self.name}|{self.short_signature if short else self.signature}"

    def line(self, width: int = 1, *, short: bool = False) -> str:
        """Return the line that sacreBLEU prints: name, signature, value and its components.

        Args:
            width: number of decimals.
            short: abbreviate the signature.
        """
        return self._sacrebleu.format(
            width, False, self.short_signature if short else self.signature
        )

    def json(self, width: int = 1) -> str:
        """Return the JSON object that sacreBLEU prints."""
        return self._sacrebleu.format(width, False, self.signature, True)

    def bare(self, width: int = 1) -> str:
        """Return the value, with its confidence interval if there is one, but without a name."""
        return self._sacrebleu.format(width, True)


def lower_is_better(metric: str) -> bool:
    """Return True if lower scores are better, as for TER, which counts edits."""
    return metric == "ter"


def decimals(metric: str, width: int) -> int:
    """Return the digits to print after the decimal point: COMET, with its smaller scale, has more.

    Args:
        metric: a name, such as `bleu` or `COMET`.
        width: the digits of sacreBLEU's metrics.
    """
    return width + 3 if metric.lower() == COMET else width


def corpus_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = ("bleu",),
    options: MetricOptions = DEFAULTS,
    num_resamples: int = 0,
    extra: Mapping[str, "Metric"] | None = None,
) -> list[Score]:
    """Return a Score for each metric, in the given order.

    Args:
        hypotheses: detokenized translations, one for each segment; blank ones count as well.
        references: one or more translations of the whole text, each as long as `hypotheses`.
        metrics: some of METRICS.
        num_resamples: bootstrap resamples for a confidence interval; 0 for none. The seed is the
            environment variable SACREBLEU_SEED, or 12345.
        extra: metrics beside METRICS, by name.

    Raises:
        ConfigError: an unknown metric, tokenizer or smoothing method, or an invalid seed.
        DataError: nothing to score, or different numbers of hypotheses and references.
        ResourceError: the tokenizer needs a package or a file that is missing.
    """
    check_aligned(hypotheses, references)
    built = build_metrics(metrics, references, options, extra)
    return [score_corpus(name, metric, hypotheses, num_resamples) for name, metric in built.items()]


def render(
    scores: Iterable[Score],
    style: Literal["json", "text"],
    *,
    width: int = 1,
    short: bool = False,
    value_only: bool = False,
) -> str:
    """Return the scores as sacreBLEU prints them: sorted by name, text aligned at the `=`."""
    by_name = sorted(scores, key=lambda score: score.metric)
    if value_only:
        parts = [score.bare(width) for score in by_name]
    elif style == "json":
        parts = [score.json(width) for score in by_name]
    else:
        parts = [score.line(width, short=short) for score in by_name]
    if style == "json":
        return parts[0] if len(parts) == 1 else "[\n" + ",\n".join(parts) + "\n]"
    split = [part.partition(" =") for part in parts]
    indent = max((len(left) for left, equals, _ in split if equals), default=0)
    return "\n".join(
        left.rjust(indent) + equals + right if equals else left for left, equals, right in split
    )


def sentence_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metric: str = "bleu",
    options: MetricOptions = DEFAULTS,
) -> Iterator[Score]:
    """Yield a Score for each segment, in order; BLEU uses effective order."""
    check_aligned(hypotheses, references)
    options = dataclasses.replace(options, effective_order=True)
    built = build_metrics((metric,), references, options)[metric]
    for hypothesis, *segment_references in zip(hypotheses, *references, strict=True):
        yield score_of(metric, built, built.sentence_score(hypothesis, segment_references))


def check_aligned(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise a DataError unless each reference has a line for each hypothesis, and at least one.

    sacreBLEU itself truncates all to the shortest without an error.

    Raises:
        DataError: see above.
        TypeError: a text is given in place of a list of lines.
    """
    if any(isinstance(text, str) for text in (hypotheses, references, *references)):
        raise TypeError(
            "expected a list of hypotheses and a list of references, each a list of lines"
        )
    if not hypotheses or not references:
        raise DataError("there is nothing to score: expected hypotheses and references")
    for number, reference in enumerate(references, start=1):
        if len(reference) != len(hypotheses):
            counts = f"{len(hypotheses)} and {len(reference)} lines"
            raise DataError(f"hypotheses and reference {number} do not align: {counts}")


def check_options(
    metrics: Iterable[str], options: MetricOptions, extra: Iterable[str] = ()
) -> None:
    """Raise a ConfigError that lists every invalid option, with the nearest valid name.

    Args:
        metrics: the names of the metrics to compute.
        options: their options.
        extra: the names of metrics beside METRICS.
    """
    from sacrebleu import BLEU

    known = (*METRICS, *extra)
    named: list[tuple[str, str, tuple[str, ...]]] = [("metric", name, known) for name in metrics]
    if not named:
        raise ConfigError("no metric to compute", hint=f"choose among {', '.join(known)}")
    if options.tokenize is not None:
        named.append(("tokenizer", options.tokenize, tuple(BLEU.TOKENIZERS)))
    named.append(("smoothing method", options.smooth_method, SMOOTH_METHODS))
    problems = [
        f"unknown {kind} `{name}`{_nearest(name, known)}"
        for kind, name, known in named
        if name not in known
    ]
    smooth_value = options.smooth_value
    if smooth_value is not None and not 0 <= smooth_value < math.inf:
        problems.append(f"the smoothing value must be at least 0 and finite, got {smooth_value}")
    if options.chrf_char_order + options.chrf_word_order < 1:
        problems.append("chrF has nothing to count: its character and word order are both 0")
    seed = os.environ.get("SACREBLEU_SEED", "12345")
    if seed.lower() != "none" and not seed.isdecimal():
        problems.append(f"SACREBLEU_SEED must be a whole number or `none`, got `{seed}`")
    if len(problems) > 1:
        raise ConfigError("\n  ".join([f"{len(problems)} settings are wrong", *problems]))
    if problems:
        raise ConfigError(problems[0])


def build_metrics(
    names: Sequence[str],
    references: Sequence[Sequence[str]],
    options: MetricOptions,
    extra: Mapping[str, "Metric"] | None = None,
) -> dict[str, "Metric"]:
    """Return the metrics by name, those of sacreBLEU with the statistics of references cached."""
    extra = extra or {}
    check_options(names, options, extra)
    return {
        name: extra[name] if name in extra else _build(name, references, options)
        for name in dict.fromkeys(names)
    }


def _build(name: str, references: Sequence[Sequence[str]], options: MetricOptions) -> "Metric":
    from sacrebleu import BLEU, CHRF, TER

    if name == "chrf":
        return CHRF(
            char_order=options.chrf_char_order,
            word_order=options.chrf_word_order,
            beta=options.chrf_beta,
            whitespace=options.chrf_whitespace,
            lowercase=options.chrf_lowercase,
            eps_smoothing=options.chrf_eps_smoothing,
            references=references,
        )
    if name == "ter":
        return TER(
            normalized=options.ter_normalized,
            no_punct=options.ter_no_punct,
            asian_support=options.ter_asian_support,
            case_sensitive=options.ter_case_sensitive,
            references=references,
        )
    check_available(options.tokenize)
    try:
        return BLEU(
            lowercase=options.lowercase,
            force=options.force,
            tokenize=options.tokenize,
            smooth_method=options.smooth_method,
            smooth_value=options.smooth_value,
            effective_order=options.effective_order,
            references=references,
        )
    except (ImportError, RuntimeError, OSError, AssertionError) as error:  # a bad dictionary
        reason = " ".join(str(error).split())
        message = f"the tokenizer `{options.tokenize}` cannot be used: {reason}"
        raise ResourceError(message) from error


def score_corpus(
    name: str, metric: "Metric", hypotheses: Sequence[str], num_resamples: int = 0
) -> Score:
    """Return the Score of one system by a metric of `build_metrics`."""
    try:
        score = metric.corpus_score(hypotheses, None, n_bootstrap=max(num_resamples, 1))
    except MemoryError as error:
        raise out_of_memory(num_resamples, len(hypotheses)) from error
    return score_of(name, metric, score)


def out_of_memory(num_resamples: int, num_lines: int) -> ResourceError:
    """Return the error for a bootstrap whose samples, all drawn at once, do not fit into memory."""
    message = f"{num_resamples} resamples of {num_lines} lines do not fit into memory"
    return ResourceError(message, hint="use fewer resamples")


def score_of(name: str, metric: "Metric", score: "SacreBleuScore") -> Score:
    """Return the Score for a score that a metric of sacreBLEU has computed."""
    signature = metric.get_signature()
    confidence = None
    if score._ci >= 0:  # -1 without a bootstrap
        confidence = Confidence(float(score._mean), float(score._ci))
    return Score(
        metric=name,
        name=score.name,
        value=float(score.score),
        signature=signature.format(),
        short_signature=signature.format(short=True),
        confidence=confidence,
        _sacrebleu=score,
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean `{match[0]}`?" if match else f", expected one of {', '.join(known)}"
