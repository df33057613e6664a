"""`tfm info`: the facts about a model that its directory records."""

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tfm_cli import console
from tfm_cli.cli.options import Command, Options, option, quiet_option, set_up_logging
from tfm_cli.config.loading import to_mapping
from tfm_cli.text.writer import open_output, write_lines

if TYPE_CHECKING:
    from tfm_cli.model_directory.description import Description, Training

_WIDTH = 80  # of the text, in columns
_NAME_WIDTH = 20

_Rows = Sequence[tuple[str, str]]


class InfoOptions(Options):
    """The options of `tfm info`."""

    model: Path = option(
        "Model",
        metavar="MODEL",
        default=...,
        help="Model directory that `tfm train` or `tfm import` wrote.",
    )
    output_format: Literal["text", "json"] = option(
        "Output", "--format", "-f", default="text", help="Format of the facts."
    )
    verify: bool = option(
        "Output",
        "--verify",
        default=True,
        help="Read all files, and compare them with the hashes that were saved.",
    )
    quiet: bool = quiet_option()


def info(options: InfoOptions) -> None:
    """Show what a model directory records: shape, tokenizers, training, files.

    Nothing is computed, so that no PyTorch is needed. A model that is incomplete or damaged is an
    error, as it is for `tfm translate`.

    Example:  tfm info model
    """
    set_up_logging(options.quiet)

    from tfm_cli.model_directory.description import describe, to_json  # imports SentencePiece

    description = describe(options.model, verify=options.verify)
    if options.output_format == "json":
        # A path that is not UTF-8 contains lone surrogates, which JSON writes as \udcxx.
        lines = json.dumps(to_json(description), indent=2).split("\n")
    else:
        lines = list(_text(description))
    with open_output("-") as stream:
        write_lines(stream, lines)


def _text(description: "Description") -> Iterator[str]:
    """Yield the lines of the text; none is wider than 80 columns."""
    saved = description.saved
    resumes = description.resumes_from
    head = [
        ("model", str(description.path)),
        ("format", f"{saved.format_version}, written by tfm {saved.tfm_version}"),
        ("imported from", description.card.rows.get("from", "")),
        ("languages", " ".join(description.card.languages)),
        ("language tags", " ".join(description.language_tags)),
        ("license", description.card.license),
        ("weights", description.precision or "none yet: no validation was reached"),
        ("parameters", f"{description.parameters['total']:,}"),
        ("can be resumed", "no" if resumes is None else f"from update {resumes}"),
    ]
    yield from _section("", head)
    yield from _section("Shape", _shape_rows(description))
    yield from _section("Tokenizers", _tokenizer_rows(description))
    yield from _section("Training", _training_rows(description))
    yield from _section("Files", [])
    for file in description.files:
        row = (file.name, f"{file.num_bytes:>15,} bytes, {file.check}")
        yield from _row(*row, width=max(len(each.name) for each in description.files) + 2)
        if file.sha256:
            yield f"    sha256 {file.sha256}"


def _shape_rows(description: "Description") -> _Rows:
    """Return all settings of the model; those of one stack only are in its row."""
    model, parameters = description.saved.settings.model, description.parameters
    stacks = {"encoder": model.encoder, "decoder": model.decoder}
    rows = [
        (
            name,
            f"{console.counted(stack.layers, 'layer')}, {console.counted(stack.heads, 'head')}, "
            f"feed-forward {stack.feed_forward_width}, {parameters[name]:,} parameters",
        )
        for name, stack in stacks.items()
    ]
    rows.append(("outside layers", f"{parameters['embeddings']:,} parameters"))
    in_stacks = {"heads", "feed_forward_width"}
    for name, value in to_mapping(description.saved.settings)["model"].items():
        if name not in in_stacks and not name.startswith(("encoder_", "decoder_")):
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            rows.append((name, shown))
    return rows


def _tokenizer_rows(description: "Description") -> _Rows:
    rows = [
        (
            "source and target" if each.side == "both" else each.side,
            f"{each.algorithm}, {each.vocab_size:,} tokens, {each.file}",
        )
        for each in description.tokenizers
    ]
    return [*rows, ("normalization", description.saved.settings.tokenizer.normalization_rule_name)]


def _training_rows(description: "Description") -> _Rows:
    training, data = description.training, description.saved.settings.data
    rows = [
        (name, ", ".join(paths))
        for name, paths in (
            ("source", data.source),
            ("target", data.target),
            ("pairs in files", data.pairs),
            ("validation source", data.valid_source),
            ("validation target", data.valid_target),
        )
    ]
    rows.append(("pairs", "" if training.pairs is None else f"{training.pairs:,}"))
    rows.append(("trained", _trained(training)))
    card = description.card.rows
    rows.append(("precision", card.get("precision", card.get("arithmetic", ""))))
    if card.get("these weights", "").startswith("mean of"):  # of `tfm average`
        rows.append(("these weights", card["these weights"]))
    elif training.weights_update:
        rows.append(("these weights", f"after update {training.weights_update}"))
    rows.append(("changed settings", card.get("changed settings", "")))
    for metric, value in training.scores.items():
        if metric in training.signatures:
            rows += [(metric, f"{value:.2f}"), ("", training.signatures[metric])]
        else:
            unit = " nats per target token" if metric == "loss" else ""
            rows.append((metric, f"{value:.4f}{unit}"))
    return rows


def _trained(training: "Training") -> str:
    facts = []
    if training.updates is not None and (training.updates or training.seconds):
        facts.append(console.counted(training.updates, "update"))
    if training.epoch is not None:
        facts.append(f"in epoch {training.epoch}")
    if training.target_tokens:
        facts.append(f"{training.target_tokens:,} target tokens")
    if training.seconds:
        facts.append(console.seconds_text(training.seconds))
    return ", ".join(facts)


def _section(title: str, rows: _Rows) -> Iterator[str]:
    if title:
        yield ""
        yield title
    for name, value in rows:
        if value:
            yield from _row(name, value, indent=2 if title else 0)


def _row(name: str, value: str, *, width: int = _NAME_WIDTH, indent: int = 2) -> Iterator[str]:
    """Yield the lines of a name and its value, which goes on below itself."""
    column = " " * (indent + width)
    first = f"{' ' * indent}{console.one_line(name).ljust(width)}"
    for line in _folded(console.one_line(value), _WIDTH - len(column)):
        yield f"{first}{line}".rstrip()
        first = column


def _folded(text: str, width: int) -> list[str]:
    """Return a text in lines that take at most this many columns of a terminal."""
    if console.display_width(text) <= width:
        return [text]
    if " " not in text and "|" in text:  # a signature of sacreBLEU
        words = re.split(r"(?<=\|)", text)
        lines = [""]
        for word in words:
            if len(lines[-1] + word) > width:
                lines.append("")
            lines[-1] += word
        return lines
    is_plain = console.display_width(text) == len(text)
    # Half as many characters of any width always fit.
    return textwrap.wrap(text, width if is_plain else width // 2, break_on_hyphens=False)


COMMAND = Command(info, InfoOptions, {"Model": (), "Output": (), "Messages": ()})
