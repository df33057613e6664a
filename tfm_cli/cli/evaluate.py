"""`tfm evaluate`: sacreBLEU's scores of translations, with its flags and in its formats."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import typer

from tfm_cli.cli.commands import DeclaredCommand
from tfm_cli.cli.options import (
    Command,
    Options,
    model_files,
    option,
    precision_option,
    quiet_option,
    refuse_overwriting,
    set_up_logging,
    workers_option,
)
from tfm_cli.console import counted, one_line
from tfm_cli.errors import CheckError, ConfigError, DataError
from tfm_cli.evaluation import runs, scores, significance
from tfm_cli.evaluation.bleu_tokenizer import DEFAULT_TOKENIZER, check_available, choose_tokenizer
from tfm_cli.evaluation.comet import CometModel, comet_scores, find_model, find_python
from tfm_cli.evaluation.scores import COMET, METRICS, MetricOptions
from tfm_cli.evaluation.significance import Method
from tfm_cli.files.atomic import check_writable
from tfm_cli.text.reader import held_in_memory, is_typed, open_lines
from tfm_cli.text.writer import open_output, write_lines

if TYPE_CHECKING:
    from tfm_cli.evaluation.comet_metric import CometMetric
    from tfm_cli.pictures.report import Links
    from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)

_MAX_RESAMPLES = 1_000_000


class EvaluateOptions(Options):
    """The options of `tfm evaluate`."""

    references: tuple[str, ...] = option(
        "Text",
        metavar="REFERENCE",
        default=...,
        help="Reference translations, plain or compressed; each file is one reference.",
    )
    inputs: tuple[str, ...] = option(
        "Text",
        "--input",
        "-i",
        metavar="FILE",
        default=("-",),
        shown_default="-",
        help="Translations to score; give several to compare systems.",
    )
    metrics: tuple[str, ...] = option(
        "Metrics",
        "--metrics",
        "-m",
        metavar="NAME",
        default=("bleu",),
        shown_default="bleu",
        help="Any of bleu, chrf, ter and comet.",
    )
    tokenize: str | None = option(
        "Metrics", "--tokenize", "-tok", shown_default="13a", help="BLEU's tokenizer."
    )
    lowercase: bool = option(
        "Metrics", "--lowercase", "-lc", default=False, help="Case-insensitive BLEU."
    )
    smooth_method: str = option(
        "Metrics",
        "--smooth-method",
        "-s",
        default="exp",
        help="BLEU's smoothing: exp, floor, add-k or none.",
    )
    smooth_value: float | None = option(
        "Metrics",
        "--smooth-value",
        "-sv",
        ge=0,
        le=1_000_000,
        shown_default="0.1 and 1",
        help="The value of floor and of add-k.",
    )
    force: bool = option(
        "Metrics", "--force", default=False, help="Do not warn of hypotheses that look tokenized."
    )
    chrf_char_order: int = option(
        "Metrics",
        "--chrf-char-order",
        "-cc",
        default=6,
        ge=0,
        le=99,
        help="Longest character n-gram of chrF.",
    )
    chrf_word_order: int = option(
        "Metrics",
        "--chrf-word-order",
        "-cw",
        default=0,
        ge=0,
        le=99,
        help="Longest word n-gram of chrF; 2 is chrF++.",
    )
    chrf_beta: int = option(
        "Metrics",
        "--chrf-beta",
        default=2,
        ge=1,
        le=99,
        help="Weight of recall against precision in chrF.",
    )
    chrf_whitespace: bool = option(
        "Metrics", "--chrf-whitespace", default=False, help="Count spaces in chrF."
    )
    chrf_lowercase: bool = option(
        "Metrics", "--chrf-lowercase", default=False, help="Case-insensitive chrF."
    )
    chrf_eps_smoothing: bool = option(
        "Metrics",
        "--chrf-eps-smoothing",
        default=False,
        help="Smooth chrF as chrF++.py, NLTK and Moses do.",
    )
    ter_case_sensitive: bool = option(
        "Metrics", "--ter-case-sensitive", default=False, help="Case-sensitive TER."
    )
    ter_asian_support: bool = option(
        "Metrics",
        "--ter-asian-support",
        default=False,
        help="Split Chinese and Japanese characters in TER; needs --ter-normalized.",
    )
    ter_no_punct: bool = option(
        "Metrics", "--ter-no-punct", default=False, help="Leave out punctuation in TER."
    )
    ter_normalized: bool = option(
        "Metrics", "--ter-normalized", default=False, help="Normalize and tokenize text for TER."
    )
    sentence_level: bool = option(
        "Metrics", "--sentence-level", "-sl", default=False, help="Score each line by itself."
    )
    comet_python: str | None = option(
        "COMET",
        "--comet-python",
        metavar="PATH",
        help="A Python with the package unbabel-comet, which adds COMET to the metrics.",
    )
    comet_model: Path | None = option(
        "COMET",
        "--comet-model",
        metavar="DIR",
        help="Directory of a COMET model, with hparams.yaml and checkpoints/model.ckpt: a pickle, "
        "which that Python executes.",
    )
    confidence: bool = option(
        "Significance",
        "--confidence",
        "-ci",
        default=False,
        help="Add the 95% confidence interval by bootstrap resampling.",
    )
    confidence_n: int = option(
        "Significance",
        "--confidence-n",
        "-cin",
        default=1000,
        ge=2,
        le=_MAX_RESAMPLES,
        help="Number of resamples for the confidence interval.",
    )
    paired_bs: bool = option(
        "Significance",
        "--paired-bs",
        "-pbs",
        default=False,
        help="Test each system against the first by paired bootstrap resampling.",
    )
    paired_bs_n: int = option(
        "Significance",
        "--paired-bs-n",
        "-pbsn",
        default=1000,
        ge=1,
        le=_MAX_RESAMPLES,
        help="Number of resamples of the paired bootstrap.",
    )
    paired_ar: bool = option(
        "Significance",
        "--paired-ar",
        "-par",
        default=False,
        help="Test each system against the first by paired approximate randomization.",
    )
    paired_ar_n: int = option(
        "Significance",
        "--paired-ar-n",
        "-parn",
        default=10000,
        ge=1,
        le=_MAX_RESAMPLES,
        help="Number of trials of the approximate randomization.",
    )
    mean: bool = option(
        "Output",
        "--mean",
        default=False,
        help="Take the inputs for runs of one system, such as with several seeds: add the mean and "
        "the standard deviation.",
    )
    width: int = option(
        "Output",
        "--width",
        "-w",
        default=1,
        ge=0,
        le=20,
        help="Digits after the decimal point.",
    )
    score_only: bool = option(
        "Output",
        "--score-only",
        "-b",
        default=False,
        help="Print only the number; its signature goes to standard error.",
    )
    output_format: Literal["json", "text", "latex"] = option(
        "Output",
        "--format",
        "-f",
        default="json",
        help="Format of the scores; latex is for several systems.",
    )
    short: bool = option(
        "Output", "--short", "-sh", default=False, help="Abbreviate signatures, except in JSON."
    )
    fail_under: float | None = option(
        "Output",
        "--fail-under",
        ge=-1_000_000,
        le=1_000_000,
        help="Exit with 1 if the first metric of the first system, or with --mean of all, is below "
        "this (ter: above).",
    )
    model: Path | None = option(
        "Translation",
        "--model",
        metavar="DIR",
        help="Translate --source with this model, in place of --input.",
    )
    source: str | None = option(
        "Translation",
        "--source",
        metavar="FILE",
        help="The source text, which --model translates, --report shows and COMET reads.",
    )
    output: Path | None = option(
        "Translation",
        "--output",
        "-o",
        metavar="FILE",
        help="Also write its translations to this file.",
    )
    report: Path | None = option(
        "Report",
        "--report",
        metavar="FILE",
        help="Write a page about the scores of one or two systems and all lines. With --model and "
        "--input, the model only aligns words.",
    )
    training_text: str | None = option(
        "Report",
        "--training-text",
        metavar="FILE",
        help="Target text of training, in which the report counts words; otherwise in the first "
        "reference.",
    )
    overwrite: bool = option(
        "Report", "--overwrite", default=False, help="Replace a file that is not a page of tfm."
    )
    precision: str = precision_option("Translation")
    workers: int = workers_option("Translation")
    quiet: bool = quiet_option()


# sacreBLEU's lists of values, and the options that exclude or need each other.

_FOR_MODEL = ("output", "beam_size", "length_penalty", "precision", "workers")
_FOR_COMET = ("comet_python", "comet_model")
_FOR_REPORT = ("training_text", "overwrite")
_MAX_REPORTED = 2  # systems
_FOR_CORPUS = ("confidence", "paired_bs", "paired_ar", "fail_under", "report")
_NEEDED = {  # options, and the metric or option without which they have no effect
    "tokenize": "bleu",
    "lowercase": "bleu",
    "smooth_method": "bleu",
    "smooth_value": "bleu",
    "chrf_char_order": "chrf",
    "chrf_word_order": "chrf",
    "chrf_beta": "chrf",
    "chrf_whitespace": "chrf",
    "chrf_lowercase": "chrf",
    "chrf_eps_smoothing": "chrf",
    "ter_case_sensitive": "ter",
    "ter_asian_support": "ter_normalized",
    "ter_no_punct": "ter",
    "ter_normalized": "ter",
    "confidence_n": "confidence",
    "paired_bs_n": "paired_bs",
    "paired_ar_n": "paired_ar",
}

# The report always has chrF and intervals.
_REPORTED = (
    "chrf_char_order", "chrf_word_order", "chrf_beta", "chrf_whitespace", "chrf_lowercase",
    "chrf_eps_smoothing", "confidence_n", "paired_bs_n",
)  # fmt: skip


class EvaluateCommand(DeclaredCommand):
    """A command that accepts `-m bleu chrf`, and `-i a.txt b.txt` after references, as sacreBLEU.

    Otherwise the second system would count as another reference, and the scores would be wrong.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flag before each further value, then parse."""
        rest, spread = list(args), list[str]()
        while rest:
            word = rest.pop(0)
            if word in ("-m", "--metrics") and rest:
                spread += [word, rest.pop(0)]
                while rest and rest[0] in (*METRICS, COMET):
                    spread += [word, rest.pop(0)]
            elif word in ("-i", "--input") and rest:
                has_references = self.make_parser(ctx).parse_args(list(spread))[0]["references"]
                spread += [word, rest.pop(0)]
                while has_references and rest and (rest[0] == "-" or rest[0][:1] != "-"):
                    spread += [word, rest.pop(0)]
            else:
                spread.append(word)
                if word == "--":
                    spread, rest = spread + rest, []
        return super().parse_args(ctx, spread)


def systems_once(paths: Sequence[str], *, paired: bool) -> list[str]:
    """Return the paths, without repetitions of a paired test's baseline.

    Thus `-i base.txt *.txt` compares the baseline with all others.

    Raises:
        ConfigError: any other path is given twice.
    """
    rest = [path for path in paths[1:] if not (paired and path == paths[0])]
    systems = [paths[0], *rest]
    twice = sorted({path for path in systems if systems.count(path) > 1})
    if twice:
        raise ConfigError(f"given more than once with `--input`: {', '.join(twice)}")
    return systems


def check_usage(given: Mapping[str, str], names: Sequence[str], *, num_systems: int) -> None:
    """Raise one error for all contradictions among the options; warn of those without effect.

    Args:
        given: the flags on the command line, by name.
        names: the metrics.
        num_systems: number of systems to score.

    Raises:
        ConfigError: options contradict each other.
    """
    problems = _comet_problems(given, names)
    if "model" not in given:
        problems += [f"`{given[name]}` needs `--model`" for name in _FOR_MODEL if name in given]
        if "device" in given and COMET not in names:
            problems.append(f"`{given['device']}` needs `--model` or `--comet-model`")
    elif "source" not in given:
        problems.append("`--model` needs `--source`, the text to translate")
    if "report" not in given:
        problems += [f"`{given[name]}` needs `--report`" for name in _FOR_REPORT if name in given]
        if "source" in given and "model" not in given and COMET not in names:
            problems.append("`--source` needs `--model`, `--report` or `--comet-model`")
    elif num_systems > _MAX_REPORTED:
        problems.append(f"`--report` compares at most two systems, got {num_systems}")
    clashes = [("paired_bs", "paired_ar")]
    clashes += [("inputs", "output" if "report" in given else "model")]
    clashes += [("score_only", name) for name in ("paired_bs", "paired_ar")]
    clashes += [("sentence_level", name) for name in _FOR_CORPUS]
    clashes += [("mean", name) for name in ("paired_bs", "paired_ar", "report", "model")]
    for one, other in clashes:
        if one in given and other in given:
            problems.append(f"`{given[one]}` and `{given[other]}` exclude each other")
    if "mean" in given and num_systems == 1:
        problems.append("`--mean` is over several runs, got one; repeat `--input`")
    for name in ("paired_bs", "paired_ar"):
        if name in given and num_systems == 1:
            problems.append(f"`{given[name]}` compares systems, got one; repeat `--input`")
    for name in ("confidence", "sentence_level"):
        if name in given and num_systems > 1:
            problems.append(f"`{given[name]}` is for one system, got {num_systems}")
    if "sentence_level" in given and len(names) > 1:
        problems.append(f"`--sentence-level` is for one metric, got {len(names)}")
    if len(problems) > 1:
        raise ConfigError("\n  ".join([f"the command has {len(problems)} problems", *problems]))
    if problems:
        raise ConfigError(problems[0])
    for name, need in _NEEDED.items():
        if "report" in given and name in _REPORTED:
            continue
        if name in given and need not in given and need not in names:
            shown = f"`-m {need}`" if need in METRICS else f"`--{need.replace('_', '-')}`"
            logger.warning("`%s` has no effect without %s", given[name], shown)


def _comet_problems(given: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Return what COMET lacks."""
    if COMET not in names:
        return []
    problems = [
        f"COMET needs `--{name.replace('_', '-')}`" for name in _FOR_COMET if name not in given
    ]
    if "source" not in given:
        problems.append("COMET needs `--source`, the text that was translated")
    return problems


