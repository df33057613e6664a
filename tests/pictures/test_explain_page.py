"""The page of an explanation has the numbers of the explanation, and texts as texts."""

import base64
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.pictures.test_explaining import Explained, ModelOf, explained, found, model_of, trained
from tests.pictures.test_page import Parsed
from tests.pictures.test_patching import contrasted
from tfm_cli.pictures import charts, patching
from tfm_cli.pictures.arrays import Floats, Part
from tfm_cli.pictures.attention_lines import bitmap
from tfm_cli.pictures.explain_page import explain_page
from tfm_cli.pictures.explanation import Explanation, Node, Tokens
from tfm_cli.pictures.page import Chart, Page
from tfm_cli.pictures.search_tree import search_tree, shortened, tree_alternative

__all__ = ["ModelOf", "explained", "found", "model_of", "trained"]  # fixtures

pytest.importorskip("vl_convert", reason="pip install 'tfm-cli[pictures]'")

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--\u2028\u202e\x1b${1}"
HEADINGS = [
    "Tokenization", "Embeddings and positional encoding", "Scaled dot-product attention",
    "Masked self-attention", "Encoder-decoder attention", "Multi-head attention",
    "Add & norm, feed-forward", "Progressive refinement", "Teacher forcing",
    "Inference token by token", "Against recurrence",
]  # fmt: skip


def data_of(text: str) -> dict[str, dict[str, Any]]:
    """Return the data of a page by their names."""
    return {
        (names["id"] or "").removeprefix("data-"): json.loads(content)
        for names, content in Parsed(text).scripts
        if (names.get("id") or "").startswith("data-")
    }


def array_of(content: dict[str, Any]) -> NDArray[np.float32]:
    """Return an array as the script of the page reads it."""
    numbers = np.frombuffer(base64.b64decode(str(content["float32"])), "<f4")
    return numbers.reshape(content["shape"])


@pytest.fixture(scope="module")
def explanation(explained: Explained) -> Explanation:
    return explained("paper")[1]


@pytest.fixture(scope="module")
def text(explanation: Explanation) -> str:
    return explain_page(explanation).html()


def test_sections_are_in_the_order_of_the_paper(text: str) -> None:
    found = re.findall(r'<h2 id="section-[^>]*>(.*?)</h2>', text)

    assert [each.replace("&amp;", "&") for each in found] == HEADINGS


def test_each_section_has_a_formula_its_shapes_and_what_to_look_for(text: str) -> None:
    sections = text.partition("</main>")[0].split("<section ")[1:-1]

    assert [section.count('role="math"') > 0 for section in sections] == [True] * 10
    assert ["Shapes" in section for section in sections] == [True] * 10
    assert [bool(re.search(r"Look (at|for) ", section)) for section in sections] == [True] * 10


def test_contrast_has_a_section_with_its_numbers(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patching, "_MIN_CHANGE", 0.0)
    explanation = contrasted(model_of())
    made = explanation.contrast
    assert made is not None

    html = explain_page(explanation).html()

    assert (
        re.findall(r'<h2 id="section-[^>]*>(.*?)</h2>', html)[-1] == "What carries the difference"
    )
    np.testing.assert_array_equal(array_of(data_of(html)["contrast"]), made.shares)


def test_arrays_equal_those_of_the_model(explanation: Explanation, text: str) -> None:
    data = data_of(text)
    layers = {
        "encoder": explanation.self_attention,
        "masked": explanation.masked_self_attention,
        "cross": explanation.cross_attention,
    }

    for name, attentions in layers.items():
        weights = array_of(data[f"{name}-weights-all"])
        np.testing.assert_array_equal(weights, np.stack([each.weights for each in attentions]))
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    for part in ("query", "key", "value", "heads", "scores"):
        expected = np.stack([getattr(each, part) for each in explanation.self_attention])
        np.testing.assert_array_equal(array_of(data[f"encoder-{part}-all"]), expected)
    for name in ("embedding", "position", "input"):
        wanted = {"position": "positions"}.get(name, name)
        expected = getattr(explanation.embeddings, wanted)
        np.testing.assert_array_equal(array_of(data[name]), expected)


def test_weights_above_the_diagonal_are_zero_and_scores_minus_infinity(text: str) -> None:
    data = data_of(text)
    weights, scores = (array_of(data[f"masked-{part}-all"]) for part in ("weights", "scores"))
    above = np.triu(np.ones(weights.shape[2:], bool), 1)

    assert np.all(weights[..., above] == 0)
    assert np.all(np.isneginf(scores[..., above]))
    assert np.all(np.isfinite(scores[..., ~above]))


def test_products_are_the_scores_times_the_root_of_the_width(explanation: Explanation) -> None:
    for attention in explanation.self_attention:
        root = attention.query.shape[2] ** 0.5
        np.testing.assert_allclose(attention.scores * root, attention.products, atol=1e-6)


def test_losses_and_the_lens_are_those_of_the_explanation(
    explanation: Explanation, text: str
) -> None:
    data = data_of(text)
    losses, lens = (data[name]["columns"] for name in ("losses", "lens"))

    np.testing.assert_allclose(losses["loss"], explanation.teacher_forcing.loss, atol=1e-6)
    assert sum(losses["loss"]) == pytest.approx(explanation.teacher_forcing.total_loss, abs=1e-5)
    np.testing.assert_allclose(
        lens["of_expected"], explanation.refinement.target_probability.ravel(), atol=1e-6
    )
    assert f"{explanation.teacher_forcing.total_loss:.6f}" in text


