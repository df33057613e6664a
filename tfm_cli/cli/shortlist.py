"""`tfm shortlist`: the target tokens that a model's translations need."""

import logging
from pathlib import Path

from tfm_cli.cli.options import (
    Command,
    Options,
    cpu_threads_option,
    model_files,
    option,
    quiet_option,
    refuse_cpu_threads,
    refuse_overwriting,
    set_up_logging,
    workers_option,
)
from tfm_cli.files.atomic import check_writable, refuse_irregular_file
from tfm_cli.files.layout import SHORTLIST_FILE
from tfm_cli.parallel.cpu_cores import import_numpy

logger = logging.getLogger(__name__)


class CommandOptions(Options):
    """The options of `tfm shortlist` that are not settings."""

    source: tuple[str, ...] = option(
        "Text",
        "--source",
        "-s",
        metavar="FILE",
        default=...,
        help="Text in the source language. Repeatable.",
    )
    target: tuple[str, ...] = option(
        "Text",
        "--target",
        "-t",
        metavar="FILE",
        default=...,
        help="Text in the target language, line by line. Repeatable.",
    )
    model: Path = option(
        "Shortlist",
        "--model",
        "-m",
        metavar="DIR",
        default=Path("model"),
        help="Model directory.",
    )
    output: Path | None = option(
        "Shortlist",
        "--output",
        "-o",
        metavar="FILE",
        shown_default="`shortlist.safetensors` in the model directory",
        help="The shortlist to write.",
    )
    best: int = option(
        "Shortlist",
        "--best",
        default=200,
        ge=1,
        le=10_000,
        help="Maximum number of target tokens for each source token.",
    )
    frequent: int = option(
        "Shortlist",
        "--frequent",
        default=100,
        ge=0,
        le=1_000_000,
        help="Number of most frequent target tokens, which every translation may contain.",
    )
    workers: int = workers_option("Speed")
    cpu_threads: str | None = cpu_threads_option()
    quiet: bool = quiet_option()


def shortlist(options: CommandOptions) -> None:
    """Write the shortlist for `tfm translate --shortlist`.

    The model reads parallel text, ideally its training text; each target token is counted for the
    three source tokens with the largest attention.

    Example:  tfm shortlist --model model -s train.en -t train.de
    """
    set_up_logging(options.quiet)
    refuse_cpu_threads(options.cpu_threads)
    source, target, model = options.source, options.target, options.model
    from tfm_cli.corpus.sources import aligned_files
    from tfm_cli.model_directory.config_file import load_config

    files = aligned_files(source, target)
    path = options.output or model / SHORTLIST_FILE
    load_config(model)
    refuse_overwriting(path, [*source, *target, *model_files(model)])
    check_writable(path)
    if options.output is None:
        refuse_irregular_file(path)

    import_numpy()
    from tfm_cli.corpus.parallel_text import read_corpus
    from tfm_cli.device import resolve_device
    from tfm_cli.translation.search import SearchOptions, unusable_weights_as_model_error
    from tfm_cli.translation.shortlist import save_shortlist
    from tfm_cli.translation.shortlist_building import ShortlistOptions, build_shortlist
    from tfm_cli.translation.translator import load_models, resolve_precision
    from tfm_cli.translation.worker_pool import num_workers

    device = resolve_device(options.setting("training", "device"))
    count = num_workers(options.workers, device=device.type)
    precision = resolve_precision("auto", device, [model]) if device.type == "cpu" else "fp32"
    models = load_models([model], device, precision)
    with unusable_weights_as_model_error(str(model)):
        table = build_shortlist(
            read_corpus(files),
            models.engine(SearchOptions(settings=models.config.search)),
            models.tokenizers,
            ShortlistOptions(
                best=options.best,
                frequent=options.frequent,
                max_length=options.setting("data", "max_length"),
                max_tokens=options.setting("training", "max_tokens"),
                workers=count,
            ),
            name=", ".join([*source, *target]),
        )
    save_shortlist(path, table, models.tokenizers, follow=options.output is not None)
    known = sum(count > 0 for count in table.seen)
    logger.info("%s: has %d of %d source tokens", path, known, len(table.seen))


COMMAND = Command(
    shortlist,
    CommandOptions,
    {
        "Text": ("data.max_length",),
        "Shortlist": (),
        "Speed": ("training.max_tokens", "training.device"),
        "Messages": (),
    },
)