class Texts(NamedTuple):
    """The texts that are scored.

    Attributes:
        systems: the translations of each system, by its name.
        references: the references.
        source: the source; empty if it is not given.
        alignments: a word alignment of each line and system, for a report with a model.
    """

    systems: list[tuple[str, list[str]]]
    references: list[list[str]]
    source: list[str]
    alignments: "list[list[Links]]"


def evaluate(options: EvaluateOptions) -> None:
    """Score translations with sacreBLEU.

    Prints what the sacrebleu program prints, for the same flags. Translations come from --input,
    from standard input, or from a model. COMET is computed by another Python.

    Example:  tfm evaluate ref.de -i hyp.de -m bleu,chrf
    """
    set_up_logging(options.quiet)
    sacrebleu = logging.getLogger("sacrebleu")
    sacrebleu.handlers, sacrebleu.propagate = logging.getLogger("tfm_cli").handlers, False
    names = [name.strip().lower() for text in options.metrics for name in text.split(",")]
    names = list(
        dict.fromkeys([*names, *([COMET] if set(_FOR_COMET) & set(options.given) else [])])
    )
    paths = systems_once(options.inputs, paired=options.paired_bs or options.paired_ar)
    metric_options = MetricOptions(
        tokenize=options.tokenize,
        lowercase=options.lowercase,
        smooth_method=options.smooth_method,
        smooth_value=options.smooth_value,
        force=options.force,
        chrf_char_order=options.chrf_char_order,
        chrf_word_order=options.chrf_word_order,
        chrf_beta=options.chrf_beta,
        chrf_whitespace=options.chrf_whitespace,
        chrf_lowercase=options.chrf_lowercase,
        chrf_eps_smoothing=options.chrf_eps_smoothing,
        ter_case_sensitive=options.ter_case_sensitive,
        ter_asian_support=options.ter_asian_support,
        ter_no_punct=options.ter_no_punct,
        ter_normalized=options.ter_normalized,
    )
    scores.check_options(names, metric_options, extra=(COMET,))
    if "bleu" in names:
        check_available(options.tokenize)
    check_usage(options.given, names, num_systems=len(paths))
    if COMET in names and len(options.references) > 1:
        raise ConfigError(f"COMET takes one reference, got {len(options.references)}")
    if options.output_format == "latex" and options.mean:
        raise ConfigError("`--format latex` and `--mean` exclude each other")
    if options.output_format == "latex" and len(paths) == 1:
        raise ConfigError("`--format latex` is a table of systems; repeat `--input`")
    check_writable("-")
    check_output(options)
    comet = _Comet.found(options) if COMET in names else None
    texts = _read_texts(options, paths)
    if "bleu" in names and options.tokenize is None:
        _warn_of_script(options.references[0], texts.references[0])
    if options.sentence_level:
        _print_sentence_scores(options, texts, names[0], metric_options, comet)
        return
    value = _print_scores(options, texts, names, metric_options, comet)
    if options.report is not None:
        of_report = [name for name in names if name != COMET] or ["chrf"]
        _write_report(options, options.report, texts, of_report, metric_options)
    if options.fail_under is not None:
        _check_score(names[0], value, options.fail_under, options.width)


def check_output(options: EvaluateOptions) -> None:
    """Raise an error if `--output` or `--report` cannot be written or is a file that is read."""
    output, report = options.output, options.report
    read: list[str | Path] = [*options.references, *options.inputs]
    read += [each for each in (options.source, options.training_text) if each is not None]
    read += [] if options.model is None else model_files(options.model)
    if output is not None:
        if str(output) == "-":
            raise ConfigError("`--output` must be a file: standard output is for the scores")
        refuse_overwriting(output, read)
        check_writable(output)
    if report is not None:
        from tfm_cli.pictures.page import check_output as check_report

        refuse_overwriting(report, read, option="--report")
        check_report(report, overwrite=options.overwrite, option="--report")
        if output is not None and output.resolve() == report.resolve():
            raise ConfigError(f"{report}: is named by both `--output` and `--report`")
    if options.training_text is not None:
        if options.training_text == "-":
            raise ConfigError("`--training-text` must be a file")
        with open_lines(options.training_text):
            pass


def _read_texts(options: EvaluateOptions, paths: Sequence[str]) -> Texts:
    """Return the texts to score; with `--model` they are translated first."""
    model, source = options.model, options.source
    translates = model is not None and "inputs" not in options.given
    others = [] if source is None else [source]
    lines = _read_aligned(options.references, others if translates else [*paths, *others])
    references = [lines[path] for path in options.references]
    of_source = [] if source is None else lines[source]
    alignments: list[list[Links]] = []
    if model is not None and source is not None and translates:
        translations, alignments = _translate(options, model, of_source, source)
        if options.output is not None:
            with open_output(options.output) as stream:
                write_lines(stream, translations)
        systems = [(one_line(str(model)), translations)]
    else:
        systems = [(one_line(path), lines[path]) for path in paths]
        if model is not None:
            alignments = _align(options, model, of_source, [text for _, text in systems])
    _warn_of_blanks(options.references, lines)
    return Texts(systems, references, of_source, alignments)