def test_every_picture_has_an_alternative_and_its_charts_have_data(text: str) -> None:
    parsed, data = Parsed(text), data_of(text)
    pictures = [names for _, names in parsed.elements if names.get("role") == "img"]
    named = [names["data-names"] or "" for _, names in parsed.elements if "data-names" in names]

    assert len(pictures) > 20
    assert all(len(names["aria-label"] or "") > 20 for names in pictures)
    assert set(" ".join(named).split()) <= set(data)


def test_attention_weights_are_called_no_explanation(text: str) -> None:
    assert "no explanation of a decision" in text


def hostile(explanation: Explanation) -> Explanation:
    """Return an explanation whose pieces and texts are hostile."""

    def tokens(given: Tokens) -> Tokens:
        return Tokens(tuple(HOSTILE for _ in given.pieces), given.ids)

    comparison = explanation.search.comparison
    tree = tuple(dataclasses.replace(node, piece=HOSTILE) for node in comparison.tree)
    comparison = dataclasses.replace(comparison, tree=tree)
    return dataclasses.replace(
        explanation,
        sentence=HOSTILE, translation=HOSTILE, target_text=HOSTILE,
        model=dataclasses.replace(explanation.model, name=HOSTILE),
        source=tokens(explanation.source), target=tokens(explanation.target),
        target_input=tokens(explanation.target_input),
        search=dataclasses.replace(explanation.search, comparison=comparison),
    )  # fmt: skip


def test_hostile_pieces_are_text(explanation: Explanation) -> None:
    page = explain_page(hostile(explanation))
    text = page.html()
    parsed = Parsed(text)

    assert "img" not in [tag for tag, _ in parsed.elements]
    assert not [name for _, names in parsed.elements for name in names if name.startswith("on")]
    assert not re.search("[\u202e\x1b]", text)
    assert data_of(text)["encoder-weights-all"]["texts"]


def test_labels_are_read_as_text_by_the_charts(explanation: Explanation) -> None:
    page = explain_page(hostile(explanation))

    drawn = charts.svg(_chart(page, "alignment").spec(), page._data)

    assert "&lt;/script" in drawn
    assert "<img" not in drawn


def _chart(page: Page, name: str) -> Chart:
    """Return the chart of the data with a name."""
    return next(
        block
        for block in page._blocks()
        if isinstance(block, Chart) and name in charts.names_of_data(block.spec())
    )


def test_a_part_has_the_rows_of_its_head() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    values[1, 2, 0, 1] = -np.inf
    texts = {"query": ["a", "\x1b"], "key": ["c", "d"]}
    array = Floats(values, {"layer": 1, "head": 1, "query": 0, "key": 0}, texts)

    rows = list(Part("all", array, (1, 2), "encoder").rows())

    assert rows[0] == {
        "query": 0, "query_text": "a", "key": 0, "key_text": "c", "value": 20.0
    }  # fmt: skip
    assert rows[1]["value"] is None
    assert rows[2]["query_text"] == "\\u001b"


def test_an_array_refuses_names_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="2 axes, named are 1"):
        Floats(np.zeros((2, 2), np.float32), {"row": 0})
    with pytest.raises(ValueError, match="`row` has 2 elements and 1 texts"):
        Floats(np.zeros(2, np.float32), {"row": 0}, {"row": ["a"]})


def test_tree_has_every_kept_hypothesis_and_both_paths(explanation: Explanation) -> None:
    comparison = explanation.search.comparison
    drawn = search_tree(comparison.tree, comparison.beam_size)
    kept = [node for node in comparison.tree if node.state != "dropped"]

    assert drawn.count('<g class="cell"') >= len(kept)
    best = max((n for n in comparison.tree if n.is_best), key=lambda node: node.step)
    assert f"score {best.score:.6f}" in drawn
    assert best.score == pytest.approx(comparison.beam.score, abs=1e-6)


def test_tree_tells_where_greedy_search_parts() -> None:
    def node(parent: int, step: int, piece: str, **paths: bool) -> Node:
        return Node(
            parent=parent, step=step, piece=piece, id=0, token_log_probability=-1.0,
            log_probability=-1.0, score=-1.0, state="kept",
            is_best=paths.get("best", False), is_greedy=paths.get("greedy", False),
        )  # fmt: skip

    tree = [
        node(-1, 0, "<s>", best=True, greedy=True),
        node(0, 1, "a", best=True), node(0, 1, HOSTILE, greedy=True), node(1, 2, "</s>", best=True),
    ]  # fmt: skip

    alternative = tree_alternative(tree, 2)
    drawn = search_tree(tree, 2)

    assert "Path of beam search: a </s>." in alternative
    assert "Greedy search diverges from it at step 1" in alternative
    assert "<img" not in drawn
    assert "\x1b" not in drawn


def test_long_pieces_are_shortened() -> None:
    assert shortened("abc", 10) == "abc"
    assert shortened("a" * 400, 5).endswith("…")
    assert len(shortened("a" * 400, 5)) < 12


def test_bitmap_is_a_png_image() -> None:
    address = bitmap(np.eye(3, dtype=np.float32))

    content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")


def test_script_is_in_the_package() -> None:
    folder = Path(charts.__file__).parent

    assert (folder / "attention_lines.js").is_file()
