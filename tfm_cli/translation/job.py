"""A translation job: its output, its processes, its progress, and its resumption."""

import contextlib
import dataclasses
import io
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tfm_cli
from tfm_cli import console
from tfm_cli.config.settings import SearchConfig
from tfm_cli.errors import ConfigError
from tfm_cli.parallel import Parallel
from tfm_cli.text.reader import LineReader, is_typed
from tfm_cli.text.writer import open_output
from tfm_cli.translation.output_format import OutputFormat
from tfm_cli.translation.resumable_output import Output, Position, StreamOutput, resumable_file
from tfm_cli.translation.streaming import (
    LineFormats,
    PendingLines,
    TranslatedWindow,
    Window,
    WindowReader,
    Work,
    merge_ranks,
    translated_windows,
    write_windows,
)

if TYPE_CHECKING:
    from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)

_SPEED_ONLY = ("max_tokens", "buffer_size")
_SAMPLING_ONLY = ("top_k", "top_p", "temperature", "seed")


class Job(NamedTuple):
    """A translation of one input to one output.

    Args:
        input_path: path of the input; `-` is standard input.
        output_path: path of the output; `-` is standard output.
        settings: all that the output depends on except the input, see `job_settings`.
        overwrite: start again instead of resuming an unfinished output.
        formats: formats of the input and output lines.
        buffer_size: most lines of a window.
    """

    input_path: str
    output_path: str
    settings: Mapping[str, Any]
    overwrite: bool
    formats: LineFormats
    buffer_size: int


def job_settings(
    models: Sequence[Path],
    search: SearchConfig,
    output_format: OutputFormat,
    *,
    sampling: bool,
    precision: str,
    **others: object,
) -> dict[str, Any]:
    """Return all that the output depends on except the input, by the names of the flags.

    Args:
        models: model directories.
        search: the search settings.
        output_format: the format of the output.
        sampling: translations are sampled.
        precision: precision of the matrix products.
        others: other flags by their names in Python.
    """
    from tfm_cli.model_directory.config_file import weights_identity  # imports SentencePiece

    settings = dataclasses.asdict(search) | output_format._asdict()
    for name in (*_SPEED_ONLY, *(() if sampling else _SAMPLING_ONLY)):
        del settings[name]
    settings["format"] = settings.pop("kind")
    settings |= {"sampling": sampling, "precision": precision, **others}
    flags = {f"--{name.replace('_', '-')}": value for name, value in settings.items()}
    weights = ", ".join(weights_identity(directory)[:12] for directory in models)
    return {"tfm version": tfm_cli.__version__, "weights": weights, **flags}


def check_input(input_path: str, parallel: Parallel) -> None:
    """Raise a ConfigError unless each of several processes can read the input from its start."""
    source = Path(input_path)
    if parallel.world > 1 and (input_path == "-" or (source.exists() and not source.is_file())):
        raise ConfigError(
            f"`--input {input_path}`: {parallel.world} processes cannot all read it",
            hint="name a file that each of them can read",
        )


def run_job(
    job: Job, reader: LineReader, load: Callable[[], "Translator"], *, parallel: Parallel
) -> Work:
    """Translate the lines that are not in the output yet, in all processes of `parallel`.

    Args:
        job: the job.
        reader: its input.
        load: returns the translator.
        parallel: the processes.
    """
    opened = _output(job) if parallel.is_main else _no_output()
    with parallel.connected(), opened as output:
        start = _broadcast_position(output.start, parallel)
        if start.lines:
            logger.info("%s: resuming after line %d", job.output_path, start.lines)
        translator = load()
        pending: PendingLines = deque()
        windows = WindowReader(reader, start, pending, buffer_size=job.buffer_size)

        def translate(own: Iterator[Window]) -> Iterator[TranslatedWindow]:
            return translated_windows(
                own, translator, job.formats, name=reader.name, pending=pending
            )

        if not parallel.is_main:
            console.setup(console.QUIET)  # other ranks only log warnings about their own lines
        with _progress(job) as progress:
            return write_windows(
                merge_ranks(iter(windows), translate, parallel),
                output,
                waited=lambda: windows.waited_seconds,
                progress=progress,
            )


@contextlib.contextmanager
def _progress(job: Job) -> Iterator[Callable[[Work], None]]:
    """Yield a function that shows the progress, unless the user sees the translations themselves.

    Nothing is shown if the input is typed, or if the translations go to the same terminal.
    """
    shares_terminal = job.output_path == "-" and sys.stderr.isatty() and sys.stdout.isatty()
    if shares_terminal or is_typed(job.input_path):
        yield lambda work: None
        return
    with console.shown_progress("translating", logger) as show:
        yield lambda work: show(work.progress_text, work.share)


def _output(job: Job) -> contextlib.AbstractContextManager[Output]:
    path = Path(job.output_path)
    if job.output_path == "-" or (path.exists() and not path.is_file()):
        return _stream(job.output_path)
    return resumable_file(path, job.settings, overwrite=job.overwrite)


@contextlib.contextmanager
def _stream(path: str) -> Iterator[Output]:
    with open_output(path) as stream:
        yield StreamOutput(stream)


@contextlib.contextmanager
def _no_output() -> Iterator[Output]:
    yield StreamOutput(io.BytesIO())


def _broadcast_position(start: Position, parallel: Parallel) -> Position:
    """Return the position of rank 0."""
    message = json.dumps(start._asdict()).encode()
    return Position(**json.loads(parallel.broadcast_bytes(message)))
