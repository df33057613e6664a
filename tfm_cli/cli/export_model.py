"""`tfm export`: a model out to another toolkit, or to int8."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tfm_cli import log


def export_model(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Model directory that `tfm train` or `tfm import` wrote.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Literal["hf", "ctranslate2", "tfm"],
        typer.Option(
            help="What will load it: MarianMTModel of Hugging Face, CTranslate2, or tfm itself, "
            "with weights in int8 that translate on CPUs."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.")
    ],
    quantization: Annotated[
        Literal["int8", "int16", "float16", "bfloat16"] | None,
        typer.Option(help="Coarser weights, for CTranslate2, or int8 for tfm."),
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
        bool, typer.Option("--overwrite", help="Replace an export that stands in the output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
) -> None:
    """Export a model to another toolkit or to int8, and check that it computes the same there.

    What the other side cannot express is listed, and nothing is written.

    \b
    Example:  tfm export model --to ctranslate2 --quantization int8 --output fast
    """
    log.setup(log.QUIET if quiet else log.NORMAL)

    from tfm_cli.interop.export import export_model as run  # imports torch: seconds

    run(model, output, to=to, quantization=quantization, probe=probe, overwrite=overwrite)
