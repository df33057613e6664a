"""`tfm plot`: learning curves of one or more runs."""

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tfm_cli import console
from tfm_cli.cli.options import Command, Options, option, quiet_option, refuse_overwriting
from tfm_cli.errors import ConfigError
from tfm_cli.files.layout import METRICS_FILE
from tfm_cli.text.writer import open_output, write_lines

logger = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0


class PlotOptions(Options):
    """The options of `tfm plot`."""

    runs: tuple[Path, ...] = option(
        "Runs",
        metavar="RUN",
        default=(Path("model"),),
        shown_default="model",
        help="Directories that `tfm train` writes, or their `metrics.jsonl`.",
    )
    x: Literal["updates", "epochs", "time"] = option(
        "Chart",
        "--x",
        default="updates",
        help="The horizontal axis; time is the time of training, without pauses.",
    )
    output: str | None = option(
        "Chart",
        "--output",
        "-o",
        metavar="FILE",
        help="Write a page or an image, by its suffix .html, .svg or .png, or to a directory an "
        "image of each chart; without it, text is printed.",
    )
    overwrite: bool = option(
        "Chart", "--overwrite", default=False, help="Replace a file that tfm did not make."
    )
    watch: bool = option(
        "Chart",
        "--watch",
        "-w",
        default=False,
        help="Print the text anew while the runs go on, until they end.",
    )
    quiet: bool = quiet_option()


def plot(options: PlotOptions) -> None:
    """Show loss, scores, learning rate, gradient norm and speed of runs.

    Pages and images need the extra `pictures`; text needs nothing.

    Example:  tfm plot model other --x time --output curves.html
    """
    console.setup(console.QUIET if options.quiet else console.NORMAL)

    from tfm_cli.pictures import curves

    if options.output is None:
        if options.overwrite:
            raise ConfigError("`--overwrite` needs `--output`")
        if options.watch:
            _watch(options.runs, options.x)
        else:
            _print(_text(options.runs, options.x))
        return
    if options.watch:
        raise ConfigError("`--watch` and `--output` exclude each other")
    from tfm_cli.pictures.page import check_output

    refuse_overwriting(options.output, map(_metrics_file, options.runs))
    check_output(options.output, overwrite=options.overwrite)
    page = curves.curves_page(curves.read_runs(options.runs), options.x)
    page.write(options.output, overwrite=options.overwrite)
    logger.info("%s: written", options.output)


def _metrics_file(run: Path) -> Path:
    return run / METRICS_FILE if run.is_dir() else run


def _size_and_time(file: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = file.stat()
        return status.st_size, status.st_mtime_ns
    return None


def _text(paths: Sequence[Path], axis: Literal["updates", "epochs", "time"]) -> list[str]:
    from tfm_cli.pictures.curves import read_runs
    from tfm_cli.pictures.curves_text import curves_text

    return curves_text(read_runs(paths), axis)


def _print(lines: Sequence[str]) -> None:
    with open_output("-") as stream:
        write_lines(stream, lines)


def _watch(paths: Sequence[Path], axis: Literal["updates", "epochs", "time"]) -> None:
    """Print the text whenever a run has changed, until none goes on.

    On a terminal it takes the place of the text before; elsewhere a blank line precedes it.
    """
    from tfm_cli.pictures.curves import is_training

    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    before: object = None
    num_shown = 0
    while True:
        goes_on = [is_training(_metrics_file(path).parent) for path in paths]
        state = goes_on, [_size_and_time(_metrics_file(path)) for path in paths]
        if state != before:
            before = state
            lines = _text(paths, axis)
            console.setup(console.SILENT)  # damaged lines were reported
            if on_terminal:
                size = shutil.get_terminal_size()
                lines = [line[: size.columns] for line in lines[: max(size.lines - 1, 1)]]
                if num_shown:
                    sys.stdout.write(f"\x1b[{num_shown}F\x1b[J")  # to the first line, and clear
            elif num_shown:
                _print([""])
            _print(lines)
            num_shown = len(lines)
        if not any(goes_on):
            return
        time.sleep(_WATCH_SECONDS)


COMMAND = Command(plot, PlotOptions, {"Runs": (), "Chart": (), "Messages": ()})
