"""Heat maps: matrices of numbers as colored cells, in the way that all pictures of a page share.

A cell of a positive number is blue, of a negative one orange, and the stronger the color the
greater the number; nothing depends on color alone, since each cell has its number on hover and on
focus.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tfm_cli.pictures.charts import Json, color, named, plain

_MIN_LABEL = 9  # pixels of a cell below which its label is left out
_MIN_BORDERED = 5  # pixels of a cell with a border
_MIN_NUMBERED = 24  # pixels of a cell with a number in it
_STRONG = 0.4  # weight from which the paper's color is more legible than the ink
GAMMA = 0.6  # exponent of the colors of weights, so that small ones are seen


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a heat map.

    Attributes:
        name: of the axis in the data.
        title: of the axis; "" for none.
        meaning: its name in the numbers of a cell.
        texts: label of each element, for tokens; otherwise there are no labels.
        numbered: True labels elements by their numbers.
        first: number of the first element.
        size: pixels of an element.
        hidden: True leaves out labels and title, beside a map that has them.
    """

    name: str
    title: str = ""
    meaning: str = ""
    texts: Sequence[str] = ()
    numbered: bool = False
    first: int = 0
    size: float = 20.0
    hidden: bool = False

    def encoding(self, *, is_row: bool) -> Json:
        """Return the encoding of a row or a column."""
        if self.hidden:
            return {"field": self.name, "type": "ordinal", "axis": None}
        axis: Json = {"title": self.title or None, "grid": False, "domain": False, "ticks": False}
        if self.texts and self.size >= _MIN_LABEL:
            labels = json.dumps([plain(text) for text in self.texts])  # U+2028 escaped too
            axis |= {
                "labelExpr": f"{labels}[datum.value - {self.first}]",
                "labelLimit": 110,
                "labelColor": color("ink"),
                "labelOverlap": False,
            }
            if self.size < 13:
                axis["labelFontSize"] = self.size - 1
        elif self.numbered:
            axis["labelOverlap"] = True
        else:
            axis["labels"] = False
        if not is_row:
            axis |= {"orient": "top"}
            axis |= {"labelAngle": -60 if self.texts else 0}
        return {"field": self.name, "type": "ordinal", "axis": axis}

    def tooltip(self) -> Json:
        """Return its part of the numbers of a cell."""
        field = f"{self.name}_text" if self.texts else self.name
        return {"field": field, "title": self.meaning or self.title or self.name}


@dataclass(frozen=True, kw_only=True)
class HeatMapStyle:
    """The numbers of a heat map.

    Attributes:
        title: above the map.
        value: name of the number in a cell.
        formula: expression of the number, in which `datum.value` is the one in the data; "" for
            that one itself.
        highest: number of the strongest color; None for the greatest of the data.
        sums: True writes the sum of each row behind it.
        marks_infinity: True writes −∞ into cells whose number is not finite.
        has_numbers: True writes numbers into cells that are large enough.
    """

    title: str = ""
    value: str = "value"
    formula: str = ""
    highest: float | None = None
    sums: bool = False
    marks_infinity: bool = False
    has_numbers: bool = False


def heat_map(data: str, rows: Axis, columns: Axis, style: HeatMapStyle) -> Json:
    """Return the specification of a heat map.

    Args:
        data: name of the data, one row a cell.
        rows, columns: the axes.
        style: the numbers.
    """
    place = {"x": columns.encoding(is_row=False), "y": rows.encoding(is_row=True)}
    has_numbers = style.has_numbers and min(rows.size, columns.size) >= _MIN_NUMBERED
    is_bounded = style.highest is not None
    scale: Json = {"zero": True, "range": [0, 0.7 if has_numbers and not is_bounded else 1]}
    if is_bounded:
        scale |= {"domain": [0, style.highest], "type": "pow", "exponent": GAMMA}
    border = 0.5 if columns.size >= _MIN_BORDERED else 0
    number = {"field": "shown", "title": style.value, "format": ".6f"}
    cells: Json = {
        "mark": {"type": "rect", "stroke": color("grid"), "strokeWidth": border},
        "encoding": {
            **place,
            "fill": {
                "condition": {"test": "datum.shown < 0", "value": color("series-2")},
                "value": color("series-1"),
            },
            "fillOpacity": {
                "field": "size", "type": "quantitative", "scale": scale, "legend": None,
            },
            "tooltip": [rows.tooltip(), columns.tooltip(), number],
        },
    }  # fmt: skip
    layers = [cells]
    if has_numbers:
        layers.append(_numbers(place, columns.size, is_bounded=is_bounded))
    if style.marks_infinity:
        layers.append(_infinity(place, min(11.0, 0.5 * columns.size)))
    if style.sums:
        layers.append(_sums(rows))
    return {
        "data": named(data),
        "transform": [
            {"calculate": style.formula or "datum.value", "as": "shown"},
            {"calculate": "isValid(datum.value) ? abs(datum.shown) : 0", "as": "size"},
        ],
        "title": {"text": style.title, "fontWeight": "normal"},
        "width": {"step": columns.size},
        "height": {"step": rows.size},
        "layer": layers,
    }


def _numbers(place: Json, size: float, *, is_bounded: bool) -> Json:
    """Return the numbers in the cells; those of strong color are in the color of the paper.

    Numbers without a bound, such as −14.8, have one decimal, so that they fit.
    """
    ink: Json = {"value": color("ink")}
    form = ".2f" if is_bounded else ".1f"
    if is_bounded:
        ink["condition"] = {"test": f"datum.size > {_STRONG}", "value": color("paper")}
    return {
        "transform": [
            {"filter": "isValid(datum.value)"},
            {
                "calculate": f"datum.shown === 0 ? '0' : format(datum.shown, '{form}')",
                "as": "digits",
            },
        ],
        "mark": {"type": "text", "fontSize": min(11.0, 0.38 * size)},
        "encoding": {**place, "text": {"field": "digits"}, "color": ink},
    }


def _infinity(place: Json, size: float) -> Json:
    return {
        "transform": [{"filter": "!isValid(datum.value)"}],
        "mark": {"type": "text", "text": "−∞", "fontSize": size, "color": color("muted")},
        "encoding": place,
    }


def _sums(rows: Axis) -> Json:
    return {
        "transform": [{"aggregate": [{"op": "sum", "field": "value", "as": "sum"}],
                       "groupby": [rows.name]},
                      {"calculate": "'Σ ' + format(datum.sum, '.3f')", "as": "label"}],
        "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 11, "color": color("muted")},
        "encoding": {
            "x": {"value": "width"},
            "y": {"field": rows.name, "type": "ordinal"},
            "text": {"field": "label"},
        },
    }  # fmt: skip


def beside(*maps: Json, shares: bool, spacing: int = 14) -> Json:
    """Return heat maps side by side; if they share their colors, equal ones mean equal numbers."""
    resolved = "shared" if shares else "independent"
    return {
        "hconcat": list(maps),
        "spacing": spacing,
        "resolve": {"scale": {"fillOpacity": resolved}},
    }