def _translate(
    options: EvaluateOptions, model: Path, lines: Sequence[str], name: str
) -> "tuple[list[str], list[list[Links]]]":
    """Return the model's best translations of lines, and for a report their word alignments.

    Args:
        options: the options of the command.
        model: the model directory.
        lines: the source.
        name: name of the source in warnings.
    """
    translator = _translator(options, model)
    found = translator.translate(lines, name=name)
    if options.report is None:
        return [translation.text for translation in found], []
    from tfm_cli.pictures.report import largest_weights

    texts, links = [], []
    for translation in found:
        texts.append(translation.text)
        links.append(largest_weights(translation.candidates[0].alignment))
    return texts, [links]


def _align(
    options: EvaluateOptions, model: Path, source: Sequence[str], systems: Sequence[Sequence[str]]
) -> "list[list[Links]]":
    """Return the word alignment of each line of each system with the source."""
    from tfm_cli.pictures.report import largest_weights

    translator = _translator(options, model)
    return [
        [largest_weights(rows) for rows in translator.align(source, translations)]
        for translations in systems
    ]


def _translator(options: EvaluateOptions, model: Path) -> "Translator":
    from tfm_cli.model_directory.config_file import load_config
    from tfm_cli.translation.translator import Translator, TranslatorOptions

    settings = load_config(model).settings.search
    return Translator.load(
        model,
        TranslatorOptions(
            search=dataclasses.replace(settings, n_best=1, **options.settings["search"]),
            scores=False,
            alignment=options.report is not None,
        ),
        device=options.setting("training", "device"),
        precision=options.precision,
        workers=options.workers,
    )


