"""A sheet: headings, text and drawings below each other in one SVG image of fixed width."""

import re
import unicodedata
from collections.abc import Sequence
from html import escape

from tfm_cli.console import visible
from tfm_cli.pictures.charts import LIGHT, with_light_colors

WIDTH = 800
MARGIN = 32
_FONT = "'Liberation Sans', 'DejaVu Sans', 'Noto Sans', 'Noto Sans CJK SC', sans-serif"
_SYMBOL_STYLE = " style=\"font-family:'DejaVu Sans','Noto Sans Symbols2',sans-serif\""
_NARROWER = 0.85  # share of the characters of that font that fit into a line
_SIZE = re.compile(r"<svg\b[^>]*>")
_TEXT = re.compile(r"<text([^>]*)>([^<]*)</text>")
# Symbols such as ▁, ■, √ and ᵀ: general punctuation, arrows, mathematics, blocks, superscripts.
_SYMBOLS = re.compile("[\u1d2c-\u1d6a\u2027-\u2bff]+")
_REFERENCE = re.compile(r"""(\bid="|url\(#|href="#|aria-labelledby=")""")


class Sheet:
    """An image that grows downward by what is added to it."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._width = float(WIDTH)
        self._y = float(MARGIN)
        self._num_drawings = 0

    def add_text(self, text: str, *, size: int = 14, role: str = "ink", bold: bool = False) -> None:
        """Add a paragraph, broken into lines."""
        weight = ' font-weight="bold"' if bold else ""
        style = symbol_style(text)
        width = (WIDTH - 2 * MARGIN) / size * (_NARROWER if style else 1)
        for line in broken(visible(text), width):
            self._y += size * 1.35
            self._parts.append(
                f'<text x="{MARGIN}" y="{self._y:.1f}" font-size="{size}"{weight} '
                f'fill="{LIGHT[role]}"{style}>{escape(line)}</text>'
            )
        self._y += size * 0.6

    def add_space(self, height: float) -> None:
        """Leave some space."""
        self._y += height

    def add_drawing(self, svg: str) -> None:
        """Add a trusted SVG image."""
        self._num_drawings += 1
        width, height = size_of(svg)
        start = _SIZE.search(svg)
        assert start is not None
        svg = with_light_colors(svg[start.start() :])
        svg = _TEXT.sub(_with_symbol_font, svg)
        svg = _REFERENCE.sub(rf"\1s{self._num_drawings}-", svg)  # ids are unique in an image
        place = f'x="{MARGIN}" y="{self._y:.1f}"'
        self._parts.append(svg.replace("<svg", f"<svg {place}", 1))
        self._width = max(self._width, width + 2 * MARGIN)
        self._y += height + 8

    def add_rows(self, rows: Sequence[Sequence[str]]) -> None:
        """Add a table, whose first row is its head."""
        size = 13
        widths = [max(map(text_width, column)) for column in zip(*rows, strict=True)]
        for number, row in enumerate(rows):
            self._y += size * 1.5
            x = float(MARGIN)
            for cell, width in zip(row, widths, strict=True):
                weight = "" if number else ' font-weight="bold"'
                self._parts.append(
                    f'<text x="{x:.1f}" y="{self._y:.1f}" font-size="{size}"{weight} '
                    f'fill="{LIGHT["ink"]}"{symbol_style(cell)}>{escape(visible(cell))}</text>'
                )
                x += (width + 1.5) * size
            self._width = max(self._width, x + MARGIN)
        self._y += size

    def svg(self, *, title: str, comment: str) -> str:
        """Return the image."""
        width, height = round(self._width), round(self._y + MARGIN)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="{_FONT}" role="img">'
            f"<!-- {comment} --><title>{escape(visible(title))}</title>"
            f'<rect width="{width}" height="{height}" fill="{LIGHT["paper"]}"/>'
            f"{''.join(self._parts)}</svg>\n"
        )


def symbol_style(text: str) -> str:
    """Return the attribute of an SVG text with symbols; nothing for another text.

    The renderer of images draws a text in one font as far as it can, and the one that it finds for
    a symbol has serifs.
    """
    return _SYMBOL_STYLE if _SYMBOLS.search(text) else ""


def _with_symbol_font(match: re.Match[str]) -> str:
    attributes, text = match.groups()
    style = "" if " style=" in attributes else symbol_style(text)
    return f"<text{attributes}{style}>{text}</text>"


def size_of(svg: str) -> tuple[float, float]:
    """Return the width and the height of an SVG image in pixels."""
    start = _SIZE.search(svg)
    if start is None:
        raise ValueError("it is no SVG image")
    sizes = []
    for name, place in (("width", 2), ("height", 3)):
        given = re.search(rf'\s{name}="([0-9.]+)(?:px)?"', start[0])
        box = re.search(r'viewBox="([^"]*)"', start[0])
        if given is None and box is None:
            raise ValueError(f"the SVG image has no {name}")
        sizes.append(float(given[1] if given else box[1].split()[place]))  # type: ignore[index]
    return sizes[0], sizes[1]


def text_width(text: str) -> float:
    """Return an estimate of the width of a text, as a multiple of the font's size."""
    return sum(_width(character) for character in text)


def _width(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.0
    return 0.3 if character in " .,;:'!|iljtfI()[]" else 0.56


def broken(text: str, width: float) -> list[str]:
    """Return a text in lines of at most `width`, broken at spaces or within longer words."""
    lines = [""]
    for word in text.split(" "):
        separator = " " if lines[-1] else ""
        if text_width(lines[-1] + separator + word) <= width:
            lines[-1] += separator + word
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and text_width(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines
