"""The page of a report: its data, its links, and hostile text."""

import html.parser
import json
import re

import pytest

from tfm_cli.pictures.report import System, Texts, build_report
from tfm_cli.pictures.report_page import encoded_alignment, encoded_runs, report_page

pytest.importorskip("vl_convert", reason="pip install 'tfm-cli[pictures]'")

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--\u2028\u202e\x1b\x00"


def page_of(texts: Texts) -> str:
    return report_page(build_report(texts, num_resamples=10)).html()


class Parsed(html.parser.HTMLParser):
    """The elements of a page and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        found = re.findall(r'id="data-([a-z-]+)">(.*?)</script>', text)
        self.data = {name: json.loads(content) for name, content in found}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def hostile() -> Parsed:
    one = System(HOSTILE, [HOSTILE, "a b", ""], [(), (((0, 0.5),), ()), ()])
    two = System("two", ["x", HOSTILE * 30, "a a a a"])
    texts = Texts(systems=[one, two], references=[[HOSTILE, "c d", "e"]], source=["s", "t", "u"])
    return Parsed(page_of(texts))


def test_hostile_text_is_data(hostile: Parsed) -> None:
    shown = hostile.data["lines"]["columns"]["system-0"][0]

    assert "img" not in [tag for tag, _ in hostile.elements]
    assert not [name for _, names in hostile.elements for name in names if name.startswith("on")]
    assert shown.startswith("</script><img src=x onerror=alert(1)>\"'&<!--")
    assert "\\u202e\\u001b" in shown
    assert not set("\u202e\x1b\x00") & set(shown)


def test_each_number_of_lines_leads_to_its_lines(hostile: Parsed) -> None:
    views = hostile.data["views"]["columns"]
    links = [
        (names["href"] or "")[1:]
        for tag, names in hostile.elements
        if tag == "a" and (names.get("href") or "").startswith("#lines-")
    ]

    assert sorted(links) == sorted(views["name"])
    assert len(set(links)) == len(links)
    lines = dict(zip(views["name"], views["lines"], strict=True))
    labels = dict(zip(views["name"], views["label"], strict=True))
    assert lines["lines-empty-a"] == "2"
    assert labels["lines-empty-a"] == "Empty translations (A)"
    assert lines["lines-repetitions-b"] == "1,1"  # the lines 1 and 2, as distances
    of_lengths = [name for name in lines if name.startswith("lines-length-")]
    assert sum(lines[name].count(",") + 1 for name in of_lengths) == 3


def test_ids_of_a_page_are_unique(hostile: Parsed) -> None:
    ids = [names["id"] for _, names in hostile.elements if names.get("id")]

    assert len(ids) == len(set(ids))


def test_page_of_one_system_has_no_comparison() -> None:
    texts = Texts(systems=[System("one", ["a", "b"])], references=[["a", "c"]])

    parsed = Parsed(page_of(texts))

    columns = parsed.data["lines"]["columns"]
    assert sorted(columns) == [
        "chrf-0", "length", "marks-0", "missing-0", "rarest", "reference-0", "system-0",
    ]  # fmt: skip
    assert columns["chrf-0"] == [100, 0]


def test_text_without_a_word_has_a_page() -> None:
    texts = Texts(systems=[System("one", ["", "…"])], references=[["", "!"]], source=["", ""])

    parsed = Parsed(page_of(texts))

    assert parsed.data["lines"]["columns"]["rarest"] == [None, None]
    assert "by-rarest" not in parsed.data


def test_report_as_an_image_has_its_charts_and_tables() -> None:
    systems = [System("one", ["a b", "c"]), System("two", ["a", "c"])]
    texts = Texts(systems=systems, references=[["a b", "c d"]])

    svg = report_page(build_report(texts, num_resamples=10)).svg()

    assert "Scores by length" in svg
    assert "Empty translations" in svg
    assert 'role="search"' not in svg


@pytest.mark.parametrize(
    ("text", "runs", "encoded"),
    [
        ("abc", (), ""),
        ("a b c", ((0, 1), (4, 5)), "0,1,3,1"),
        ("\U0001f600 b", ((0, 1), (2, 3)), "0,2,1,1"),  # two units of UTF-16
        ("é b", ((2, 3),), "2,1"),
    ],
)
def test_marks_are_distances_in_units_of_utf_16(
    text: str, runs: tuple[tuple[int, int], ...], encoded: str
) -> None:
    assert encoded_runs(text, runs) == encoded


def test_alignment_that_is_not_of_the_words_is_left_out() -> None:
    links = (((0, 0.834), (1, 0.1)), ())

    assert encoded_alignment(links, "a b", "x y") == "0:83,1:10;"
    assert encoded_alignment(links, "a b c", "x y") == ""
    assert encoded_alignment(links, "a b", "x") == ""
    assert encoded_alignment((), "", "x") == ""