def _write_report(
    options: EvaluateOptions,
    path: Path,
    texts: Texts,
    metrics: Sequence[str],
    metric_options: MetricOptions,
) -> None:
    """Write the report of `--report`."""
    from tfm_cli.pictures import report
    from tfm_cli.pictures.report_page import report_page

    alignments = texts.alignments or [[]] * len(texts.systems)
    systems = [
        report.System(name, translations, links)
        for (name, translations), links in zip(texts.systems, alignments, strict=True)
    ]
    with contextlib.ExitStack() as stack:
        training_text = None
        if options.training_text is not None:
            training_text = stack.enter_context(open_lines(options.training_text))
        built = report.build_report(
            report.Texts(
                systems=systems,
                references=texts.references,
                source=texts.source,
                training_text=training_text,
            ),
            metrics=metrics,
            options=metric_options,
            num_resamples=options.paired_bs_n if len(systems) > 1 else options.confidence_n,
        )
    report_page(built).write(path, overwrite=options.overwrite)
    logger.info("wrote %s", path)


class _Comet(NamedTuple):
    """The Python, the model and the device that compute COMET's scores."""

    python: str
    model: CometModel
    device: str
    shows_progress: bool

    @classmethod
    def found(cls, options: EvaluateOptions) -> "_Comet":
        """Return what `--comet-python` and `--comet-model` name."""
        assert options.comet_python is not None
        assert options.comet_model is not None
        model = find_model(options.comet_model)
        python = find_python(options.comet_python)
        logger.warning(
            "%s is a pickle, which %s executes: trust its source", model.checkpoint, python
        )
        device = str(options.setting("training", "device"))
        return cls(python, model, device, not options.quiet and sys.stderr.isatty())

    def metric(self, texts: Texts) -> "CometMetric":
        """Return the metric with the scores of all systems, which this call computes."""
        from tfm_cli.evaluation.comet_metric import CometMetric

        systems = [lines for _, lines in texts.systems]
        logger.info("COMET scores %s", counted(len(systems) * len(texts.source), "segment"))
        found = comet_scores(
            self.python, self.model, systems, texts.source, texts.references[0],
            device=self.device, stderr=sys.stderr.buffer if self.shows_progress else None,
        )  # fmt: skip
        return CometMetric(self.model, systems, found)


