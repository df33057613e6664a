"""Tokens as rows of boxes with their ids."""

from collections.abc import Sequence
from html import escape

from tfm_cli.console import one_line
from tfm_cli.pictures.charts import FONT, color
from tfm_cli.pictures.explanation import Tokens
from tfm_cli.pictures.page import Widget
from tfm_cli.pictures.search_tree import shortened
from tfm_cli.pictures.sheet import text_width

_WIDTH = 720  # pixels
_SIZE = 14
_HEIGHT = 40  # of a box
_GAP = 4


def token_rows(rows: Sequence[tuple[str, Tokens]], caption: str = "") -> Widget:
    """Return rows of tokens, each below its title, in the direction of their script."""
    markup = "".join(
        f'<div class="tokens"><span>{title}</span><ul dir="auto" aria-label="{title}">'
        + "".join(
            f"<li><bdi>{escape(one_line(piece))}</bdi><small>{number}</small></li>"
            for piece, number in zip(tokens.pieces, tokens.ids, strict=True)
        )
        + "</ul></div>"
        for title, tokens in rows
    )
    return Widget(markup, svg=_image(rows), caption=caption)


def _image(rows: Sequence[tuple[str, Tokens]]) -> str:
    """Return the same as an SVG image; a long row continues in the next line."""
    parts: list[str] = []
    y = 0.0
    for title, tokens in rows:
        parts.append(
            f'<text x="0" y="{y + 13}" font-size="12" fill="{color("muted")}">{title}</text>'
        )
        y += 20
        x = 0.0
        for piece, number in zip(tokens.pieces, tokens.ids, strict=True):
            text = shortened(piece, 20)
            width = max(_SIZE * text_width(text), 11 * text_width(str(number))) + 12
            if x and x + width > _WIDTH:
                x, y = 0.0, y + _HEIGHT + _GAP
            parts.append(_box(x, y, width, text, number))
            x += width + _GAP
        y += _HEIGHT + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y:.0f}" '
        f'viewBox="0 0 {_WIDTH} {y:.0f}" font-family="{FONT}">{"".join(parts)}</svg>'
    )


def _box(x: float, y: float, width: float, text: str, number: int) -> str:
    middle = x + width / 2
    return (
        f'<rect x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{width - 1:.1f}" height="{_HEIGHT - 1}" '
        f'rx="4" fill="{color("panel")}" stroke="{color("line")}"/>'
        f'<text x="{middle:.1f}" y="{y + 17:.1f}" font-size="{_SIZE}" text-anchor="middle" '
        f'fill="{color("ink")}">{escape(text)}</text>'
        f'<text x="{middle:.1f}" y="{y + 33:.1f}" font-size="11" text-anchor="middle" '
        f'fill="{color("muted")}">{number}</text>'
    )
