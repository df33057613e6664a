"""`tfm translate`: lines in, translations out."""

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tfm_cli import console
from tfm_cli.cli.options import (
    NO_CPU_THREADS,
    PRECISION,
    WORKERS,
    check_precision,
    check_setting,
    flag,
    model_files,
    refuse_overwriting,
)
from tfm_cli.config.settings import SearchConfig, TrainingConfig
from tfm_cli.errors import ConfigError
from tfm_cli.files.atomic import check_writable
from tfm_cli.files.safetensors_file import prefetch_hash
from tfm_cli.files.untrusted import open_regular
from tfm_cli.parallel import Parallel
from tfm_cli.text.reader import is_typed, open_lines
from tfm_cli.translation.input_format import InputLine, from_columns, from_forced, from_json
from tfm_cli.translation.job import Job, check_input, job_settings, run_job
from tfm_cli.translation.output_format import OutputFormat, alignment_kind
from tfm_cli.translation.streaming import LineFormats

if TYPE_CHECKING:
    from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)


# What `tfm translate` refuses before its work, and what it makes of its flags.


def resolve_beam_size(
    given: int | None, *, greedy: bool, sampling: bool, n_best: int | None
) -> int | None:
    """The beam size that is wanted; None for the model's own."""
    if greedy and sampling:
        raise ConfigError("`--greedy` and `--sampling` exclude each other")
    if not (greedy or sampling):
        return given
    name = "--greedy" if greedy else "--sampling"
    if given not in (None, 1):
        raise ConfigError(f"`{name}` and `--beam-size {given}` exclude each other")
    if greedy and n_best not in (None, 1):
        raise ConfigError(f"`--greedy` and `--n-best {n_best}` exclude each other")
    return 1


def check_search(chosen: Mapping[str, object], *, sampling: bool) -> None:
    """Refuse settings of the search that cannot be, and warn of those without effect.

    Args:
        chosen: what was given, by the settings' names.
        sampling: whether translations are drawn.
    """
    for name, value in chosen.items():
        check_setting(SearchConfig, name, value)
    size, best = chosen.get("beam_size"), chosen.get("n_best")
    if isinstance(size, int) and isinstance(best, int) and best > size and not sampling:
        raise ConfigError(f"`--n-best` must be at most `--beam-size`, got {best} and {size}")
    for name in ("top_k", "top_p", "temperature", "seed"):
        if name in chosen and not sampling:
            logger.warning("`--%s` has no effect without `--sampling`", name.replace("_", "-"))


def identity(shortlist: Path | None) -> str:
    """What tells a shortlist from others; empty for none, or a file that cannot be read."""
    if shortlist is not None:
        with contextlib.suppress(OSError), open_regular(shortlist) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return ""


def line_parser(
    *, force_decode: bool, tsv: bool, tsv_column: int | None, json_input: bool
) -> Callable[[str, str], InputLine]:
    """Return the parser for one input line, given the line and its position for messages."""
    for name, given in (("--force-decode", force_decode), ("--tsv", tsv)):
        if json_input and given:
            raise ConfigError(f"`--json-input` and `{name}` exclude each other")
    if tsv_column is not None and not tsv:
        raise ConfigError("`--tsv-column` needs `--tsv`")
    if json_input:
        return from_json
    if tsv:
        return partial(from_columns, number=tsv_column or 1, forced=force_decode)
    if force_decode:
        return from_forced
    return lambda line, position: InputLine(line)


def search_settings(
    settings: SearchConfig, chosen: Mapping[str, object], *, sampling: bool = False
) -> SearchConfig:
    """The model's own settings but for what was chosen; the beam has room for the n best.

    Of samples there is one unless more are asked for.
    """
    # Checked at run time against the fields' own types, which mypy cannot see.
    found = dataclasses.replace(settings, **chosen)  # type: ignore[arg-type]
    if sampling:
        return found if "n_best" in chosen else dataclasses.replace(found, n_best=1)
    if "beam_size" in chosen:
        return dataclasses.replace(found, n_best=min(found.n_best, found.beam_size))
    return dataclasses.replace(found, beam_size=max(found.n_best, found.beam_size))


