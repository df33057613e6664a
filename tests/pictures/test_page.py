"""Tests of pages: what they contain, and which files they replace."""

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tfm_cli.errors import ConfigError, ResourceError
from tfm_cli.files.ownership import is_picture
from tfm_cli.pictures import charts, page, sheet
from tfm_cli.pictures.charts import Columns, Grid, named
from tfm_cli.pictures.page import Chart, Drawing, Formula, Page, Prose, Table, Widget

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--\u2028\u202e\x1b\ud800"
SVG = '<svg width="30" height="20"><g id="a"><use href="#a"/></g></svg>'
CHART = {
    "data": named("points"),
    "mark": "line",
    "encoding": {
        "x": {"field": "x", "type": "quantitative", "title": HOSTILE},
        "y": {"field": "y", "type": "quantitative"},
        "color": {"field": "name", "type": "nominal"},
    },
}


@pytest.fixture(scope="module")
def shown() -> Page:
    shown = Page(HOSTILE, Prose("The text {}.", (HOSTILE,)))
    shown.add_data("points", Columns({"x": [1, 2], "y": [3, 4.5], "name": [HOSTILE, "b"]}))
    shown.add_data("map", Grid(np.eye(2), {"query": [HOSTILE, "b"], "key": [1, 2]}))
    shown.add_section(
        HOSTILE, Prose(HOSTILE), Formula("softmax(QKᵀ)"), Chart(CHART, HOSTILE, HOSTILE)
    )
    shown.add_section("Table", Table([HOSTILE, "b"], [[HOSTILE, 1.5], ["x", None]], HOSTILE))
    shown.add_section("Drawing", Drawing(SVG, HOSTILE), Drawing(SVG, "twice"))
    shown.add_section("Widget", Widget("<p>w</p>", "window.one = 1", SVG), Widget("", "two()"))
    return shown


@pytest.fixture(scope="module")
def text(shown: Page) -> str:
    return shown.html()


