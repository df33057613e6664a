"""`tfm translate`: lines of text in, translations out."""

import contextlib
import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tfm_cli.cli.options import (
    Command,
    Options,
    cpu_threads_option,
    model_files,
    models_option,
    option,
    precision_option,
    quiet_option,
    refuse_cpu_threads,
    refuse_overwriting,
    set_up_logging,
    workers_option,
)
from tfm_cli.config.settings import SearchConfig
from tfm_cli.console import counted
from tfm_cli.errors import ConfigError, DataError
from tfm_cli.files.atomic import check_writable
from tfm_cli.files.layout import SHORTLIST_FILE
from tfm_cli.files.untrusted import open_regular
from tfm_cli.parallel import Parallel
from tfm_cli.text.reader import LineReader, is_typed, open_lines
from tfm_cli.translation.formats import (
    InputLine,
    OutputFormat,
    alignment_kind,
    from_columns,
    from_forced,
    from_json,
    from_text,
    with_errors,
)
from tfm_cli.translation.streaming import (
    Job,
    LineFormats,
    TranslationStats,
    check_input,
    job_settings,
    run_job,
)

if TYPE_CHECKING:
    from tfm_cli.translation.translator import Translator, TranslatorOptions

logger = logging.getLogger(__name__)


class TranslateOptions(Options):
    """The options of `tfm translate`."""

    models: tuple[Path, ...] = models_option()
    input_path: str = option(
        "Input",
        "--input",
        "-i",
        "--src",
        metavar="FILE",
        default="-",
        help="Text to translate, plain or compressed; - for standard input.",
    )
    tsv: bool = option(
        "Input",
        "--tsv",
        default=False,
        help="Lines have columns, one of which is the source; the translation is appended as the "
        "last column. With `--force-decode` the prefix is in the column after the source.",
    )
    tsv_column: int | None = option(
        "Input",
        "--tsv-column",
        ge=1,
        le=1_000_000,
        shown_default="1",
        help="Number of the column with the source.",
    )
    json_input: bool = option(
        "Input",
        "--json-input",
        default=False,
        help="Lines are JSON objects with `source` or `text`, and optionally `target_prefix`; "
        "`--format json` copies their other fields.",
    )
    force_decode: bool = option(
        "Input",
        "--force-decode",
        default=False,
        help="Lines are `source<TAB>target prefix`; each translation begins with its prefix.",
    )
    on_long: Literal["split", "cut"] = option(
        "Input",
        "--on-long",
        default="split",
        help="Split longer lines and join their translations, or cut them; both with a warning.",
    )
    on_error: Literal["stop", "report"] = option(
        "Input",
        "--on-error",
        default="stop",
        help="At a line that cannot be parsed, stop; or report it in its place in the output, go "
        "on, and end with exit code 3.",
    )
    output_path: str = option(
        "Output",
        "--output",
        "-o",
        "--out",
        metavar="FILE",
        default="-",
        help="Translations; - for standard output.",
    )
    overwrite: bool = option(
        "Output",
        "--overwrite",
        default=False,
        help="Start over, even if an earlier run of this job left an unfinished output.",
    )
    output_format: Literal["text", "json"] = option(
        "Output", "--format", "-f", default="text", help="Plain text, or one JSON object a line."
    )
    with_score: bool = option(
        "Output",
        "--with-score",
        default=False,
        help="Write `score<TAB>translation`; n-best lists and JSON always have scores.",
    )
    word_scores: bool = option(
        "Output",
        "--word-scores",
        default=False,
        help="Also write the log-probability of each token, the end of the segment included.",
    )
    alignment: str | None = option(
        "Output",
        "--alignment",
        metavar="KIND",
        help="Also write the word alignment: `hard`, one source word for each target word, as "
        "`0-0 1-2 …`; a number, all pairs whose weight is above it; or `soft`, all weights.",
    )
    greedy: bool = option("Search", "--greedy", "-g", default=False, help="A beam of 1.")
    sampling: bool = option(
        "Sampling",
        "--sampling",
        default=False,
        help="Sample each token from the model's distribution.",
    )
    shortlist: bool = option(
        "Speed",
        "--shortlist",
        default=False,
        help="Restrict the search to the target tokens that the shortlist of the model has for "
        "the source (see `tfm shortlist`), and normalize probabilities over them.",
    )
    shortlist_file: Path | None = option(
        "Speed", "--shortlist-file", metavar="FILE", help="Restrict the search to this shortlist."
    )
    precision: str = precision_option("Speed")
    workers: int = workers_option("Speed")
    cpu_threads: str | None = cpu_threads_option()
    quiet: bool = quiet_option()


