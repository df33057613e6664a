"""`tfm translate`: lines in, translations out."""

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from tfm_cli import log
from tfm_cli.cli.options import check_setting, flag
from tfm_cli.config import SearchConfig, TrainingConfig
from tfm_cli.errors import ConfigError
from tfm_cli.files import check_writable
from tfm_cli.text import LineReader, open_lines, open_output, write_line

if TYPE_CHECKING:
    from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)

_FIRST_WINDOW = 16  # lines; later windows are larger, up to --buffer-size


def translate(
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            "-m",
            "--models",
            metavar="DIR",
            help="Model directory that `tfm train` wrote.",
        ),
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
    device: Annotated[str, flag(TrainingConfig, "device")] = "auto",
    precision: Annotated[str, flag(TrainingConfig, "precision")] = "auto",
    cpu_threads: Annotated[int, flag(TrainingConfig, "cpu_threads")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
) -> None:
    """Translate standard input, a segment a line, to standard output, in order.

    As many lines come out as go in; a blank line stays blank.

    \b
    Example:  tfm translate --model model --beam 4 < news.en > news.de
    """
    log.setup(log.QUIET if quiet else log.NORMAL)
    if greedy and sampling:
        raise ConfigError("`--greedy` and `--sampling` exclude each other")
    if greedy or sampling:
        if beam_size not in (None, 1):
            name = "--greedy" if greedy else "--sampling"
            raise ConfigError(f"`{name}` and `--beam-size {beam_size}` exclude each other")
        if n_best not in (None, 1):
            name = "--greedy" if greedy else "--sampling"
            raise ConfigError(f"`{name}` and `--n-best {n_best}` exclude each other")
        beam_size = 1
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
        "max_length": max_length,
        "max_length_factor": max_length_factor,
        "max_tokens": max_tokens,
        "buffer_size": buffer_size,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    check_setting(TrainingConfig, "precision", precision)
    for name, value in chosen.items():
        check_setting(SearchConfig, name, value)
    if n_best is not None and beam_size is not None and n_best > beam_size:
        found = f"{n_best} and {beam_size}"
        raise ConfigError(f"`--n-best` must be at most `--beam-size`, got {found}")
    for name in ("top_k", "top_p", "temperature", "seed"):
        if name in chosen and not sampling:
            logger.warning("`--%s` has no effect without `--sampling`", name.replace("_", "-"))

    check_writable(output_path)
    with open_lines(input_path, invalid="replace") as reader:
        _refuse_same_file(input_path, output_path)

        from tfm_cli.model_config import load_config

        search = _search(load_config(model).settings.search, chosen)
        if input_path == "-" and sys.stdin.isatty():
            logger.info("type a line and press Enter; Ctrl-D ends")

        from tfm_cli.translation.translator import Translator  # imports torch: seconds

        translator = Translator.load(
            model,
            search=search,
            sampling=sampling,
            on_long=on_long,
            device=device,
            precision=precision,
            cpu_threads=cpu_threads,
        )
        with open_output(output_path) as stream, _progress(input_path, output_path) as progress:
            work = _stream(
                reader, stream, translator, search, output_format, with_score=with_score,
                progress=progress,
            )  # fmt: skip
    for note in reader.notes():
        logger.warning("%s: %s", reader.name, note)
    logger.info("translated %s", work)


@dataclass(slots=True)
class _Work:
    """What was translated; the time does not count the wait for input."""

    lines: int = 0
    pieces: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        return (
            f"{self.lines} line{'' if self.lines == 1 else 's'} in {self.seconds:.1f} s: "
            f"{self.lines / seconds:.1f} lines/s, {self.pieces / seconds:.0f} target pieces/s"
        )


def _stream(
    reader: LineReader,
    stream: BinaryIO,
    translator: "Translator",
    search: SearchConfig,
    form: str,
    *,
    with_score: bool,
    progress: Callable[[_Work], None],
) -> _Work:
    """Translate window by window; each is written before the next is read."""
    from tfm_cli.translation.render import as_json, as_n_best, as_text

    work, size = _Work(), min(_FIRST_WINDOW, search.buffer_size)
    while window := reader.window(size):
        began = time.monotonic()
        for translation in translator.translate_window(window):
            if form == "json":
                rendered = as_json(translation, n_best=search.n_best)
            elif search.n_best > 1:
                rendered = as_n_best(translation, work.lines)
            else:
                rendered = as_text(translation, with_score=with_score)
            for line in rendered:
                write_line(stream, line)
            work.lines += 1
            work.pieces += translation.num_pieces
        stream.flush()
        work.seconds += time.monotonic() - began
        progress(work)
        size = min(4 * size, search.buffer_size)
    return work


@contextlib.contextmanager
def _progress(input_path: str, output_path: str) -> Iterator[Callable[[_Work], None]]:
    """Shows how far the work is, where a terminal has no translations to show."""
    visible = sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
    typed = input_path == "-" and sys.stdin.isatty()
    if not visible or typed or (output_path == "-" and sys.stdout.isatty()):
        yield lambda work: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("translating")
        yield lambda work: bar.update(task, description=str(work))


def _search(settings: SearchConfig, chosen: dict[str, object]) -> SearchConfig:
    """The model's own settings but for what was chosen; the beam has room for the n best."""
    # Checked at run time against the fields' own types, which mypy cannot see.
    search = dataclasses.replace(settings, **chosen)  # type: ignore[arg-type]
    if "beam_size" in chosen:
        return dataclasses.replace(search, n_best=min(search.n_best, search.beam_size))
    return dataclasses.replace(search, beam_size=max(search.n_best, search.beam_size))


def _refuse_same_file(input_path: str, output_path: str) -> None:
    source, target = Path(input_path), Path(output_path)
    if "-" not in (input_path, output_path) and target.exists() and source.samefile(target):
        raise ConfigError(f"{output_path}: is the input as well; name another `--output`")