class Parsed(html.parser.HTMLParser):
    """The elements of a page, the content of its scripts, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and not self.scripts[-1][1]:
            self.scripts[-1] = (self.scripts[-1][0], data)
        else:
            self.text += data


def test_hostile_text_is_text(text: str) -> None:
    parsed = Parsed(text)

    assert "img" not in [tag for tag, _ in parsed.elements]
    assert not [name for _, names in parsed.elements for name in names if name.startswith("on")]
    assert parsed.text.count("<img src=x onerror=alert(1)>") >= 6
    assert not re.search("[\u202e\x1b\ud800]", text)


def test_page_refers_to_nothing_outside_it(text: str) -> None:
    parsed = Parsed(text)
    addresses = [
        value or "" for _, names in parsed.elements for name, value in names.items()
        if name in ("src", "href", "action", "data", "srcset", "xlink:href")
    ]  # fmt: skip
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)

    assert [address for address in addresses if not address.startswith("#")] == []
    assert re.findall(r"https?:|url\((?!#)|@import", own) == []


def test_page_has_the_library_and_the_numbers_once(text: str) -> None:
    parsed = Parsed(text)
    programs = [content for names, content in parsed.scripts if "type" not in names]
    data = {names["id"]: json.loads(c) for names, c in parsed.scripts if names.get("id")}

    assert len([program for program in programs if "vegaEmbed" in program[-2000:]]) == 1
    assert programs[2:] == ["window.one = 1", "two()"]
    assert data["data-points"]["columns"]["y"] == [3, 4.5]
    assert data["data-map"]["values"] == [1, 0, 0, 1]


def test_policy_allows_the_scripts_of_the_page_and_nothing_else(text: str) -> None:
    parsed = Parsed(text)
    (policy,) = [
        names["content"] or "" for tag, names in parsed.elements
        if names.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    hashes = {
        base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        for names, content in parsed.scripts
        if "type" not in names
    }

    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert set(re.findall(r"'sha256-([^']*)'", policy)) == hashes
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_page_is_for_the_keyboard_for_print_and_for_both_schemes(text: str) -> None:
    parsed = Parsed(text)
    charts_shown = [n for tag, n in parsed.elements if n.get("class") in ("chart", "drawing")]

    assert ("html", {"lang": "en"}) in parsed.elements
    assert all(names["tabindex"] == "0" and names["aria-label"] for names in charts_shown)
    assert ("a", {"class": "skip", "href": "#content"}) in parsed.elements
    for rule in ("prefers-color-scheme: dark", "@media print", ":focus-visible"):
        assert rule in text


def test_script_cannot_end_its_element() -> None:
    assert page._safe_script("a='</SCRIPT><!--'") == r"a='\x3c/SCRIPT>\x3c!--'"


def test_data_have_unique_names_of_plain_letters(shown: Page) -> None:
    with pytest.raises(ValueError, match="there are data named `points`"):
        shown.add_data("points", Columns({}))
    with pytest.raises(ValueError, match="is no name of data"):
        shown.add_data('"><', Columns({}))


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.png"])
def test_form_follows_the_suffix(name: str, shown: Page, tmp_path: Path) -> None:
    shown.write(tmp_path / name)
    content = (tmp_path / name).read_bytes()

    assert content.startswith({"html": b"<!doctype", "svg": b"<svg", "png": b"\x89PNG"}[name[2:]])
    assert is_picture(tmp_path / name)
    shown.write(tmp_path / name)  # its own file is replaced


def test_directory_gets_a_file_for_each_picture(shown: Page, tmp_path: Path) -> None:
    shown.write(f"{tmp_path}/pictures/")

    names = [
        "01-script-img-src-x-onerror-alert-1", "03-drawing-1", "03-drawing-2", "04-widget",
    ]  # fmt: skip
    expected = [f"{name}{suffix}" for name in names for suffix in (".png", ".svg")]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == expected
    shown.write(tmp_path / "pictures")  # its own directory is replaced


def test_images_have_distinct_ids(shown: Page) -> None:
    ids = re.findall(r'\bid="([^"]*)"', shown.svg())

    assert len(ids) == len(set(ids)) >= 3


def test_foreign_file_is_replaced_on_request_only(shown: Page, tmp_path: Path) -> None:
    path = tmp_path / "thesis.html"
    path.write_text("<!doctype html><p>mine")

    with pytest.raises(ConfigError, match="exists, and is not a picture of tfm") as error:
        shown.write(path)
    assert "--overwrite" in str(error.value.hint)
    assert path.read_text() == "<!doctype html><p>mine"
    shown.write(path, overwrite=True)
    assert is_picture(path)


def test_foreign_directory_is_never_replaced(shown: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ConfigError, match="holds files that are not pictures of tfm"):
        shown.write(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_empty_file_is_replaced_and_a_link_is_followed(shown: Page, tmp_path: Path) -> None:
    (tmp_path / "empty.svg").touch()
    (tmp_path / "link.svg").symlink_to("empty.svg")

    shown.write(tmp_path / "link.svg")

    assert (tmp_path / "link.svg").is_symlink()
    assert is_picture(tmp_path / "empty.svg")


@pytest.mark.parametrize("name", ["a.pdf", "-"])
def test_other_suffix_is_refused(name: str, shown: Page) -> None:
    with pytest.raises(ConfigError, match=r"written as \.html, \.svg or \.png, or to a directory"):
        shown.write(name)


def test_file_in_a_missing_place_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ResourceError, match="cannot be written"):
        page.check_output(tmp_path / "file" / "a.html")


def test_long_text_is_broken_into_lines() -> None:
    assert sheet.broken("aaa bbb ccc", 4.0) == ["aaa bbb", "ccc"]
    assert sheet.broken("語" * 7, 3) == ["語" * 3, "語" * 3, "語"]


def test_texts_with_symbols_have_a_font_without_serifs() -> None:
    drawn = sheet.Sheet()
    drawn.add_drawing('<svg width="9" height="9"><text x="1">▁the</text><text>a</text></svg>')
    drawn.add_text("■")

    image = drawn.svg(title="", comment="")

    style = "style=\"font-family:'DejaVu Sans'"
    assert f'<text x="1" {style}' in image
    assert "<text>a</text>" in image
    assert image.count(style) == 2


def test_code_in_prose_is_code() -> None:
    assert Prose("The `a<b` {}", ("`c`",)).html("") == (
        '<p>The <code>a&lt;b</code> <bdi dir="auto">`c`</bdi></p>'
    )


def test_image_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="has no width"):
        sheet.size_of("<svg><g/></svg>")
    assert sheet.size_of('<svg viewBox="0 0 30 40">') == (30, 40)


def test_libraries_agree_on_a_version() -> None:
    libraries = charts.load()

    assert libraries.vega_lite in map(str, libraries.vl_convert.get_vegalite_versions())
