"""Charts: the library that draws them, their colors, and the data that they share.

Vega-Lite draws the charts: in a page by its JavaScript library, in a file by the same library
inside `vl_convert`, which needs neither a browser nor a network. Altair builds the specifications.
Both belong to the extra `pictures`; `load` imports them when a picture is written.

A color in a chart is a role, such as `color("series-1")`. In a page it is a CSS variable, whose
value differs between the light and the dark scheme; in a file it is the color of the light scheme.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tfm_cli.console import visible
from tfm_cli.errors import ResourceError, install_extra

if TYPE_CHECKING:
    import numpy as np

Json = dict[str, Any]
Value = str | float | bool | None

NUM_SERIES = 8  # colors, and dashes, that are told apart
SIGNIFICANT_DIGITS = 8  # of a number in a page
WIDTH = 720  # pixels of a chart in a file, if it takes the width of its container

# WCAG AA: text has a contrast of at least 4.5 with the paper, lines and marks one of at least 3.
LIGHT = {
    "paper": "#ffffff",
    "panel": "#f4f5f7",
    "ink": "#1a1d21",
    "muted": "#555c66",
    "line": "#7d8590",
    "grid": "#e3e6ea",
    "accent": "#0b5cad",
    "mark": "#ffe08a",
    "series-1": "#0b5cad",
    "series-2": "#c2410c",
    "series-3": "#047857",
    "series-4": "#8b2fa8",
    "series-5": "#806300",
    "series-6": "#be185d",
    "series-7": "#0e7490",
    "series-8": "#525a66",
}
DARK = {
    "paper": "#14171b",
    "panel": "#1e2329",
    "ink": "#eceff3",
    "muted": "#aeb6c1",
    "line": "#727b87",
    "grid": "#2d343c",
    "accent": "#7cbcff",
    "mark": "#6b5510",
    "series-1": "#7cbcff",
    "series-2": "#ff9d6e",
    "series-3": "#55d3a8",
    "series-4": "#d9a1f2",
    "series-5": "#e2c255",
    "series-6": "#f994bc",
    "series-7": "#63d2e6",
    "series-8": "#b6bdc7",
}
# Series differ by their dashes as well, so that nothing depends on color.
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (14, 4), (5, 2, 1, 2, 1, 2), (4, 6), (1, 4))

_VARIABLE = re.compile(r"var\(--([a-z0-9-]+)\)")


def color(role: str) -> str:
    """Return the color of a role in `LIGHT` and `DARK`, for charts, SVG and CSS."""
    if role not in LIGHT:
        raise KeyError(role)
    return f"var(--{role})"


def with_light_colors(markup: str) -> str:
    """Return SVG or JSON with the colors of the light scheme in place of CSS variables."""
    return _VARIABLE.sub(lambda match: LIGHT.get(match[1], match[0]), markup)


class Libraries(NamedTuple):
    """The modules of the extra `pictures`, and the version of Vega-Lite that they share."""

    altair: Any
    vl_convert: Any
    vega_lite: str


def load() -> Libraries:
    """Import the libraries that draw charts.

    Raises:
        ResourceError: they are not installed.
    """
    try:
        import altair
        import vl_convert
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("altair", "vl_convert"):
            raise
        raise ResourceError(
            f"pictures need `{error.name}`, which is not installed",
            hint=install_extra("pictures"),
        ) from error
    expected = altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2]
    known = [str(version).split(".") for version in vl_convert.get_vegalite_versions()]
    same = [version for version in known if version[0] == expected[0]] or known
    version = expected if expected in known else max(same, key=lambda each: [int(n) for n in each])
    return Libraries(altair, vl_convert, ".".join(version))


# Data: its numbers are in a page once, and charts refer to it by name.


@dataclass(frozen=True)
class Columns:
    """A table by columns of equal length."""

    columns: Mapping[str, Sequence[Value]]

    def to_json(self) -> Json:
        """Return the form that a page contains."""
        return {"columns": {name: _plain_list(column) for name, column in self.columns.items()}}

    def rows(self) -> Iterator[dict[str, Value]]:
        """Yield the rows, as charts take them."""
        columns = self.to_json()["columns"]
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


@dataclass(frozen=True)
class Grid:
    """An array with named axes, such as the attention weights of all layers and heads.

    A row of the table that charts see has the label of each axis, and the number as `value`.

    Attributes:
        values: the array.
        axes: the name of each axis, in order, with its labels; the number of labels is the length
            of the axis.
        value: the name of the number.
    """

    values: "np.ndarray[Any, Any]"
    axes: Mapping[str, Sequence[Value]]
    value: str = "value"

    def __post_init__(self) -> None:
        lengths = tuple(len(labels) for labels in self.axes.values())
        if self.values.shape != lengths:
            raise ValueError(f"the array has shape {self.values.shape}, its labels {lengths}")

    def to_json(self) -> Json:
        """Return the form that a page contains."""
        return {
            "axes": {name: _plain_list(labels) for name, labels in self.axes.items()},
            "value": self.value,
            "values": _plain_list(self.values.ravel().tolist()),
        }

    def rows(self) -> Iterator[dict[str, Value]]:
        """Yield the rows, as charts take them."""
        content = self.to_json()
        labels = itertools.product(*content["axes"].values())
        for row, value in zip(labels, content["values"], strict=True):
            yield {**dict(zip(self.axes, row, strict=True)), self.value: value}


class Data(Protocol):
    """Numbers of a page: `Columns`, `Grid`, or the arrays of `arrays`."""

    def to_json(self) -> Json:
        """Return the form that a page contains."""

    def rows(self) -> Iterator[dict[str, Value]]:
        """Yield the rows, as charts take them."""


def _plain_list(values: Iterable[Any]) -> list[Value]:
    return [plain(value) for value in values]


def plain(value: Any) -> Any:
    """Return a value as JSON has it: rounded, null for what is not finite, text made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    number = float(value)
    if not math.isfinite(number):
        return None
    rounded = float(f"{number:.{SIGNIFICANT_DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def named(name: str) -> Json:
    """Return the reference of a chart to the data of its page."""
    return {"name": name}


def names_of_data(spec: Any) -> set[str]:
    """Return the names of the data to which a specification refers."""
    if isinstance(spec, list):
        return set().union(*map(names_of_data, spec))
    if not isinstance(spec, dict):
        return set()
    data = spec.get("data")
    found = {data["name"]} if isinstance(data, dict) and set(data) == {"name"} else set()
    return found.union(*(names_of_data(value) for value in spec.values()))


# Specifications.


def specification(chart: Any) -> Json:
    """Return the specification of an Altair chart, or of a dictionary, with the house's style."""
    spec = dict(chart) if isinstance(chart, dict) else chart.to_dict(validate=False)
    spec.pop("$schema", None)
    spec["config"] = _merged(_CONFIG, spec.get("config", {}))
    if spec.get("width") == "container":
        spec.setdefault("autosize", {"type": "fit-x", "contains": "padding"})
    return {name: _with_visible_text(each) for name, each in spec.items()}


def _with_visible_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {visible(name): _with_visible_text(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_visible_text(each) for each in value]
    return visible(value) if isinstance(value, str) else value


def svg(spec: Json, data: Mapping[str, Data]) -> str:
    """Return a chart as SVG in the light scheme.

    Args:
        spec: the specification.
        data: the data to which it may refer, by name.
    """
    libraries = load()
    datasets = {name: list(data[name].rows()) for name in sorted(names_of_data(spec))}
    content = json.loads(with_light_colors(json.dumps(spec)))
    if content.get("width") == "container":
        content["width"] = WIDTH
    return str(
        libraries.vl_convert.vegalite_to_svg(
            content | {"datasets": spec.get("datasets", {}) | datasets},
            vl_version=libraries.vega_lite,
            allowed_base_urls=[],
        )
    )


def _merged(default: Json, own: Json) -> Json:
    merged = dict(default)
    for name, value in own.items():
        inner = merged.get(name)
        is_table = isinstance(inner, dict) and isinstance(value, dict)
        merged[name] = _merged(dict(inner or {}), value) if is_table else value
    return merged


FONT = "system-ui, 'Liberation Sans', 'DejaVu Sans', 'Noto Sans', sans-serif"
_CONFIG: Json = {
    "aria": False,  # the chart as a whole has a text alternative
    "background": None,
    "font": FONT,
    "axis": {
        "labelColor": color("muted"),
        "titleColor": color("ink"),
        "titleFontWeight": "normal",
        "domainColor": color("line"),
        "tickColor": color("line"),
        "gridColor": color("grid"),
        "labelFontSize": 12,
        "titleFontSize": 13,
    },
    "header": {"labelColor": color("ink"), "titleColor": color("ink"), "labelFontSize": 12},
    "legend": {
        "labelColor": color("ink"),
        "titleColor": color("muted"),
        "labelFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 320,
    },
    "title": {
        "color": color("ink"),
        "subtitleColor": color("muted"),
        "anchor": "start",
        "fontSize": 14,
    },
    "view": {"stroke": None, "continuousHeight": 220},
    "text": {"color": color("ink"), "fill": color("ink")},
    "rule": {"color": color("line")},
    "line": {"color": color("series-1"), "strokeWidth": 1.8},
    "area": {"color": color("series-1")},
    "bar": {"color": color("series-1")},
    "rect": {"color": color("series-1")},
    "point": {"color": color("series-1")},
    "mark": {"color": color("series-1")},
    "range": {"category": [color(f"series-{number + 1}") for number in range(NUM_SERIES)]},
}
