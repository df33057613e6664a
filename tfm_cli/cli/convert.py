"""`tfm import` and `tfm export`: models from and to other toolkits."""

from pathlib import Path
from typing import Any, Literal

from tfm_cli.cli.options import Command, Options, option, quiet_option, set_up_logging


def _probe_option() -> Any:
    return option(
        "Check",
        "--probe",
        metavar="FILE",
        help="Text in the source language on which both sides are compared. "
        "[default: generated text]",
    )


class ImportOptions(Options):
    """The options of `tfm import`."""

    source: str = option(
        "Model",
        metavar="SOURCE",
        default=...,
        help="Directory with a Marian model, in the format of Marian, OPUS-MT or Hugging Face; or "
        "a name on the Hugging Face Hub.",
    )
    output: Path = option(
        "Model",
        "--output",
        "-o",
        metavar="DIR",
        default=...,
        help="Model directory to write.",
    )
    overwrite: bool = option(
        "Model", "--overwrite", default=False, help="Replace a model in the output directory."
    )
    allow_pickle: bool = option(
        "Model",
        "--allow-pickle",
        default=False,
        help="Read `pytorch_model.bin` if there are no other weights; no code in it is run.",
    )
    positions: Literal["marian", "halves"] | None = option(
        "Model",
        "--positions",
        shown_default="marian",
        help="Layout of the position encodings of an `.npz` file: Marian's own, or the one of "
        "conversions to Hugging Face and CTranslate2.",
    )
    probe: Path | None = _probe_option()
    quiet: bool = quiet_option()


def import_model(options: ImportOptions) -> None:
    """Import a Marian or OPUS-MT model and verify its logits.

    Features that are not supported are listed, and then no model is written.

    Example:  tfm import Helsinki-NLP/opus-mt-en-de --output model
    """
    set_up_logging(options.quiet)

    from tfm_cli.interop.importing import import_model as run  # imports torch: seconds

    run(
        options.source,
        options.output,
        allow_pickle=options.allow_pickle,
        probe=options.probe,
        overwrite=options.overwrite,
        positions=options.positions,
    )


class ExportOptions(Options):
    """The options of `tfm export`."""

    model: Path = option(
        "Model",
        metavar="MODEL",
        default=...,
        help="Model directory that `tfm train` or `tfm import` wrote.",
    )
    to: Literal["hf", "ctranslate2", "tfm"] = option(
        "Model",
        "--to",
        default=...,
        help="Target format: MarianMTModel of Hugging Face, CTranslate2, or a model directory of "
        "tfm with int8 weights, for CPUs.",
    )
    output: Path = option(
        "Model", "--output", "-o", metavar="DIR", default=..., help="Directory to write."
    )
    overwrite: bool = option(
        "Model", "--overwrite", default=False, help="Replace an export in the output directory."
    )
    quantization: Literal["int8", "int16", "float16", "bfloat16"] | None = option(
        "Model",
        "--quantization",
        metavar="NAME",
        help="Type of the weights: int8, int16, float16 or bfloat16 for CTranslate2, int8 for tfm.",
    )
    probe: Path | None = _probe_option()
    quiet: bool = quiet_option()


def export_model(options: ExportOptions) -> None:
    """Export a model to another toolkit or to int8 and verify it.

    Features that the other side cannot express are listed, and then no model is written.

    Example:  tfm export model --to ctranslate2 --quantization int8 --output fast
    """
    set_up_logging(options.quiet)

    from tfm_cli.interop.exporting import export_model as run  # imports torch: seconds

    run(
        options.model,
        options.output,
        to=options.to,
        quantization=options.quantization,
        probe=options.probe,
        overwrite=options.overwrite,
    )


_HEADINGS: dict[str, tuple[str, ...]] = {"Model": (), "Check": (), "Messages": ()}
IMPORT = Command(import_model, ImportOptions, _HEADINGS)
EXPORT = Command(export_model, ExportOptions, _HEADINGS)