def translate(options: TranslateOptions) -> None:
    """Translate text, one segment a line, in order.

    Each line gives one line of output; a blank line stays blank. The same command resumes an
    `--output` that was interrupted.

    Example:  tfm translate --model model --beam 4 < news.en > news.de
    """
    parallel = Parallel.from_environment()
    set_up_logging(options.quiet, parallel)
    refuse_cpu_threads(options.cpu_threads)
    chosen = chosen_settings(options)
    parse_line = line_parser(options)
    alignment = None if options.alignment is None else alignment_kind(options.alignment)
    in_model = options.models[0] / SHORTLIST_FILE if options.shortlist else None
    shortlist = options.shortlist_file or in_model
    check_input(options.input_path, parallel)
    if parallel.is_main:
        check_writable(options.output_path)
    with open_lines(options.input_path, invalid="replace") as reader:
        read = [file for directory in options.models for file in model_files(directory)]
        read += [] if shortlist is None else [shortlist]
        refuse_overwriting(options.output_path, [options.input_path, *read])
        from tfm_cli.model_directory.config_file import load_config
        from tfm_cli.translation.search import chosen_search

        own = load_config(options.models[0]).settings.search
        search = chosen_search(own, chosen, sampling=options.sampling)
        if is_typed(options.input_path):
            logger.info("type a line and press Enter; Ctrl-D ends")
        output_format = _output_format(options, search, alignment)
        device, precision = _device_and_precision(options, parallel)
        job = Job(
            input_path=options.input_path,
            output_path=options.output_path,
            settings=job_settings(
                options.models, search, output_format,
                sampling=options.sampling, on_long=options.on_long, precision=precision,
                force_decode=options.force_decode, tsv=options.tsv,
                tsv_column=options.tsv_column, json_input=options.json_input,
                shortlist=shortlist_hash(shortlist),
            ),
            overwrite=options.overwrite,
            formats=LineFormats(parse_line, output_format),
            buffer_size=search.buffer_size,
        )  # fmt: skip

        # Typed lines are translated one by one; torchrun starts its own processes.
        is_single = is_typed(options.input_path) or parallel.world_size > 1

        def load() -> "Translator":
            from tfm_cli.translation.translator import Translator

            return Translator.load(
                options.models[0],
                _translator_options(options, search, output_format, shortlist),
                others=options.models[1:],
                device=device,
                precision=precision,
                workers=options.workers or int(is_single),
            )

        stats = run_job(job, reader, load, parallel=parallel)
    if parallel.is_main:
        _log_result(reader, stats)


def _output_format(
    options: TranslateOptions,
    search: SearchConfig,
    alignment: Literal["soft", "hard"] | float | None,
) -> OutputFormat:
    return OutputFormat(
        kind=options.output_format,
        n_best=1 if options.tsv else search.n_best,
        with_score=options.with_score,
        word_scores=options.word_scores,
        alignment=alignment,
    )


def _log_result(reader: LineReader, stats: TranslationStats) -> None:
    """Log how much was translated.

    Raises:
        DataError: some lines could not be parsed.
    """
    for note in reader.notes():
        logger.warning("%s: %s", reader.name, note)
    logger.info("translated %s", stats)
    if stats.errors:
        count = counted(stats.errors, "line")
        raise DataError(f"{reader.name}: {count} could not be parsed; the others are translated")


