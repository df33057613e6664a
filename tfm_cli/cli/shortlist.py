"""`tfm shortlist`: which pieces a model's translations need."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from tfm_cli import console
from tfm_cli.cli.options import NO_CPU_THREADS, WORKERS, flag, model_files, refuse_overwriting
from tfm_cli.config.settings import DataConfig, TrainingConfig
from tfm_cli.errors import ConfigError
from tfm_cli.files.atomic import check_writable, refuse_irregular_file
from tfm_cli.parallel.cpu_cores import import_numpy

logger = logging.getLogger(__name__)

_MANY = "Repeatable."


def shortlist(
    source: Annotated[
        list[str],
        typer.Option(
            "--source", "-s", metavar="FILE", help=f"Text in the source language. {_MANY}"
        ),
    ],
    target: Annotated[
        list[str],
        typer.Option(
            "--target", "-t", metavar="FILE", help=f"Its translation, line by line. {_MANY}"
        ),
    ],
    model: Annotated[
        Path,
        typer.Option("--model", "-m", metavar="DIR", help="Model directory."),
    ] = Path("model"),
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The table to write. [default: `shortlist.safetensors` in the model directory]",
        ),
    ] = None,
    best: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=10_000, help="Most target pieces for each source piece."
        ),
    ] = 200,
    frequent: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=1_000_000,
            help="Most frequent target pieces, which any translation may have.",
        ),
    ] = 100,
    max_length: Annotated[int, flag(DataConfig, "max_length")] = DataConfig().max_length,
    max_tokens: Annotated[int, flag(TrainingConfig, "max_tokens")] = TrainingConfig().max_tokens,
    device: Annotated[str, flag(TrainingConfig, "device")] = "auto",
    workers: Annotated[int, WORKERS] = 0,
    cpu_threads: Annotated[int | None, NO_CPU_THREADS] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
) -> None:
    """Note which pieces translate which, for `tfm translate --shortlist`.

    The model reads parallel text, best what it learned from; its attention says which target piece
    came from which source piece.

    \b
    Example:  tfm shortlist --model model -s train.en -t train.de
    """
    console.setup(console.QUIET if quiet else console.NORMAL)
    if len(source) != len(target):
        counts = f"{len(source)} and {len(target)}"
        raise ConfigError(f"source and target must be as many files, got {counts}")
    from tfm_cli.files.layout import SHORTLIST_FILE
    from tfm_cli.model_directory.config_file import load_config

    path = output or model / SHORTLIST_FILE
    load_config(model)
    refuse_overwriting(path, [*source, *target, *model_files(model)])
    check_writable(path)
    if output is None:
        refuse_irregular_file(path)

    import_numpy()
    from tfm_cli.corpus.parallel_text import read_pairs
    from tfm_cli.device import resolve_device
    from tfm_cli.translation.loading import load_models, resolve_precision
    from tfm_cli.translation.search_engine import SearchOptions, useless_weights_refused
    from tfm_cli.translation.shortlist import save_shortlist
    from tfm_cli.translation.shortlist_building import ShortlistOptions, build_shortlist
    from tfm_cli.translation.worker_pool import num_workers

    place = resolve_device(device)
    count = num_workers(workers, device=place.type)
    precision = resolve_precision("auto", place, [model]) if place.type == "cpu" else "fp32"
    models = load_models([model], place, precision)
    with useless_weights_refused(str(model)):
        table = build_shortlist(
            read_pairs(source, target),
            models.engine(SearchOptions(settings=models.config.search)),
            models.tokenizers,
            ShortlistOptions(
                best=best,
                frequent=frequent,
                max_length=max_length,
                max_tokens=max_tokens,
                workers=count,
            ),
            name=", ".join([*source, *target]),
        )
    save_shortlist(path, table, models.tokenizers, follow=output is not None)
    known = sum(count > 0 for count in table.seen)
    logger.info("%s: knows %d of %d source pieces", path, known, len(table.seen))