def translate(
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            "-m",
            "--models",
            metavar="DIR",
            help="Model directory that `tfm train` wrote; several, by repeating it, translate "
            "together by the mean of their probabilities. [default: model]",
        ),
    ] = None,
    input_path: Annotated[
        str,
        typer.Option(
            "--input",
            "-i",
            "--src",
            metavar="FILE",
            help="Text to translate, plain or compressed; - for standard input.",
        ),
    ] = "-",
    output_path: Annotated[
        str,
        typer.Option(
            "--output", "-o", "--out", metavar="FILE", help="Translations; - for standard output."
        ),
    ] = "-",
    beam_size: Annotated[
        int | None, flag(SearchConfig, "beam_size", "--beam-size", "-b", "--beam")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", "-g", help="A beam of 1.")] = False,
    length_penalty: Annotated[
        float | None,
        flag(SearchConfig, "length_penalty", "--length-penalty", "--normalize", "-n", "--lenpen"),
    ] = None,
    length_norm: Annotated[str | None, flag(SearchConfig, "length_norm")] = None,
    early_stopping: Annotated[
        bool | None,
        flag(SearchConfig, "early_stopping", "--early-stopping/--no-early-stopping"),
    ] = None,
    renormalize: Annotated[
        bool | None, flag(SearchConfig, "renormalize", "--renormalize/--no-renormalize")
    ] = None,
    n_best: Annotated[int | None, flag(SearchConfig, "n_best", "--n-best", "--nbest")] = None,
    sampling: Annotated[
        bool, typer.Option("--sampling", help="Draw each piece by its probability.")
    ] = False,
    top_k: Annotated[int | None, flag(SearchConfig, "top_k")] = None,
    top_p: Annotated[float | None, flag(SearchConfig, "top_p")] = None,
    temperature: Annotated[float | None, flag(SearchConfig, "temperature")] = None,
    seed: Annotated[int | None, flag(SearchConfig, "seed")] = None,
    no_repeat_ngram_size: Annotated[int | None, flag(SearchConfig, "no_repeat_ngram_size")] = None,
    repetition_penalty: Annotated[float | None, flag(SearchConfig, "repetition_penalty")] = None,
    force_decode: Annotated[
        bool,
        typer.Option(
            "--force-decode",
            help="Lines are `source<TAB>target prefix`; translations begin with the prefix.",
        ),
    ] = False,
    tsv: Annotated[
        bool,
        typer.Option(
            "--tsv",
            help="Lines have columns, one of which is the source; the translation becomes the "
            "last. With `--force-decode` the prefix is in the column behind the source.",
        ),
    ] = False,
    tsv_column: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=1_000_000, help="Which column is the source. [default: 1]"
        ),
    ] = None,
    json_input: Annotated[
        bool,
        typer.Option(
            "--json-input",
            help="Lines are JSON objects with `source` or `text` and, if wanted, `target_prefix`; "
            "`--format json` keeps all their fields.",
        ),
    ] = False,
    max_length: Annotated[int | None, flag(SearchConfig, "max_length")] = None,
    max_length_factor: Annotated[float | None, flag(SearchConfig, "max_length_factor")] = None,
    on_long: Annotated[
        Literal["split", "cut"],
        typer.Option(help="What becomes of longer lines: split and join, or cut. Both warn."),
    ] = "split",
    max_tokens: Annotated[
        int | None, flag(SearchConfig, "max_tokens", "--max-tokens", "--mini-batch-words")
    ] = None,
    buffer_size: Annotated[
        int | None,
        flag(SearchConfig, "buffer_size", "--buffer-size", "--maxi-batch", "--chunk-size"),
    ] = None,
    output_format: Annotated[
        Literal["text", "json"],
        typer.Option("--format", "-f", help="Plain text, or a JSON object on each line."),
    ] = "text",
    with_score: Annotated[
        bool,
        typer.Option(
            "--with-score",
            help="Write `score<TAB>translation`; n-best lists and JSON have scores anyway.",
        ),
    ] = False,
    word_scores: Annotated[
        bool,
        typer.Option(
            "--word-scores",
            help="Write the log-probability of each piece and of the end as well.",
        ),
    ] = False,
    alignment: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Write which words each word of a translation came from: `hard`, one each, as "
            "`0-0 1-2 …`; a number, the pairs of more than this weight; or `soft`, all weights.",
        ),
    ] = None,
    shortlist: Annotated[
        bool,
        typer.Option(
            "--shortlist",
            help="Search only among the pieces that a line is likely to need, by the table that "
            "`tfm shortlist` made for the model. Probabilities are those among these pieces.",
        ),
    ] = False,
    shortlist_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The same, by another table."),
    ] = None,
    device: Annotated[str, flag(TrainingConfig, "device")] = "auto",
    precision: Annotated[str, PRECISION] = "auto",
    workers: Annotated[int, WORKERS] = 0,
    cpu_threads: Annotated[int | None, NO_CPU_THREADS] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Begin again where the same output was begun and not finished."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
) -> None:
    """Translate standard input, a segment a line, to standard output, in order.

    As many lines come out as go in; a blank line stays blank. Stopped at any time, the same
    command goes on with its `--output`.

    \b
    Example:  tfm translate --model model --beam 4 < news.en > news.de
    """
    parallel = Parallel.from_environment()
    console.setup(
        (console.QUIET if quiet else console.NORMAL) if parallel.is_main else console.SILENT
    )
    beam_size = resolve_beam_size(beam_size, greedy=greedy, sampling=sampling, n_best=n_best)
    given: dict[str, object] = {
        "beam_size": beam_size,
        "length_penalty": length_penalty,
        "length_norm": length_norm,
        "early_stopping": early_stopping,
        "renormalize": renormalize,
        "n_best": n_best,
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
        "seed": seed,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "repetition_penalty": repetition_penalty,
        "max_length": max_length,
        "max_length_factor": max_length_factor,
        "max_tokens": max_tokens,
        "buffer_size": buffer_size,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    check_precision(precision)
    check_search(chosen, sampling=sampling)
    parse = line_parser(
        force_decode=force_decode, tsv=tsv, tsv_column=tsv_column, json_input=json_input
    )
    aligned = None if alignment is None else alignment_kind(alignment)
    if tsv and output_format == "json":
        raise ConfigError("`--tsv` and `--format json` exclude each other")
    if tsv and n_best not in (None, 1):
        raise ConfigError(f"`--tsv` and `--n-best {n_best}` exclude each other")

    models = model or [Path("model")]
    from tfm_cli.files.layout import SHORTLIST_FILE
    from tfm_cli.model_directory.config_file import check_weights_file, load_config

    table = shortlist_file or (models[0] / SHORTLIST_FILE if shortlist else None)
    check_input(input_path, parallel)
    if parallel.is_main:
        check_writable(output_path)
    with open_lines(input_path, invalid="replace") as reader:
        used = [file for directory in models for file in model_files(directory)]
        used += [] if table is None else [table]
        refuse_overwriting(output_path, [input_path, *used])

        search = search_settings(load_config(models[0]).settings.search, chosen, sampling=sampling)
        typed = is_typed(input_path)
        if typed:
            logger.info("type a line and press Enter; Ctrl-D ends")

        form = OutputFormat(
            kind=output_format, n_best=1 if tsv else search.n_best, with_score=with_score,
            word_scores=word_scores, alignment=aligned,
        )  # fmt: skip

        for directory in models:
            prefetch_hash(check_weights_file(directory))
        from tfm_cli.device import resolve_device
        from tfm_cli.translation.loading import resolve_precision

        place = parallel.device(device)
        if precision == "auto":  # which may be another one where the same job goes on
            precision = resolve_precision(precision, resolve_device(place), models)

        def load() -> "Translator":
            from tfm_cli.translation.translator import Translator, TranslatorOptions

            shows_scores = output_format == "json" or form.n_best > 1
            return Translator.load(
                models[0],
                TranslatorOptions(
                    search=search,
                    sampling=sampling,
                    on_long=on_long,
                    scores=with_score or word_scores or shows_scores,
                    word_scores=word_scores,
                    alignment=aligned is not None,
                    shortlist=table,
                ),
                others=models[1:],
                device=place,
                precision=precision,
                # Somebody who types is answered line by line; torchrun starts its own processes.
                workers=workers or (1 if typed or parallel.world > 1 else 0),
            )

        job = Job(
            input_path=input_path, output_path=output_path,
            settings=job_settings(
                models, search, form, sampling=sampling, on_long=on_long, precision=precision,
                force_decode=force_decode, tsv=tsv, tsv_column=tsv_column, json_input=json_input,
                shortlist=identity(table),
            ),
            overwrite=overwrite, formats=LineFormats(parse, form), buffer_size=search.buffer_size,
        )  # fmt: skip
        work = run_job(job, reader, load, parallel=parallel)
    if not parallel.is_main:
        return
    for note in reader.notes():
        logger.warning("%s: %s", reader.name, note)
    logger.info("translated %s", work)