def _print_sentence_scores(
    options: EvaluateOptions,
    texts: Texts,
    metric: str,
    metric_options: MetricOptions,
    comet: "_Comet | None",
) -> None:
    score = None
    hypotheses = texts.systems[0][1]
    if comet is not None:
        found = comet.metric(texts).sentence_scores(hypotheses)
    else:
        found = scores.sentence_scores(
            hypotheses, texts.references, metric=metric, options=metric_options
        )
    for score in found:
        bare = score.bare(options.width)
        typer.echo(bare if options.score_only else score.line(options.width, short=options.short))
    if options.score_only and score:
        typer.echo(score.quoted_signature(short=options.short), err=True)


def _print_scores(
    options: EvaluateOptions,
    texts: Texts,
    names: Sequence[str],
    metric_options: MetricOptions,
    comet: "_Comet | None",
) -> float:
    """Print the scores of all systems; return the first metric of the first one, or its mean."""
    style = options.output_format
    extra = {} if comet is None else {COMET: comet.metric(texts)}
    layout: dict[str, Any] = {
        "width": options.width,
        "short": options.short,
        "value_only": options.score_only,
    }
    if len(texts.systems) == 1 and style != "latex":
        corpus_scores = scores.corpus_scores(
            texts.systems[0][1],
            texts.references,
            metrics=names,
            options=metric_options,
            num_resamples=options.confidence_n if options.confidence else 0,
            extra=extra,
        )
        value = corpus_scores[0].value
        text = scores.render(corpus_scores, style, **layout)
        signatures = [score.quoted_signature(short=options.short) for score in corpus_scores]
    else:
        comparison = _compare(options, texts, names, metric_options, extra)
        value = comparison.scores[0].value
        if options.mean and style != "latex":
            value = runs.spreads(comparison)[0].mean
            text = runs.render(comparison, style, **layout)
        else:
            text = significance.render(comparison, style, **layout)
        signatures = comparison.quoted_signatures(short=options.short)
    typer.echo(text)
    if options.score_only:
        typer.echo("\n".join(signatures), err=True)
    return value


def _compare(
    options: EvaluateOptions,
    texts: Texts,
    names: Sequence[str],
    metric_options: MetricOptions,
    extra: "Mapping[str, CometMetric]",
) -> significance.Comparison:
    """Return the scores of several systems, with the test that the options ask for."""
    if not (options.paired_bs or options.paired_ar):
        return significance.compare(
            texts.systems, texts.references, metrics=names, options=metric_options, extra=extra
        )
    method: Method = "bootstrap" if options.paired_bs else "randomization"
    (name, first), *others = texts.systems
    return significance.paired_test(
        [(f"Baseline: {name}", first), *others],
        texts.references,
        method=method,
        metrics=names,
        options=metric_options,
        num_samples=options.paired_bs_n if options.paired_bs else options.paired_ar_n,
        extra=extra,
    )


