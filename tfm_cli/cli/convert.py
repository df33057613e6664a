"""`tfm import`: a model of another toolkit in."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tfm_cli import console


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
    console.setup(console.QUIET if quiet else console.NORMAL)

    from tfm_cli.interop.importing import import_model as run  # imports torch: seconds

    run(
        source,
        output,
        allow_pickle=allow_pickle,
        probe=probe,
        overwrite=overwrite,
        positions=positions,
    )


# `tfm export`: a model out to another toolkit, or to int8.


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
    console.setup(console.QUIET if quiet else console.NORMAL)

    from tfm_cli.interop.exporting import export_model as run  # imports torch: seconds

    run(model, output, to=to, quantization=quantization, probe=probe, overwrite=overwrite)
