"""`tfm translate`: lines in, translations out."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tfm_cli import log
from tfm_cli.cli.options import flag
from tfm_cli.config import SearchConfig, TrainingConfig
from tfm_cli.configfile import coerce
from tfm_cli.errors import ConfigError

logger = logging.getLogger(__name__)

_FIRST_WINDOW = 16  # lines; later windows are larger, up to --buffer-size


def translate(
    model: Annotated[
        Path,
        typer.Option("--model", "-m", "--models", help="Model directory that `tfm train` wrote."),
    ] = Path("model"),
    input_path: Annotated[
        str,
        typer.Option(
            "--input",
            "-i",
            "--src",
            metavar="FILE",
            help="Text to translate, plain or gzip; - for standard input.",
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
    n_best: Annotated[int | None, flag(SearchConfig, "n_best", "--n-best", "--nbest")] = None,
    sampling: Annotated[
        bool, typer.Option("--sampling", help="Draw each piece by its probability.")
    ] = False,
    top_k: Annotated[int | None, flag(SearchConfig, "top_k")] = None,
    top_p: Annotated[float | None, flag(SearchConfig, "top_p")] = None,
    temperature: Annotated[float | None, flag(SearchConfig, "temperature")] = None,
    seed: Annotated[int | None, flag(SearchConfig, "seed")] = None,
    max_length: Annotated[int | None, flag(SearchConfig, "max_length")] = None,
    max_length_factor: Annotated[float | None, flag(SearchConfig, "max_length_factor")] = None,
    on_long: Annotated[
        str,
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
        str, typer.Option("--format", "-f", help="text or json: an object on each line.")
    ] = "text",
    with_score: Annotated[
        bool, typer.Option("--with-score", help="Write `score<TAB>translation`.")
    ] = False,
    device: Annotated[str, flag(TrainingConfig, "device")] = "auto",
    precision: Annotated[str, flag(TrainingConfig, "precision")] = "auto",
    cpu_threads: Annotated[int, flag(TrainingConfig, "cpu_threads")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
) -> None:
    """Translate standard input, a segment a line, to standard output, in order.

    As many lines come out as go in; a blank line stays blank.

    Example:  tfm translate --model model --beam 4 < news.en > news.de
    """
    log.setup(log.QUIET if quiet else log.NORMAL)
    if beam_size is None and (greedy or sampling):
        beam_size = 1
    elif beam_size is None and n_best is not None:
        beam_size = max(n_best, SearchConfig().beam_size)
    if (greedy or sampling) and beam_size != 1:
        raise ConfigError(f"`--{'greedy' if greedy else 'sampling'}` and a beam of {beam_size}")
    given: dict[str, object] = {
        "beam_size": beam_size,
        "length_penalty": length_penalty,
        "n_best": n_best,
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
        "seed": seed,
        "max_length": max_length,
        "max_length_factor": max_length_factor,
        "max_tokens": max_tokens,
        "buffer_size": buffer_size,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    _check_choice("--on-long", on_long, ("split", "cut"))
    _check_choice("--format", output_format, ("text", "json"))
    _check_choice("--precision", precision, ("auto", "fp32", "bf16"))
    _check_bounds(chosen)

    from tfm_cli.text import check_writable, open_lines, open_output

    check_writable(output_path)
    with open_lines(input_path, invalid="replace") as reader:
        _refuse_same_file(input_path, output_path)

        from tfm_cli.model_dir import load_config  # imports torch: seconds, so not at the top
        from tfm_cli.translation.translator import Translator

        settings, _, _ = load_config(model)
        search = dataclasses.replace(settings.search, **chosen)  # type: ignore[arg-type]
        translator = Translator.load(
            model,
            search=search,
            sampling=sampling,
            on_long=on_long,
            device=device,
            precision=precision,
            cpu_threads=cpu_threads,
        )
        began = time.monotonic()
        with open_output(output_path) as stream:
            lines, pieces = _stream(
                reader, stream, translator, search, output_format, with_score=with_score
            )
    seconds = time.monotonic() - began
    for note in reader.notes():
        logger.warning("%s: %s", reader.name, note)
    logger.info(
        "translated %d lines in %.1f s: %.1f lines/s, %.0f target pieces/s",
        lines,
        seconds,
        lines / max(seconds, 1e-9),
        pieces / max(seconds, 1e-9),
    )


def _stream(
    reader: Any, stream: Any, translator: Any, search: SearchConfig, form: str, *, with_score: bool
) -> tuple[int, int]:
    """Translate window by window, each written before the next is read; counts lines and pieces."""
    from tfm_cli.text import write_line
    from tfm_cli.translation.render import as_json, as_n_best, as_text

    lines, pieces, size = 0, 0, min(_FIRST_WINDOW, search.buffer_size)
    while window := reader.window(size):
        for translation in translator.translate_window(window):
            if form == "json":
                rendered = as_json(translation, n_best=search.n_best)
            elif search.n_best > 1:
                rendered = as_n_best(translation, lines)
            else:
                rendered = as_text(translation, with_score=with_score)
            for line in rendered:
                write_line(stream, line)
            lines += 1
            pieces += translation.num_pieces
        stream.flush()
        size = min(4 * size, search.buffer_size)
    return lines, pieces


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"`{name}` must be one of {', '.join(choices)}, got `{value}`")


def _check_bounds(chosen: dict[str, object]) -> None:
    fields = {field.name: field for field in dataclasses.fields(SearchConfig)}
    for name, value in chosen.items():
        _, complaint = coerce(value, fields[name].type, fields[name].metadata)
        if complaint:
            raise ConfigError(f"`--{name.replace('_', '-')}` {complaint}")


def _refuse_same_file(input_path: str, output_path: str) -> None:
    source, target = Path(input_path), Path(output_path)
    if "-" not in (input_path, output_path) and target.exists() and source.samefile(target):
        raise ConfigError(f"{output_path}: is the input as well; name another `--output`")
