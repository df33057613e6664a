"""The text form of an explanation: tokens, and one attention map with the sum of each row."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tfm_cli.console import display_width, one_line
from tfm_cli.pictures.explanation import Array, Attention, Explanation, Tokens

MAX_ROWS = 64
_MIN_WIDTH = 40
_LABEL_WIDTH = 16
_LEFT_TO_RIGHT = "\u200e"  # keeps the columns in order beside right-to-left text
_RIGHT_TO_LEFT = ("R", "AL", "AN")

# Background and foreground of xterm's 256 colors, from the smallest to the largest weight.
_COLORS = (
    (17, 255), (18, 255), (19, 255), (25, 255), (31, 255), (30, 255), (36, 16), (42, 16), (78, 16),
    (148, 16), (226, 16),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """An attention map with the names of its rows and columns.

    Attributes:
        title: of the map.
        weights: (rows, columns).
        rows, columns: their tokens.
        masked: True where nothing may be attended to, (rows, columns).
    """

    title: str
    weights: Array
    rows: Tokens
    columns: Tokens
    masked: np.ndarray


def explanation_text(explanation: Explanation, shown: Map, *, width: int, color: bool) -> str:
    """Return the text form of an explanation.

    Args:
        explanation: the numbers.
        shown: its attention map, see `attention_map`.
        width: columns of the terminal.
        color: show weights as colored blocks as well as digits.
    """
    width = max(width, _MIN_WIDTH)
    forcing = explanation.teacher_forcing
    own = "given" if forcing.is_given else "the model's own"
    lines = [
        f"source  {_safe(explanation.sentence)}",
        f"target  {_safe(explanation.target_text)}",
        "",
        f"source: {len(explanation.source)} tokens with their ids",
        *_token_rows(explanation.source, width),
        "",
        f"target ({own}): {len(explanation.target)} tokens with their ids and probabilities in %; "
        f"loss {forcing.total_loss:.4f}, perplexity {forcing.perplexity:.3f}",
        *_token_rows(explanation.target, width, forcing.probability),
        "",
        *_map_lines(shown, width, color=color),
        *_search_lines(explanation),
        *_contrast_lines(explanation),
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def attention_map(explanation: Explanation, kind: str, layer: int | None, head: int | None) -> Map:
    """Return one attention map.

    Args:
        explanation: the numbers.
        kind: `self` for the encoder's, `masked` for the decoder's, `cross` for attention of the
            decoder to the encoder.
        layer: from 0; None for the first, or in `cross` for the one that aligns best.
        head: from 0; None for the mean of all heads.
    """
    inputs, source = explanation.target_input, explanation.source
    if kind == "cross":
        best = explanation.alignment_layer if layer is None else layer
        attention = explanation.cross_attention[best]
        title, rows, columns = "encoder-decoder attention", explanation.target, source
        what = "a row is the token that is written"
    elif kind == "masked":
        attention = explanation.masked_self_attention[layer or 0]
        title, rows, columns = "masked self-attention of the decoder", inputs, inputs
        what = "a row is the token that is read"
    else:
        attention = explanation.self_attention[layer or 0]
        title, rows, columns = "self-attention of the encoder", source, source
        what = "a row is a source token"
    return Map(
        title=f"{title}, layer {attention.layer + 1}, {_heads(attention, head)} ({what})",
        weights=attention.weights.mean(axis=0) if head is None else attention.weights[head],
        rows=rows,
        columns=columns,
        masked=np.isneginf(attention.scores[0]),
    )


def _heads(attention: Attention, head: int | None) -> str:
    count = len(attention.weights)
    return f"mean of {count} heads" if head is None else f"head {head + 1} of {count}"


def _map_lines(shown: Map, width: int, *, color: bool) -> Iterator[str]:
    """Yield the lines of a map: weights in percent, the sum of each row and its largest weight."""
    rows, columns = shown.weights.shape
    label, room = _LABEL_WIDTH, width - 2 * _LABEL_WIDTH - 8
    cell = 4 if 4 * columns <= room else max(3, len(str(columns)) + 1)
    seen_rows, seen_columns = min(rows, MAX_ROWS), max(1, min(columns, room // cell))
    legend = "weights in %, · below 0.5"
    if shown.masked.any():
        legend += ", - masked and exactly 0"
    yield f"{shown.title}"
    yield f"{legend}; Σ is the sum of the row, followed by its largest weight"
    head = "".join(str(column + 1).rjust(cell) for column in range(seen_columns))
    yield f"{' ' * label}{head}      Σ"
    for row in range(seen_rows):
        weights = shown.weights[row]
        cells = "".join(
            _cell(float(weights[column]), bool(shown.masked[row, column]), cell, color=color)
            for column in range(seen_columns)
        )
        largest = int(weights.argmax())
        name = _label(f"{row + 1:>3} ", shown.rows.pieces[row], label)
        best = _isolated(_cut(_safe(shown.columns.pieces[largest]), _LABEL_WIDTH - 4))
        yield f"{name}{cells} {float(weights.sum()):6.4f} {largest + 1:>3} {best}"
    if seen_rows < rows or seen_columns < columns:
        yield (
            f"{seen_rows} of {rows} rows and {seen_columns} of {columns} columns are shown; "
            "`-o page.html` and `--format json` have all of them"
        )


def _cell(weight: float, is_masked: bool, width: int, *, color: bool) -> str:
    """Return a weight in percent, on a colored block if that is wanted."""
    if is_masked:
        return "-".rjust(width)
    percent = f"{100 * weight:.0f}"
    text = ("·" if percent == "0" else percent).rjust(width)
    if not color or percent == "0":
        return text
    background, foreground = _COLORS[min(len(_COLORS) - 1, int(weight * len(_COLORS)))]
    return f"\x1b[48;5;{background};38;5;{foreground}m{text}\x1b[0m"


def _search_lines(explanation: Explanation) -> Iterator[str]:
    """Yield the translations of both searches if they differ."""
    comparison = explanation.search.comparison
    if not comparison.agree:
        yield ""
        for name, found in (("greedy", comparison.greedy), ("beam", comparison.beam)):
            words = f"{name} search, log-probability {found.log_probability:.3f}"
            yield f"{words}, score {found.score:.3f}: {_safe(found.text)}"


def _contrast_lines(explanation: Explanation) -> Iterator[str]:
    """Yield which tokens carry the difference between two sentences."""
    made = explanation.contrast
    if made is None:
        return
    here, there = map(_safe, made.tokens.pieces)
    yield ""
    yield f"contrast  {_safe(made.sentence)}"
    yield (
        f"after `{_safe(made.prefix)}`: {here} here, {there} there; their log-odds are "
        f"{made.log_odds:.3f} here and {made.other_log_odds:.3f} there"
    )
    yield "share of the way between them, in %, when one vector of the encoder is replaced"
    yield "(in: before the first layer, then after each layer; · below 0.5):"
    names = ["in", *map(str, range(1, len(made.shares)))]
    label = 2 * _LABEL_WIDTH - 4
    yield " " * label + "".join(f"{name:>5}" for name in names)
    pairs = zip(explanation.source.pieces, made.source.pieces, made.shares.T, strict=True)
    for position, (one, other, shares) in enumerate(pairs, start=1):
        piece = one if one == other else f"{one} → {other}"
        cells = "".join(f"{_percent(share):>5}" for share in shares.tolist())
        yield f"{_label(f'{position:>3} ', piece, label)}{cells}"


def _percent(share: float) -> str:
    percent = round(100 * share)
    return f"{percent}" if percent else "·"


def _token_rows(tokens: Tokens, width: int, probability: Array | None = None) -> Iterator[str]:
    """Yield tables of numbers, pieces and ids, each as wide as the terminal."""
    columns = []
    for index, (piece, token) in enumerate(zip(tokens.pieces, tokens.ids, strict=True)):
        cells = [str(index + 1), _cut(_safe(piece), _LABEL_WIDTH - 2), str(token)]
        if probability is not None:
            cells.append(f"{100 * float(probability[index]):.1f}")
        size = max(map(display_width, cells)) + 2
        columns.append((size, [_padded(cell, size) for cell in cells]))
    row: list[list[str]] = []
    used = 0
    for size, cells in columns:
        if row and used + size > width:
            yield from _joined(row)
            row, used = [], 0
        row.append(cells)
        used += size
    yield from _joined(row)


def _joined(columns: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in zip(*columns, strict=True):
        yield "".join(cells)


def _padded(text: str, width: int) -> str:
    return " " * (width - display_width(text)) + _isolated(text)


def _label(number: str, piece: str, width: int) -> str:
    """Return a number and a piece, padded to a width."""
    text = _cut(_safe(piece), width - len(number) - 1)
    return f"{number}{_isolated(text)}{' ' * (width - len(number) - display_width(text))}"


def _isolated(text: str) -> str:
    """Return text between marks if it is right-to-left, so that its neighbors stay in place."""
    if any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in text):
        return f"{_LEFT_TO_RIGHT}{text}{_LEFT_TO_RIGHT}"
    return text


_INVISIBLE = re.compile("[\u200b-\u200f\u2028\u2029\u2060-\u2064\ufeff]")


def _safe(text: str) -> str:
    """Return text of one line without control characters and invisible marks."""
    return _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", one_line(text))


def _cut(text: str, width: int) -> str:
    """Return the beginning of a text that is at most this wide, with `…` if it is longer."""
    if display_width(text) <= width:
        return text
    kept, used = "", 0
    for character in text:
        used += display_width(character)
        if used > width - 1:
            break
        kept += character
    return f"{kept}…"
