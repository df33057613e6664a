"""Attention as lines: small maps of all layers and heads to pick from, and lines from a word."""

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfm_cli.console import one_line
from tfm_cli.pictures.arrays import Floats
from tfm_cli.pictures.charts import FONT, LIGHT, color
from tfm_cli.pictures.heat_maps import GAMMA
from tfm_cli.pictures.page import Widget
from tfm_cli.pictures.search_tree import shortened

_WIDTH, _ROW = 460, 24  # pixels of the lines
_FROM, _TO = 148, 282  # where the words of the queries end and those of the keys begin
_SIZE = 13
_MAP = 56  # pixels of a small map


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Attention of all layers and heads of one kind.

    Attributes:
        name: of the weights in the data of the page.
        weights: (L, H, Q, K).
        group: the charts that follow the picker.
        queries, keys: the pieces.
        layer, head, query: picked at first.
        title: what attends to what.
    """

    name: str
    weights: Floats
    group: str
    queries: Sequence[str]
    keys: Sequence[str]
    layer: int
    head: int
    query: int
    title: str


def attention_picker(lines: Lines, caption: str) -> Widget:
    """Return the small maps of all layers and heads, one of them picked."""
    layers, heads, _, _ = lines.weights.values.shape
    rows = []
    for layer in range(layers):
        buttons = "".join(_button(lines, layer, head) for head in range(heads))
        rows.append(f'<div class="layer"><span>layer {layer + 1}</span>{buttons}</div>')
    markup = (
        f'<div class="heads" role="radiogroup" data-name="{lines.name}" '
        f'data-group="{lines.group}" aria-label="Layer and head: {escape(lines.title)}">'
        f"{''.join(rows)}</div>"
    )
    return Widget(markup, _script(), _small_maps(lines), caption)


def attention_lines(lines: Lines, caption: str) -> Widget:
    """Return the words with lines from the picked one to those that it attends to."""
    markup = (
        f'<div class="words" data-name="{lines.name}" data-group="{lines.group}" '
        f'role="group" aria-label="Lines: {escape(lines.title)}">{_lines_svg(lines)}'
        f'<p role="status"></p></div>'
    )
    return Widget(markup, _script(), _lines_svg(lines), caption)


def _script() -> str:
    return Path(__file__).with_name("attention_lines.js").read_text("utf-8")


def _button(lines: Lines, layer: int, head: int) -> str:
    is_picked = (layer, head) == (lines.layer, lines.head)
    _, _, queries, keys = lines.weights.values.shape
    return (
        f'<button type="button" role="radio" aria-checked="{str(is_picked).lower()}" '
        f'tabindex="{0 if is_picked else -1}" data-layer="{layer}" data-head="{head}" '
        f'aria-label="layer {layer + 1}, head {head + 1}"><canvas width="{keys}" '
        f'height="{queries}" aria-hidden="true"></canvas><small>{head + 1}</small></button>'
    )


def _lines_svg(lines: Lines) -> str:
    """Return the words and the lines of the picked head and word."""
    weights = lines.weights.values[lines.layer, lines.head, lines.query]  # (K,)
    height = _ROW * max(len(lines.queries), len(lines.keys)) + 8
    queries = "".join(
        _word(piece, place, _FROM, is_query=True, is_picked=place == lines.query)
        for place, piece in enumerate(lines.queries)
    )
    keys = "".join(
        _word(piece, place, _TO, is_query=False) for place, piece in enumerate(lines.keys)
    )
    paths = "".join(_path(lines.query, place, float(w)) for place, w in enumerate(weights))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="{FONT}" font-size="{_SIZE}">'
        f'<g class="lines" fill="none" stroke="{color("series-1")}">{paths}</g>{queries}{keys}'
        f'<g class="numbers" fill="{color("muted")}" text-anchor="end">'
        f"{''.join(_number(place, float(w)) for place, w in enumerate(weights))}</g></svg>"
    )


def _path(query: int, key: int, weight: float) -> str:
    start, end = _middle(query), _middle(key)
    bend = (_TO - _FROM) / 2
    return (
        f'<path d="M{_FROM} {start}C{_FROM + bend} {start} {_TO - bend} {end} {_TO} {end}" '
        f'stroke-width="{8 * weight:.3f}" stroke-opacity="{0.25 + 0.75 * weight:.4f}"/>'
    )


def _middle(place: int) -> float:
    return 4 + _ROW * (place + 0.5)


def _number(place: int, weight: float) -> str:
    text = f"{weight:.3f}" if weight >= 0.0005 else ""
    return f'<text x="{_WIDTH - 6}" y="{_middle(place) + 4.5}">{text}</text>'


def _word(piece: str, place: int, x: int, *, is_query: bool, is_picked: bool = False) -> str:
    """Return a word; those of the queries are buttons."""
    width = _FROM - 8 if is_query else 128
    left = x - width if is_query else x
    text = escape(shortened(piece, (width - 8) / _SIZE))
    place_x, anchor = (x - 5, "end") if is_query else (x + 5, "start")
    fill = color("mark") if is_picked else "transparent"
    box = (
        f'<rect x="{left}" y="{_middle(place) - 11}" width="{width}" height="22" rx="4" '
        f'fill="{fill}"/>'
    )
    label = (
        f'<text x="{place_x}" y="{_middle(place) + 4.5}" text-anchor="{anchor}" '
        f'fill="{color("ink")}">{text}</text>'
    )
    if not is_query:
        return f"<g>{label}</g>"
    return (
        f'<g class="word" role="button" tabindex="{0 if is_picked else -1}" '
        f'aria-pressed="{str(is_picked).lower()}" data-place="{place}" '
        f'aria-label="{escape(one_line(piece))}">{box}{label}</g>'
    )


def _small_maps(lines: Lines) -> str:
    """Return the small maps of all layers and heads as an SVG image."""
    layers, heads, _, _ = lines.weights.values.shape
    step = _MAP + 20
    width, height = 64 + step * heads, step * layers + 4
    parts = []
    for layer in range(layers):
        y = step * layer
        parts.append(
            f'<text x="0" y="{y + _MAP / 2 + 4}" fill="{color("muted")}">layer {layer + 1}</text>'
        )
        for head in range(heads):
            x = 60 + step * head
            image = bitmap(lines.weights.values[layer, head])
            is_picked = (layer, head) == (lines.layer, lines.head)
            stroke, thick = ("accent", 3) if is_picked else ("grid", 1)
            parts.append(
                f'<image x="{x + 2}" y="{y + 2}" width="{_MAP}" height="{_MAP}" '
                f'preserveAspectRatio="none" href="{image}"/>'
                f'<rect x="{x + 2}" y="{y + 2}" width="{_MAP}" height="{_MAP}" fill="none" '
                f'stroke="{color(stroke)}" stroke-width="{thick}"/>'
                f'<text x="{x + 2 + _MAP / 2}" y="{y + _MAP + 14}" text-anchor="middle" '
                f'fill="{color("muted")}">{head + 1}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="{FONT}" font-size="11">'
        f"{''.join(parts)}</svg>"
    )


def bitmap(values: NDArray[np.float32]) -> str:
    """Return numbers from 0 to 1, (rows, columns), as the address of a PNG image."""
    times = max(1, 112 // max(values.shape))
    large = np.kron(np.clip(values, 0, 1) ** GAMMA, np.ones((times, times)))  # sharp in any viewer
    ends = [np.array(list(bytes.fromhex(LIGHT[role][1:]))) for role in ("paper", "series-1")]
    pixels = ends[0] + large[:, :, None] * (ends[1] - ends[0])  # (rows, columns, 3)
    lines = np.insert(pixels.round().astype(np.uint8).reshape(len(large), -1), 0, 0, axis=1)
    header = struct.pack(">IIBBBBB", large.shape[1], large.shape[0], 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
