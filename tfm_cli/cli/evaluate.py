"""`tfm evaluate`: what sacreBLEU says of translations, in its own words, letters and formats."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from tfm_cli import console
from tfm_cli.cli.options import (
    PRECISION,
    WORKERS,
    check_precision,
    flag,
    model_files,
    refuse_overwriting,
)
from tfm_cli.config.settings import SearchConfig, TrainingConfig
from tfm_cli.console import one_line
from tfm_cli.errors import CheckError, ConfigError, DataError
from tfm_cli.evaluation import scores, significance
from tfm_cli.evaluation.bleu_tokenizer import DEFAULT_TOKENIZER, check_available, choose_tokenizer
from tfm_cli.evaluation.scores import METRICS, MetricOptions
from tfm_cli.evaluation.significance import Method
from tfm_cli.files.atomic import check_writable
from tfm_cli.text.reader import held_in_memory, is_typed, open_lines
from tfm_cli.text.writer import open_output, write_lines

logger = logging.getLogger(__name__)


# How `tfm evaluate` may be called: sacreBLEU's lists of values, and which flags go together.

_FOR_MODEL = ("source", "output", "beam_size", "length_penalty", "device", "precision", "workers")
_FOR_CORPUS = ("confidence", "paired_bs", "paired_ar", "fail_under")
_IDLE_WITHOUT = {  # settings that are idle unless the metric or flag behind them is asked for
    "tokenize": "bleu",
    "lowercase": "bleu",
    "smooth_method": "bleu",
    "smooth_value": "bleu",
    "chrf_char_order": "chrf",
    "chrf_word_order": "chrf",
    "confidence_n": "confidence",
    "paired_bs_n": "paired_bs",
    "paired_ar_n": "paired_ar",
}


class EvaluateCommand(TyperCommand):
    """Reads `-m bleu chrf`, and after the references `-i a.txt b.txt`, as sacreBLEU does.

    Otherwise the second system would be taken for one more reference, and scores would be wrong.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each further value a flag of its own, then parse as ever."""
        rest, spread = list(args), list[str]()
        while rest:
            option = rest.pop(0)
            if option in ("-m", "--metrics") and rest:
                spread += [option, rest.pop(0)]
                while rest and rest[0] in METRICS:
                    spread += [option, rest.pop(0)]
            elif option in ("-i", "--input") and rest:
                has_references = self.make_parser(ctx).parse_args(list(spread))[0]["references"]
                spread += [option, rest.pop(0)]
                while has_references and rest and (rest[0] == "-" or rest[0][:1] != "-"):
                    spread += [option, rest.pop(0)]
            else:
                spread.append(option)
                if option == "--":
                    spread, rest = spread + rest, []
        return super().parse_args(ctx, spread)


def given_flags(ctx: typer.Context) -> dict[str, str]:
    """The flags that stood on the command line, by the name of their parameter."""
    given = {}
    for parameter in ctx.command.params:
        origin = ctx.get_parameter_source(parameter.name or "")
        if origin is not None and origin.name == "COMMANDLINE":
            given[str(parameter.name)] = max(parameter.opts, key=len)
    return given


def systems_once(paths: Sequence[str], *, paired: bool) -> list[str]:
    """The paths but for a paired test's baseline that is given again, as in `-i base.txt *.txt`.

    Raises:
        ConfigError: any other path that is given twice.
    """
    rest = [path for path in paths[1:] if not (paired and path == paths[0])]
    systems = [paths[0], *rest]
    twice = sorted({path for path in systems if systems.count(path) > 1})
    if twice:
        raise ConfigError(f"given more than once with `--input`: {', '.join(twice)}")
    return systems


def check_usage(given: Mapping[str, str], names: Sequence[str], *, num_systems: int) -> None:
    """Refuse what contradicts itself, all at once; warn of what has no effect."""
    problems = []
    if "model" not in given:
        problems += [f"`{given[name]}` needs `--model`" for name in _FOR_MODEL if name in given]
    elif "source" not in given:
        problems.append("`--model` needs `--source`, the text to translate")
    clashes = [("inputs", "model"), ("paired_bs", "paired_ar")]
    clashes += [("score_only", name) for name in ("paired_bs", "paired_ar")]
    clashes += [("sentence_level", name) for name in _FOR_CORPUS]
    for one, other in clashes:
        if one in given and other in given:
            problems.append(f"`{given[one]}` and `{given[other]}` exclude each other")
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
    for name, need in _IDLE_WITHOUT.items():
        if name in given and need not in given and need not in names:
            shown = f"`-m {need}`" if need in METRICS else f"`--{need.replace('_', '-')}`"
            logger.warning("`%s` has no effect without %s", given[name], shown)


def check_output(output: Path, read: Sequence[str], model: Path | None) -> None:
    """Refuse a place for translations that cannot be written, or that is one of the files read."""
    if str(output) == "-":
        raise ConfigError("`--output` must be a file: standard output is for the scores")
    refuse_overwriting(output, [*read, *([] if model is None else model_files(model))])
    check_writable(output)


# What `tfm evaluate --model` does: it translates, and may keep the translations.


def translate(
    lines: Sequence[str],
    model: Path,
    search: Mapping[str, float | None],
    *,
    name: str,
    device: str,
    precision: str,
    workers: int,
) -> list[str]:
    """The model's best translations, searched for as it was set up to but for what is given.

    Args:
        lines: to translate.
        model: directory.
        search: settings of the search, None where they are the model's own.
        name: what warnings call the lines.
        device: where to compute.
        precision: of the arithmetic.
        workers: processes, see `Translator.load`.
    """
    from tfm_cli.model_directory.config_file import load_config
    from tfm_cli.translation.translator import Translator, TranslatorOptions

    given = {name: value for name, value in search.items() if value is not None}
    settings = load_config(model)[0].search
    # Checked at run time against the fields' own types, which mypy cannot see.
    settings = dataclasses.replace(settings, n_best=1, **given)  # type: ignore[arg-type]
    translator = Translator.load(
        model,
        TranslatorOptions(search=settings, scores=False),
        device=device, precision=precision, workers=workers,
    )  # fmt: skip
    return [translation.text for translation in translator.translate(lines, name=name)]


def keep(translations: Sequence[str], output: Path) -> None:
    """Write translations to a file, one a line."""
    with open_output(output) as stream:
        write_lines(stream, translations)


COMMAND_CLASS = EvaluateCommand
_TRAINING = TrainingConfig()


def evaluate(
    ctx: typer.Context,
    references: Annotated[
        list[str],
        typer.Argument(
            help="Reference translations, plain or compressed; each file is one reference."
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            help="Translations to score; several systems are compared. [default: -]",
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", "-m", help="Any of bleu, chrf and ter. [default: bleu]"),
    ] = None,
    tokenize: Annotated[
        str | None, typer.Option("--tokenize", "-tok", help="BLEU's tokenizer. [default: 13a]")
    ] = None,
    lowercase: Annotated[
        bool, typer.Option("--lowercase", "-lc", help="BLEU without regard to case.")
    ] = False,
    smooth_method: Annotated[
        str,
        typer.Option("--smooth-method", "-s", help="BLEU's smoothing: exp, floor, add-k or none."),
    ] = "exp",
    smooth_value: Annotated[
        float | None,
        typer.Option(
            "--smooth-value",
            "-sv",
            min=0,
            max=1_000_000,
            help="For floor and add-k. [default: 0.1 and 1]",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Do not warn of hypotheses that look tokenized.")
    ] = False,
    chrf_char_order: Annotated[
        int, typer.Option("--chrf-char-order", "-cc", min=0, max=99, help="Characters of chrF.")
    ] = 6,
    chrf_word_order: Annotated[
        int,
        typer.Option("--chrf-word-order", "-cw", min=0, max=99, help="Words; 2 makes it chrF++."),
    ] = 0,
    confidence: Annotated[
        bool, typer.Option("--confidence", "-ci", help="Give the 95% interval, by a bootstrap.")
    ] = False,
    confidence_n: Annotated[
        int, typer.Option("--confidence-n", "-cin", min=2, max=1_000_000, help="Its resamples.")
    ] = 1000,
    paired_bs: Annotated[
        bool,
        typer.Option(
            "--paired-bs", "-pbs", help="Test each system against the first, by a paired bootstrap."
        ),
    ] = False,
    paired_bs_n: Annotated[
        int, typer.Option("--paired-bs-n", "-pbsn", min=1, max=1_000_000, help="Its resamples.")
    ] = 1000,
    paired_ar: Annotated[
        bool,
        typer.Option("--paired-ar", "-par", help="The same by approximate randomization."),
    ] = False,
    paired_ar_n: Annotated[
        int, typer.Option("--paired-ar-n", "-parn", min=1, max=1_000_000, help="Its trials.")
    ] = 10000,
    sentence_level: Annotated[
        bool, typer.Option("--sentence-level", "-sl", help="Score each line by itself.")
    ] = False,
    width: Annotated[
        int, typer.Option("--width", "-w", min=0, max=20, help="Digits after the point.")
    ] = 1,
    score_only: Annotated[
        bool,
        typer.Option("--score-only", "-b", help="Print the number; its signature goes to stderr."),
    ] = False,
    output_format: Annotated[
        Literal["json", "text"], typer.Option("--format", "-f", help="How scores are printed.")
    ] = "json",
    short: Annotated[
        bool, typer.Option("--short", "-sh", help="Abbreviate signatures, but in JSON.")
    ] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(
            min=-1_000_000,
            max=1_000_000,
            help="Exit with 1 if the first metric of the first system is below this (ter: above).",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Instead of --input: translate --source with this model."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="The text that --model translates.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also keep its translations here.")
    ] = None,
    beam_size: Annotated[
        int | None, flag(SearchConfig, "beam_size", "--beam-size", "--beam")
    ] = None,
    length_penalty: Annotated[float | None, flag(SearchConfig, "length_penalty")] = None,
    device: Annotated[str, flag(TrainingConfig, "device")] = _TRAINING.device,
    precision: Annotated[str, PRECISION] = "auto",
    workers: Annotated[int, WORKERS] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
) -> None:
    """Score translations with sacreBLEU.

    Prints what the sacrebleu program prints, for the same flags. Translations come from --input,
    from standard input, or from a model.

    Example:  tfm evaluate ref.de -i hyp.de -m bleu,chrf
    """
    console.setup(console.QUIET if quiet else console.NORMAL)
    native_logger = logging.getLogger("sacrebleu")
    native_logger.handlers, native_logger.propagate = logging.getLogger("tfm_cli").handlers, False
    method: Method | None = "bootstrap" if paired_bs else "randomization" if paired_ar else None
    names = [name.strip().lower() for text in metrics or ["bleu"] for name in text.split(",")]
    names = list(dict.fromkeys(names))
    paths = systems_once(inputs or ["-"], paired=method is not None)
    options = MetricOptions(
        tokenize=tokenize,
        lowercase=lowercase,
        smooth_method=smooth_method,
        smooth_value=smooth_value,
        force=force,
        chrf_char_order=chrf_char_order,
        chrf_word_order=chrf_word_order,
    )
    scores.check_options(names, options)
    if "bleu" in names:
        check_available(tokenize)
    check_usage(given_flags(ctx), names, num_systems=len(paths))
    search = {"beam_size": beam_size, "length_penalty": length_penalty}
    check_precision(precision)
    check_writable("-")
    if output is not None:
        check_output(output, [*references, *([source] if source else [])], model)

    texts = _read_aligned(references, paths if source is None else [source])
    if model is not None and source is not None:
        translations = translate(
            texts[source], model, search, name=source, device=device, precision=precision,
            workers=workers,
        )  # fmt: skip
        if output is not None:
            keep(translations, output)
        systems = [(one_line(str(model)), translations)]
    else:
        systems = [(one_line(path), texts[path]) for path in paths]
    wanted = [texts[path] for path in references]
    _warn_of_blanks(references, texts)
    if "bleu" in names and tokenize is None:
        _warn_of_script(references[0], wanted[0])
    first = systems[0][1]

    if sentence_level:
        score = None
        for score in scores.sentence_scores(first, wanted, metric=names[0], options=options):
            typer.echo(score.bare(width) if score_only else score.line(width, short=short))
        if score_only and score:
            typer.echo(score.quoted_signature(short=short), err=True)
        return
    if len(systems) == 1:
        resamples = confidence_n if confidence else 0
        found = scores.corpus_scores(
            first, wanted, metrics=names, options=options, num_resamples=resamples
        )
        value = found[0].value
        text = scores.render(found, output_format, width=width, short=short, value_only=score_only)
        signatures = [score.quoted_signature(short=short) for score in found]
    else:
        if method:
            num_samples = paired_bs_n if paired_bs else paired_ar_n
            comparison = significance.paired_test(
                [(f"Baseline: {systems[0][0]}", first), *systems[1:]],
                wanted,
                method=method,
                metrics=names,
                options=options,
                num_samples=num_samples,
            )
        else:
            comparison = significance.compare(systems, wanted, metrics=names, options=options)
        value = comparison.scores[0].value
        text = significance.render(
            comparison, output_format, width=width, short=short, value_only=score_only
        )
        signatures = comparison.quoted_signatures(short=short)
    typer.echo(text)
    if score_only:
        typer.echo("\n".join(signatures), err=True)
    if fail_under is not None:
        _check_score(names[0], value, fail_under, width)


def _read_aligned(references: Sequence[str], others: Sequence[str]) -> dict[str, list[str]]:
    """The lines of each file by its path; every file that cannot be read, or is of another length
    than the first reference, is reported at once."""
    paths = [*references, *others]
    if paths.count("-") > 1:
        raise ConfigError("standard input can be read only once, got `-` more often")
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
    first, wanted = _name(references[0]), len(texts[references[0]])
    if not wanted:
        raise DataError(f"{first}: has no lines, wanted one for each segment")
    wrong = {_name(path): len(lines) for path, lines in texts.items() if len(lines) != wanted}
    hint = f"give a line for each line of {first}, a blank one where there is nothing"
    if len(wrong) > 1:
        told = [f"{path}: {count} lines" for path, count in wrong.items()]
        title = f"{len(wrong)} files do not align with {first}, which has {wanted} lines"
        raise DataError("\n  ".join([title, *told]), hint=hint)
    for path, count in wrong.items():
        raise DataError(f"{path} and {first} do not align: {count} and {wanted} lines", hint=hint)
    return texts


def _warn_of_blanks(references: Sequence[str], texts: dict[str, list[str]]) -> None:
    """Say where a reference has no text: whatever is said there counts as wrong."""
    for path in dict.fromkeys(references):
        blank = [number for number, line in enumerate(texts[path], 1) if not line.strip()]
        if blank:
            told = "%s: blank references: %d (first: line %d)"
            logger.warning(told, _name(path), len(blank), blank[0])


def _warn_of_script(path: str, lines: Sequence[str]) -> None:
    """Warn where BLEU would take a whole sentence for one word."""
    suited = choose_tokenizer(lines)
    if suited.tokenizer != DEFAULT_TOKENIZER:
        logger.warning(
            "%s: %s, but BLEU's tokenizer %s takes what stands between blanks for a word; "
            "use `-tok %s`",
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
    if path == "-" and len(tabs) == 1 and tabs != {0}:  # sacreBLEU would take these for systems
        logger.warning("standard input has columns, but is scored as one system; see `--input`")
    return lines


def _check_score(metric: str, value: float, limit: float, width: int) -> None:
    lower = scores.lower_is_better(metric)
    if value > limit if lower else value < limit:
        shown = f"{value:.{width}f}"
        if float(shown) == limit:  # rounding would hide the difference
            shown = repr(value)
        raise CheckError(f"{metric} is {shown}, wanted at {'most' if lower else 'least'} {limit:g}")
