"""`tfm import`: a model of another toolkit in."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tfm_cli import log


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Directory with a Marian model, of Hugging Face or of OPUS-MT; or a name on the "
            "Hugging Face Hub.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Model directory to write."),
    ],
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read `pytorch_model.bin` where there is no other; no code in it is run.",
        ),
    ] = False,
    positions: Annotated[
        Literal["marian", "halves"] | None,
        typer.Option(
            help="Position encodings of an `.npz`: those of Marian itself, as without the flag, "
            "or those that conversions to Hugging Face and CTranslate2 have."
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text in the source language on which both sides are compared; else some is "
            "made up.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that stands in the output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
) -> None:
    """Import a Marian or OPUS-MT model, and check that it computes the same.

    What is not supported is listed, and nothing is written.

    \b
    Example:  tfm import Helsinki-NLP/opus-mt-en-de --output model
    """
    log.setup(log.QUIET if quiet else log.NORMAL)

    from tfm_cli.interop.importing import import_model as run  # imports torch: seconds

    run(
        source,
        output,
        allow_pickle=allow_pickle,
        probe=probe,
        overwrite=overwrite,
        positions=positions,
    )
