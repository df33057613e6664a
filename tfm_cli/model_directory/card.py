"""The model card, `README.md`: what it records, read from untrusted Markdown."""

import html
import re
from dataclasses import dataclass, field
from pathlib import Path

from tfm_cli.console import one_line
from tfm_cli.files.untrusted import read_regular

MAX_CARD_BYTES = 1 << 20
_MAX_VALUE_LENGTH = 2000
_FENCE = "---\n"  # before and after the metadata of a card on the Hugging Face Hub
_BEGINNINGS = ("# A translation model\n", "# An imported translation model\n")
_CELL_ENDS = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, slots=True)
class Card:
    """The facts in a model card.

    Attributes:
        languages: of the source, then of the target, as the Hugging Face Hub names them.
        license: its identifier on the Hub; empty if it is not given.
        rows: the values of the first table by their names, such as `pairs` and `trained`.
        signatures: sacreBLEU's signatures of the scores, by metric.
    """

    languages: tuple[str, ...] = ()
    license: str = ""
    rows: dict[str, str] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)


def read_card(path: Path) -> Card | None:
    """Return the facts in a model card that tfm wrote; None if there is no such card."""
    try:
        text = read_regular(path, max_bytes=MAX_CARD_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None
    metadata, body = split_metadata(text)
    if not body.startswith(_BEGINNINGS) or "\n| made by | tfm " not in body:
        return None
    rows: dict[str, str] = {}
    signatures: dict[str, str] = {}
    for line in body.split("\n"):
        cells = [_text(cell) for cell in _CELL_ENDS.split(line)[1:-1]]
        if len(cells) == 2 and cells[0]:
            rows.setdefault(cells[0], cells[1])
        elif len(cells) == 3:
            signatures.setdefault(cells[0], cells[2])
    languages, name = _hub_metadata(metadata)
    return Card(languages, name, rows, signatures)


def split_metadata(text: str) -> tuple[str, str]:
    """Return the metadata in YAML at the beginning of a card, and the Markdown after it."""
    if text.startswith(_FENCE):
        metadata, end, body = text[len(_FENCE) :].partition(f"\n{_FENCE}")
        if end:
            return metadata, body.lstrip("\n")
    return "", text


def _hub_metadata(metadata: str) -> tuple[tuple[str, ...], str]:
    """Return the languages and the license in metadata as tfm writes it, not in any YAML."""
    languages: list[str] = []
    name, key = "", ""
    for line in metadata.split("\n"):
        if line.startswith("- ") and key == "language":
            languages.append(_text(line[2:].strip().strip('"')))
        elif ":" in line:
            key, _, value = line.partition(":")
            if key == "license":
                name = _text(value.strip().strip('"'))
    return tuple(languages), name


def _text(cell: str) -> str:
    """Return the text that a cell of a table shows, in one line."""
    shown = html.unescape(cell.strip().strip("`").replace("\\|", "|"))
    return one_line(shown)[:_MAX_VALUE_LENGTH]
