"""`tfm pack` and `tfm unpack`: a model as one file, and back."""

import logging
from pathlib import Path
from typing import Any

from tfm_cli import console
from tfm_cli.cli.options import (
    Command,
    Options,
    model_files,
    option,
    quiet_option,
    refuse_overwriting,
    set_up_logging,
)
from tfm_cli.files.layout import CARD_FILE, SHORTLIST_FILE

logger = logging.getLogger(__name__)


def _language_option(side: str) -> Any:
    return option(
        "Card",
        f"--{side}-language",
        metavar="CODE",
        default=(),
        help=f"Language of the {side}, such as en or pt-BR. Repeatable or comma-separated.",
    )


class PackOptions(Options):
    """The options of `tfm pack`."""

    model: Path = option(
        "Files",
        metavar="MODEL",
        default=...,
        help="Model directory that `tfm train` or `tfm import` wrote.",
    )
    file: Path = option(
        "Files", metavar="FILE", default=..., help="Archive to write: .tar, .tar.gz or .tgz."
    )
    overwrite: bool = option(
        "Files", "--overwrite", default=False, help="Replace a file that is not a packed model."
    )
    source_language: tuple[str, ...] = _language_option("source")
    target_language: tuple[str, ...] = _language_option("target")
    license: str = option(
        "Card",
        "--license",
        metavar="NAME",
        default="",
        help="License, as the Hugging Face Hub names it, such as cc-by-4.0.",
    )
    quiet: bool = quiet_option()


def pack(options: PackOptions) -> None:
    """Write the files that translation needs into one archive.

    They are the configuration, the tokenizers, the weights, a shortlist if there is one, and a
    model card. The same model gives the same bytes.

    Example:  tfm pack model model.tar --source-language en --target-language fr
    """
    set_up_logging(options.quiet)

    from tfm_cli.model_directory import pack as packs  # imports SentencePiece

    extra = [options.model / name for name in (CARD_FILE, SHORTLIST_FILE)]
    refuse_overwriting(options.file, [*model_files(options.model), *extra], option="FILE")
    card = packs.CardOptions(
        source_languages=_codes(options.source_language),
        target_languages=_codes(options.target_language),
        license=options.license.lower(),
    )
    count = packs.pack(options.model, options.file, card, overwrite=options.overwrite)
    num_bytes = options.file.stat().st_size
    logger.info(
        "wrote %s: %s, %s bytes", options.file, console.counted(count, "file"), f"{num_bytes:,}"
    )


def _codes(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the codes in values that may be comma-separated."""
    return tuple(code.strip() for text in texts for code in text.split(","))


class UnpackOptions(Options):
    """The options of `tfm unpack`."""

    file: Path = option("Files", metavar="FILE", default=..., help="Archive that `tfm pack` wrote.")
    directory: Path = option(
        "Files", metavar="DIR", default=..., help="New model directory to write."
    )
    quiet: bool = quiet_option()


def unpack(options: UnpackOptions) -> None:
    """Write the model in an archive as a new model directory.

    The archive may come from anywhere: it is refused unless it holds the files of one model and
    nothing else, and the directory appears once the model has been verified.

    Example:  tfm unpack model.tar copy
    """
    set_up_logging(options.quiet)

    from tfm_cli.model_directory import pack as packs  # imports SentencePiece

    count = packs.unpack(options.file, options.directory)
    logger.info("wrote %s: %s", options.directory, console.counted(count, "file"))


PACK = Command(pack, PackOptions, {"Files": (), "Card": (), "Messages": ()})
UNPACK = Command(unpack, UnpackOptions, {"Files": (), "Messages": ()})
