"""Tests of the charts' data and colors."""

import builtins
import math
from typing import Any

import numpy as np
import pytest

from tfm_cli.errors import ResourceError
from tfm_cli.pictures import charts
from tfm_cli.pictures.charts import DARK, DASHES, LIGHT, NUM_SERIES, Columns, Grid


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colors: https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio."""

    def luminance(color: str) -> float:
        parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(scheme: dict[str, str]) -> None:
    for paper in (scheme["paper"], scheme["panel"]):
        for role in ("ink", "muted", "accent"):
            assert contrast(scheme[role], paper) >= 4.5, role
        for role in ("line", *(f"series-{n + 1}" for n in range(NUM_SERIES))):
            assert contrast(scheme[role], paper) >= 3, role
    assert contrast(scheme["ink"], scheme["mark"]) >= 4.5


def test_schemes_have_the_same_roles_and_each_series_a_dash() -> None:
    assert set(LIGHT) == set(DARK)
    assert len(set(DASHES)) == NUM_SERIES


def test_unknown_color_is_refused() -> None:
    with pytest.raises(KeyError):
        charts.color("series-9")


def test_rows_of_columns() -> None:
    data = Columns({"update": [1, 2], "loss": [0.123456789012, math.nan]})

    assert list(data.rows()) == [
        {"update": 1, "loss": 0.12345679},
        {"update": 2, "loss": None},
    ]


def test_rows_of_a_grid_are_in_the_order_of_its_axes() -> None:
    data = Grid(np.array([[0.25, 0.75], [1.0, 0.0]]), {"query": ["a", "b"], "key": [1, 2]}, "p")

    assert list(data.rows()) == [
        {"query": "a", "key": 1, "p": 0.25},
        {"query": "a", "key": 2, "p": 0.75},
        {"query": "b", "key": 1, "p": 1},
        {"query": "b", "key": 2, "p": 0},
    ]


def test_grid_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 2\), its labels \(2, 3\)"):
        Grid(np.zeros((2, 2)), {"query": [1, 2], "key": [1, 2, 3]})


def test_text_in_data_has_no_control_characters() -> None:
    assert charts.plain(["a\x1b[31m", "\u202ex", "\ud800"]) == [
        r"a\u001b[31m",
        r"\u202ex",
        r"\ud800",
    ]


def test_data_of_all_layers_of_a_chart_are_found() -> None:
    spec = {"layer": [{"data": {"name": "a"}}, {"hconcat": [{"data": {"name": "b"}}]}]}

    assert charts.names_of_data(spec) == {"a", "b"}


def test_missing_library_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = builtins.__import__

    def without_altair(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "altair":
            raise ModuleNotFoundError("No module named 'altair'", name="altair")
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_altair)

    with pytest.raises(ResourceError, match="pictures need `altair`, which is not installed") as e:
        charts.load()
    assert e.value.hint
    assert e.value.hint.startswith("install it with `pip install 'altair")
    assert "vl-convert-python" in e.value.hint


def test_chart_is_drawn_in_the_colors_of_the_light_scheme() -> None:
    spec = charts.specification(
        {
            "data": charts.named("points"),
            "mark": "point",
            "width": "container",
            "encoding": {
                "x": {"field": "x", "type": "quantitative"},
                "color": {"field": "run", "type": "nominal"},
            },
        }
    )
    image = charts.svg(spec, {"points": Columns({"x": [1, 2], "run": ["<b>&", "b"]})})

    assert "var(" not in image
    assert LIGHT["series-1"] in image
    assert "&lt;b&gt;&amp;" in image
