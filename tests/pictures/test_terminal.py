import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tfm_cli.console import display_width
from tfm_cli.model_directory.weights import load_model
from tfm_cli.pictures.explaining import explain
from tfm_cli.pictures.explanation import Explanation, Tokens
from tfm_cli.pictures.terminal import Map, attention_map, explanation_text

SENTENCE = "one three five"
ROW = re.compile(r"^ *(\d+) .*? (\d\.\d{4}) +\d+ ")


@pytest.fixture(scope="session")
def explanation(tiny_model: Path) -> Explanation:
    return explain(load_model(tiny_model, torch.device("cpu")), SENTENCE, target="eins drei fünf")


def text_of(explanation: Explanation, shown: Map, *, width: int = 100, color: bool = False) -> str:
    return explanation_text(explanation, shown, width=width, color=color)


def map_of(weights: np.ndarray, pieces: list[str]) -> Map:
    names = Tokens(tuple(pieces), tuple(range(len(pieces))))
    masked = np.zeros_like(weights, dtype=bool)
    return Map(title="map", weights=weights, rows=names, columns=names, masked=masked)


@pytest.mark.parametrize("kind", ["self", "masked", "cross"])
@pytest.mark.parametrize(("layer", "head"), [(None, None), (0, 1)])
def test_each_row_has_its_weights_and_their_sum(
    explanation: Explanation, kind: str, layer: int | None, head: int | None
) -> None:
    shown = attention_map(explanation, kind, layer, head)

    lines = text_of(explanation, shown).splitlines()

    rows = [match for line in lines if (match := ROW.match(line))]
    count = len(explanation.source if kind == "self" else explanation.target)
    assert [int(row[1]) for row in rows] == list(range(1, count + 1))
    assert [float(row[2]) for row in rows] == pytest.approx([1] * count, abs=1e-4)
    hidden = sum(line.count("  -") for line in lines)
    assert hidden == (count * (count - 1) // 2 if kind == "masked" else 0)


def test_text_has_pieces_ids_and_the_map_that_was_chosen(explanation: Explanation) -> None:
    shown = attention_map(explanation, "self", None, None)
    chosen = attention_map(explanation, "self", 0, 1)

    text = text_of(explanation, shown)

    for piece, token in zip(explanation.source.pieces, explanation.source.ids, strict=True):
        assert piece in text
        assert str(token) in text
    attention = explanation.self_attention[0]
    np.testing.assert_array_equal(shown.weights, attention.weights.mean(axis=0))
    np.testing.assert_array_equal(chosen.weights, attention.weights[1])
    assert "layer 1, head 2 of 2" in chosen.title
    assert "target (given)" in text


def test_weights_are_colored_only_if_color_is_wanted(explanation: Explanation) -> None:
    shown = attention_map(explanation, "cross", None, None)

    plain, colored = text_of(explanation, shown), text_of(explanation, shown, color=True)

    assert "\x1b" not in plain
    assert re.sub("\x1b\\[[0-9;]*m", "", colored) == plain
    assert colored != plain


def test_hostile_pieces_stay_in_their_cells(explanation: Explanation) -> None:
    pieces = [
        "\x1b[31m",
        "a\nb",
        "\u202ex",
        "\u0634\u0644",
        "一二三四五六七八",
        "x" * 90,
    ]

    lines = text_of(explanation, map_of(np.eye(6, dtype=np.float32), pieces)).splitlines()

    rows = [line for line in lines if ROW.match(line)]
    assert not {"\x1b", "\u202e"} & set("".join(lines))
    assert len(rows) == 6
    positions = set()
    for line in rows:
        before, _, _ = line.replace("\u200e", "").partition(" 1.0000 ")
        positions.add(display_width(before))
    assert len(positions) == 1


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_lines_fit_the_terminal(explanation: Explanation, width: int) -> None:
    weights = np.full((300, 300), 1 / 300, dtype=np.float32)

    lines = text_of(explanation, map_of(weights, ["piece"] * 300), width=width).splitlines()

    table = [line for line in lines if ROW.match(line)]
    assert max(map(display_width, table)) <= max(width, 50)
    assert any("of 300 rows and" in line for line in lines)
    assert len(lines) < 100


def test_width_counts_wide_and_combining_characters() -> None:
    assert display_width("ab") == 2
    assert display_width("\u4e00b") == 3
    assert display_width("e\u0301") == 1
