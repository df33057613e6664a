"""`tfm explain`: the parts of a Transformer at work on a sentence."""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tfm_cli import console
from tfm_cli.cli.options import (
    Command,
    Options,
    model_files,
    option,
    quiet_option,
    refuse_overwriting,
)
from tfm_cli.errors import ConfigError, DataError
from tfm_cli.files.atomic import check_writable
from tfm_cli.parallel.cpu_cores import import_numpy
from tfm_cli.text.characters import is_blank
from tfm_cli.text.reader import open_lines
from tfm_cli.text.writer import open_output

if TYPE_CHECKING:
    from tfm_cli.model_directory.weights import TrainedModel
    from tfm_cli.pictures.cost import Cost
    from tfm_cli.pictures.explaining import ExplainOptions
    from tfm_cli.pictures.explanation import Explanation

logger = logging.getLogger(__name__)

EXAMPLE_SECONDS = 4.0  # maximum time to find a sentence on which greedy search goes wrong
DEFAULT_COST_SECONDS, MAX_COST_SECONDS = 30, 3600
_MAX_LAYER = 1000


class CommandOptions(Options):
    """The options of `tfm explain` that are not settings."""

    sentence: str | None = option(
        "Input",
        metavar="SENTENCE",
        help="Text in the source language; several lines are explained one by one. - for standard "
        "input.",
    )
    target: str | None = option(
        "Input",
        "--target",
        "-t",
        metavar="TEXT",
        shown_default="the model's translation",
        help="Translation that the decoder reads (teacher forcing).",
    )
    model: Path = option(
        "Input",
        "--model",
        "-m",
        metavar="DIR",
        default=Path("model"),
        help="Model directory that `tfm train` or `tfm import` wrote.",
    )
    output: str | None = option(
        "Output",
        "--output",
        "-o",
        metavar="FILE|DIR",
        shown_default="text on standard output",
        help="Page to write, as .html, .svg or .png, or a directory for its pictures.",
    )
    output_format: Literal["text", "json"] | None = option(
        "Output",
        "--format",
        "-f",
        shown_default="text",
        help="Write tokens and one attention map as text, or all numbers as one JSON object a "
        "line, to standard output or to `--output`.",
    )
    overwrite: bool = option(
        "Output", "--overwrite", default=False, help="Replace a file that tfm did not write."
    )
    attention: Literal["self", "masked", "cross"] = option(
        "Pictures",
        "--attention",
        default="cross",
        help="Attention map of the text form: of the encoder, of the decoder, or of the decoder to "
        "the encoder.",
    )
    layer: int | None = option(
        "Pictures",
        "--layer",
        ge=1,
        le=_MAX_LAYER,
        shown_default="1, and in text the layer that aligns best",
        help="Layer that is shown first.",
    )
    head: int | None = option(
        "Pictures",
        "--head",
        ge=1,
        le=_MAX_LAYER,
        shown_default="1, and in text the mean of all heads",
        help="Head that is shown first.",
    )
    contrast: str | None = option(
        "Pictures",
        "--contrast",
        metavar="TEXT",
        help="Another sentence with as many tokens: also shows which source token carries the "
        "difference between the translations (activation patching).",
    )
    cost: bool = option(
        "Cost",
        "--cost",
        default=False,
        help="Also measure, on this machine, self-attention against an LSTM of the same width: "
        "time, operations in sequence, path length and gradients. Without SENTENCE, only that.",
    )
    cost_seconds: int = option(
        "Cost",
        "--cost-seconds",
        metavar="SECONDS",
        default=DEFAULT_COST_SECONDS,
        ge=1,
        le=MAX_COST_SECONDS,
        help="About how long to measure; the longest sentences are left out if it is too short.",
    )
    quiet: bool = quiet_option()


def explain(options: CommandOptions) -> None:
    """Show what each part of a model does to a sentence.

    Attention weights are no explanation of a decision (Jain and Wallace 2019, arXiv:1902.10186).

    Example:  tfm explain "The cat sleeps." --model model -o page.html
    """
    console.setup(console.QUIET if options.quiet else console.NORMAL)
    makes_page = options.output is not None and options.output_format is None
    sentences = [] if options.cost and options.sentence is None else _sentences(options)
    _check(options, sentences, makes_page=makes_page)
    model, explain_options = _loaded(options, with_example=options.output is not None)
    cost = _measured(options, model) if options.cost else None

    from tfm_cli.model.precision import set_cpu_threads
    from tfm_cli.pictures.explaining import explain as explained

    set_cpu_threads(1)  # the products are small
    explanations = (
        explained(
            model, each, target=options.target or "", name=str(options.model),
            options=explain_options,
        )
        for each in sentences
    )  # fmt: skip
    if makes_page:
        _write_page(options, next(explanations, None), cost)
        return
    with open_output(options.output or "-") as stream:
        for text in _texts(options, explanations, cost, is_terminal=stream.isatty()):
            stream.write(text.encode("utf-8", errors="replace"))


