"""`tfm translate` as a job: where its output goes, which process does what, where it goes on."""

import contextlib
import dataclasses
import io
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tfm_cli
from tfm_cli import console
from tfm_cli.config.settings import SearchConfig
from tfm_cli.errors import ConfigError
from tfm_cli.parallel import Parallel
from tfm_cli.text.reader import LineReader
from tfm_cli.text.writer import open_output
from tfm_cli.translation.input_format import InputLine
from tfm_cli.translation.output_format import Form
from tfm_cli.translation.progress import shown_progress
from tfm_cli.translation.resumable_output import Output, Position, StreamOutput, resumable_file
from tfm_cli.translation.streaming import (
    Translated,
    UnderWay,
    Window,
    WindowReader,
    Work,
    of_all_ranks,
    translated_windows,
    write_windows,
)

if TYPE_CHECKING:
    from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)

_SPEED_ONLY = ("max_tokens", "buffer_size")
_SAMPLING_ONLY = ("top_k", "top_p", "temperature", "seed")


def job_settings(
    models: Sequence[Path],
    search: SearchConfig,
    form: Form,
    *,
    sampling: bool,
    precision: str,
    **others: object,
) -> dict[str, Any]:
    """All that the output depends on but the input, by the names that the user knows.

    Args:
        models: model directories.
        search: how translations are looked for.
        form: of the output.
        sampling: whether they are drawn.
        precision: of the matrix products.
        others: flags by their names in Python.
    """
    from tfm_cli.model_directory.config_file import weights_identity  # imports SentencePiece

    settings = dataclasses.asdict(search) | dataclasses.asdict(form)
    for name in (*_SPEED_ONLY, *(() if sampling else _SAMPLING_ONLY)):
        del settings[name]
    settings["format"] = settings.pop("kind")
    settings |= {"sampling": sampling, "precision": precision, **others}
    flags = {f"--{name.replace('_', '-')}": value for name, value in settings.items()}
    weights = ", ".join(weights_identity(directory)[:12] for directory in models)
    return {"tfm version": tfm_cli.__version__, "weights": weights, **flags}


def check_input(input_path: str, parallel: Parallel) -> None:
    """Raise a ConfigError if several processes could not read the input, each from its start."""
    source = Path(input_path)
    if parallel.world > 1 and (input_path == "-" or (source.exists() and not source.is_file())):
        raise ConfigError(
            f"`--input {input_path}`: {parallel.world} processes cannot all read it",
            hint="name a file that each of them can read",
        )


def run_job(
    reader: LineReader,
    load: Callable[[], "Translator"],
    *,
    input_path: str,
    output_path: str,
    settings: Mapping[str, Any],
    overwrite: bool,
    understand: Callable[[str, str], InputLine],
    form: Form,
    buffer_size: int,
    parallel: Parallel,
) -> Work:
    """Translate an input from where its output stopped, with all processes that there are.

    Args:
        reader: the input.
        load: gives what translates.
        input_path: of the input; - for standard input.
        output_path: where translations go; - for standard output.
        settings: what they depend on.
        overwrite: begin again, whatever was begun.
        understand: says what stands on a line, given the line and what messages call it.
        form: of the output.
        buffer_size: most lines of a window.
        parallel: the processes.
    """
    main = parallel.is_main
    opened = _output(output_path, settings, overwrite=overwrite) if main else _none()
    with parallel.connected(), opened as output:
        start = _shared(output.start, parallel)
        if start.lines:
            logger.info("%s: going on after line %d", output_path, start.lines)
        translator = load()
        under_way: UnderWay = deque()
        windows = WindowReader(reader, start, under_way, buffer_size=buffer_size)

        def translate(own: Iterator[Window]) -> Iterator[Translated]:
            return translated_windows(
                own, translator, understand=understand, form=form, name=reader.name,
                under_way=under_way,
            )  # fmt: skip

        if not main:
            console.setup(console.QUIET)  # its lines are its own, and so are the warnings of them
        with shown_progress(input_path, output_path) as progress:
            return write_windows(
                of_all_ranks(iter(windows), translate, parallel),
                output,
                waited=lambda: windows.waited_seconds,
                progress=progress,
            )


def _output(
    path: str, settings: Mapping[str, Any], *, overwrite: bool
) -> contextlib.AbstractContextManager[Output]:
    place = Path(path)
    if path == "-" or (place.exists() and not place.is_file()):
        return _streaming(path)
    return resumable_file(place, settings, overwrite=overwrite)


@contextlib.contextmanager
def _streaming(path: str) -> Iterator[Output]:
    with open_output(path) as stream:
        yield StreamOutput(stream)


@contextlib.contextmanager
def _none() -> Iterator[Output]:
    yield StreamOutput(io.BytesIO())


def _shared(start: Position, parallel: Parallel) -> Position:
    """Where rank 0 says that the work begins."""
    return Position(
        **json.loads(parallel.broadcast_bytes(json.dumps(dataclasses.asdict(start)).encode()))
    )