def chosen_settings(options: TranslateOptions) -> dict[str, object]:
    """Return the search settings that were given on the command line, by name.

    Options without effect cause a warning.

    Raises:
        ConfigError: some of them exclude each other.
    """
    chosen = dict(options.settings["search"])
    size, best = chosen.get("beam_size"), chosen.get("n_best")
    if options.greedy and options.sampling:
        raise ConfigError("`--greedy` and `--sampling` exclude each other")
    if options.greedy or options.sampling:
        name = "--greedy" if options.greedy else "--sampling"
        if size not in (None, 1):
            raise ConfigError(f"`{name}` and `--beam-size {size}` exclude each other")
        if options.greedy and best not in (None, 1):
            raise ConfigError(f"`--greedy` and `--n-best {best}` exclude each other")
        chosen["beam_size"] = size = 1
    if options.tsv and best not in (None, 1):
        raise ConfigError(f"`--tsv` and `--n-best {best}` exclude each other")
    if size is not None and best is not None and best > size and not options.sampling:
        raise ConfigError(f"`--n-best` must be at most `--beam-size`, got {best} and {size}")
    for name in ("top_k", "top_p", "temperature", "seed"):
        if name in chosen and not options.sampling:
            logger.warning("`%s` has no effect without `--sampling`", options.given[name])
    return chosen


def line_parser(options: TranslateOptions) -> Callable[[str, str], InputLine]:
    """Return a parser of input lines; its arguments are a line and its position in messages.

    Raises:
        ConfigError: some of the options exclude each other.
    """
    for name in ("force_decode", "tsv"):
        if options.json_input and name in options.given:
            raise ConfigError(f"`--json-input` and `{options.given[name]}` exclude each other")
    if options.tsv_column is not None and not options.tsv:
        raise ConfigError("`--tsv-column` needs `--tsv`")
    if options.tsv and options.output_format == "json":
        raise ConfigError("`--tsv` and `--format json` exclude each other")
    parse: Callable[[str, str], InputLine] = from_text
    if options.json_input:
        parse = from_json
    elif options.tsv:
        parse = partial(from_columns, number=options.tsv_column or 1, forced=options.force_decode)
    elif options.force_decode:
        parse = from_forced
    if options.on_error == "report":
        return with_errors(parse, has_columns=options.tsv)
    return parse


def shortlist_hash(shortlist: Path | None) -> str:
    """Return the first digits of a shortlist's SHA-256; empty for none or an unreadable file."""
    if shortlist is not None:
        with contextlib.suppress(OSError), open_regular(shortlist) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return ""


def _device_and_precision(options: TranslateOptions, parallel: Parallel) -> tuple[str, str]:
    """Return the name of this process's device, and the precision with `auto` resolved."""
    from tfm_cli.device import resolve_device
    from tfm_cli.model_directory.config_file import prefetch_weights_hash
    from tfm_cli.translation.translator import resolve_precision

    for directory in options.models:
        prefetch_weights_hash(directory)
    device = parallel.device(options.setting("training", "device"))
    precision = options.precision
    if precision == "auto":  # a job must not resume with another one on another machine
        precision = resolve_precision(precision, resolve_device(device), options.models)
    return device, precision


def _translator_options(
    options: TranslateOptions,
    search: SearchConfig,
    output_format: OutputFormat,
    shortlist: Path | None,
) -> "TranslatorOptions":
    from tfm_cli.translation.translator import TranslatorOptions

    has_scores = output_format.kind == "json" or output_format.n_best > 1
    return TranslatorOptions(
        search=search,
        sampling=options.sampling,
        on_long=options.on_long,
        scores=options.with_score or options.word_scores or has_scores,
        word_scores=options.word_scores,
        alignment=output_format.alignment is not None,
        shortlist=shortlist,
    )


COMMAND = Command(
    translate,
    TranslateOptions,
    {
        "Input": ("search.max_length",),
        "Output": ("search.n_best",),
        "Search": (
            "search.beam_size", "search.length_penalty", "search.length_norm",
            "search.early_stopping", "search.max_length_factor", "search.no_repeat_ngram_size",
            "search.repetition_penalty", "search.renormalize",
        ),
        "Sampling": ("search.top_k", "search.top_p", "search.temperature", "search.seed"),
        "Speed": ("search.max_tokens", "search.buffer_size", "training.device"),
        "Messages": (),
    },
)  # fmt: skip