def _sentences(options: CommandOptions) -> list[str]:
    """Return the lines to explain, without blank ones.

    Raises:
        ConfigError: no sentence was given.
        DataError: all lines are blank.
    """
    if options.sentence is None:
        hint = "give a sentence, - for standard input, or `--cost`"
        raise ConfigError("`SENTENCE` is missing", hint=hint)
    if options.sentence == "-":
        with open_lines("-", invalid="replace") as reader:
            lines = list(reader)
        for note in reader.notes():
            logger.warning("%s: %s", reader.name, note)
    else:
        lines = _text(options.sentence).split("\n")
    sentences = [line for line in lines if not is_blank(line)]
    if not sentences:
        raise DataError("the sentence is blank, expected words")
    return sentences


def _text(argument: str) -> str:
    """Return an argument as text, in which bytes that are not UTF-8 are U+FFFD."""
    return os.fsencode(argument).decode("utf-8", "replace").replace("\0", "")


def _check(options: CommandOptions, sentences: Sequence[str], *, makes_page: bool) -> None:
    """Raise an error for what cannot be done, before PyTorch is imported."""
    if len(sentences) > 1 and makes_page:
        message = f"a page shows one sentence, got {len(sentences)} lines"
        raise ConfigError(message, hint="give one line, or choose `--format json`")
    if len(sentences) != 1 and options.target is not None:
        raise ConfigError(f"`--target` needs one sentence, got {len(sentences)} lines")
    if len(sentences) != 1 and options.contrast is not None:
        raise ConfigError(f"`--contrast` needs one sentence, got {len(sentences)} lines")
    from tfm_cli.model_directory.config_file import load_config

    load_config(options.model)
    if options.output is None:
        return
    refuse_overwriting(options.output, model_files(options.model))
    if not makes_page:
        check_writable(options.output)
        return
    import_numpy()
    from tfm_cli.pictures.page import check_output

    check_output(options.output, overwrite=options.overwrite)


def _loaded(
    options: CommandOptions, *, with_example: bool
) -> tuple["TrainedModel", "ExplainOptions"]:
    """Return the model and the options of its explanations."""
    import_numpy()
    import torch

    from tfm_cli.model_directory.weights import load_model
    from tfm_cli.pictures.explaining import ExplainOptions, check_choice
    from tfm_cli.translation.search import chosen_search

    model = load_model(options.model, torch.device("cpu"))
    chosen = ExplainOptions(
        layer=(options.layer or 1) - 1,
        head=(options.head or 1) - 1,
        search=chosen_search(model.config.search, options.settings["search"]),
        example_seconds=EXAMPLE_SECONDS if with_example else 0.0,
        contrast=None if options.contrast is None else _text(options.contrast),
    )
    check_choice(model.config, chosen)
    return model, chosen


def _measured(options: CommandOptions, model: "TrainedModel") -> "Cost":
    """Return the cost of the model's encoder layer beside that of an LSTM."""
    from tfm_cli.model.transformer import TransformerShape
    from tfm_cli.pictures.cost import cost_command, measure_cost

    plural = "" if options.cost_seconds == 1 else "s"
    logger.info("measuring for about %d second%s", options.cost_seconds, plural)
    command = cost_command(str(options.model))
    if options.cost_seconds != DEFAULT_COST_SECONDS:
        command += f" --cost-seconds {options.cost_seconds}"
    shape = TransformerShape(**dataclasses.asdict(model.config.model))
    return measure_cost(
        shape.encoder_layer,
        is_rotary=shape.positions == "rotary",
        command=command,
        seconds=options.cost_seconds,
    )


def _write_page(
    options: CommandOptions, explanation: "Explanation | None", cost: "Cost | None"
) -> None:
    from tfm_cli.pictures.cost import cost_page
    from tfm_cli.pictures.explain_page import explain_page

    assert options.output is not None
    if explanation is None:
        assert cost is not None
        page = cost_page(cost)
    else:
        page = explain_page(explanation, cost=cost)
    page.write(options.output, overwrite=options.overwrite)
    logger.info("wrote %s", options.output)


def _texts(
    options: CommandOptions,
    explanations: Iterator["Explanation"],
    cost: "Cost | None",
    *,
    is_terminal: bool,
) -> Iterator[str]:
    """Yield each explanation, and the cost, as text or JSON."""
    if options.output_format == "json":
        measured = {} if cost is None else {"cost": cost.to_json()}
        tables = (explanation.to_json() | measured for explanation in explanations)
        for table in tables if options.sentence is not None else [measured]:
            yield (
                json.dumps(table, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
            )
        return
    from tfm_cli.pictures.terminal import attention_map, explanation_text

    width = shutil.get_terminal_size((100, 24)).columns
    color = is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    separator = ""
    for explanation in explanations:
        shown = attention_map(
            explanation, options.attention, _place(options.layer), _place(options.head)
        )
        yield separator + explanation_text(explanation, shown, width=width, color=color)
        separator = "\n"
    if cost is not None:
        from tfm_cli.pictures.cost import cost_text

        yield separator + cost_text(cost)


def _place(number: int | None) -> int | None:
    """Return a number from 1 as an index."""
    return None if number is None else number - 1


COMMAND = Command(
    explain,
    CommandOptions,
    {
        "Input": (),
        "Output": (),
        "Pictures": (),
        "Search": ("search.beam_size", "search.length_penalty"),
        "Cost": (),
        "Messages": (),
    },
)