def _read_aligned(references: Sequence[str], others: Sequence[str]) -> dict[str, list[str]]:
    """Return the lines of each file, by its path.

    Raises:
        ConfigError: standard input is named more than once.
        DataError: files cannot be read, or have another number of lines than the first reference;
            the message lists them all.
    """
    paths = [*references, *others]
    if paths.count("-") > 1:
        raise ConfigError("standard input can be read only once, got `-` more than once")
    texts: dict[str, list[str]] = {}
    errors = []
    for path in dict.fromkeys(paths):
        try:
            texts[path] = _read(path)
        except DataError as error:
            errors.append(error)
    if len(errors) > 1:
        raise DataError("\n  ".join([f"{len(errors)} files cannot be used", *map(str, errors)]))
    if errors:
        raise errors[0]
    first, expected = _name(references[0]), len(texts[references[0]])
    if not expected:
        raise DataError(f"{first}: has no lines, expected one for each segment")
    wrong = {_name(path): len(lines) for path, lines in texts.items() if len(lines) != expected}
    hint = f"give one line for each line of {first}, a blank one where there is no text"
    if len(wrong) > 1:
        counts = [f"{path}: {count} lines" for path, count in wrong.items()]
        title = f"{len(wrong)} files do not align with {first}, which has {expected} lines"
        raise DataError("\n  ".join([title, *counts]), hint=hint)
    for path, count in wrong.items():
        raise DataError(f"{path} and {first} do not align: {count} and {expected} lines", hint=hint)
    return texts


def _warn_of_blanks(references: Sequence[str], texts: dict[str, list[str]]) -> None:
    """Warn of blank lines in a reference: any translation of such a segment counts as wrong."""
    for path in dict.fromkeys(references):
        blank = [number for number, line in enumerate(texts[path], 1) if not line.strip()]
        if blank:
            message = "%s: blank references: %d (first: line %d)"
            logger.warning(message, _name(path), len(blank), blank[0])


def _warn_of_script(path: str, lines: Sequence[str]) -> None:
    """Warn if BLEU's tokenizer is wrong for the script, as it splits text at spaces only."""
    suited = choose_tokenizer(lines)
    if suited.tokenizer != DEFAULT_TOKENIZER:
        logger.warning(
            "%s: %s, but BLEU's tokenizer %s splits words at spaces; use `-tok %s`",
            _name(path), suited.reason, DEFAULT_TOKENIZER, suited.tokenizer,
        )  # fmt: skip


def _name(path: str) -> str:
    return "standard input" if path == "-" else path


def _read(path: str) -> list[str]:
    if is_typed(path):
        logger.info("type or paste the translations, a segment a line; Ctrl-D ends them")
    with open_lines(path) as reader:
        lines = held_in_memory(reader, reader.name)
        for note in reader.notes():
            logger.warning("%s: %s", reader.name, note)
    tabs = {line.count("\t") for line in lines}
    if path == "-" and len(tabs) == 1 and tabs != {0}:  # sacreBLEU treats the columns as systems
        logger.warning("standard input has columns, but is scored as one system; see `--input`")
    return lines


def _check_score(metric: str, value: float, limit: float, width: int) -> None:
    """Raise a CheckError if a score is worse than `--fail-under` allows."""
    lower = scores.lower_is_better(metric)
    if value > limit if lower else value < limit:
        shown = f"{value:.{scores.decimals(metric, width)}f}"
        if float(shown) == limit:  # rounding would hide the difference
            shown = repr(value)
        raise CheckError(
            f"{metric} is {shown}, expected at {'most' if lower else 'least'} {limit:g}"
        )


COMMAND = Command(
    evaluate,
    EvaluateOptions,
    {
        "Text": (),
        "Metrics": (),
        "COMET": (),
        "Significance": (),
        "Output": (),
        "Translation": ("search.beam_size", "search.length_penalty", "training.device"),
        "Report": (),
        "Messages": (),
    },
    has_short_flags=False,
    parser=EvaluateCommand,
)
