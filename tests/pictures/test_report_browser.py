"""Tests of the page of a report in Chromium: the search, the order, the links, the alignment."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pictures.test_browser import HOSTILE, Opened, browser, opened
from tests.pictures.waiting import wait_until
from tfm_cli.pictures.report import System, Texts, build_report
from tfm_cli.pictures.report_page import report_page

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]
__all__ = ["browser"]

ARABIC, JAPANESE = "ذهب الأولاد إلى البيت", "今日は天気がいい"
SOURCE = ["one two three", HOSTILE, "the boys went", "a fine day", "CAFE\u0301", ""]
REFERENCE = ["eins zwei drei", "x", "ذهب الأولاد إلى المدرسة", "今日は天気が良い", "café", "y z"]
FIRST = ["eins zwo drei", HOSTILE, ARABIC, JAPANESE, "café", ""]
SECOND = ["eins zwei drei", "x", "ذهب", "今日は雨", "thé", "y"]
ALIGNED = [(((0, 0.9),), ((1, 0.6), (2, 0.3)), ((2, 0.95),)), *[()] * 5]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with alignments of the first line of the first system."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    systems = [System("runs/<b>one", FIRST, ALIGNED), System("two", SECOND)]
    report = build_report(
        Texts(systems=systems, references=[REFERENCE], source=SOURCE), num_resamples=20
    )
    report_page(report).write(path)
    return path


@pytest.fixture
def shown(browser: Any, page: Path) -> Iterator[Opened]:
    with opened(browser, page) as found:
        scroll_to_lines(found)
        yield found


def scroll_to_lines(shown: Opened) -> None:
    """Bring the lines into the window; those far from it are no elements."""
    shown.evaluate("document.getElementById('find').scrollIntoView({ behavior: 'instant' })")
    shown.page.wait_for_selector(".line")


def numbers(shown: Opened) -> list[int]:
    """The numbers of the lines that are elements, in their order."""
    found: list[int] = shown.evaluate(
        "[...document.querySelectorAll('.line')].map((line) => Number(line.dataset.line))"
    )
    return found


def marked(shown: Opened, line: int, cell: int) -> list[str]:
    """The marked parts of a text of a line, with their classes."""
    found: list[str] = shown.evaluate(
        f"""[...document.querySelectorAll("[data-line='{line}'] .cell:nth-child({cell + 1}) mark")]
        .map((mark) => `${{mark.className}}: ${{mark.textContent}}`)"""
    )
    return found


def test_largest_differences_are_first(shown: Opened) -> None:
    report = build_report(Texts(systems=[System("1", FIRST), System("2", SECOND)],
                                references=[REFERENCE]), num_resamples=20)  # fmt: skip
    differences = [abs(b - a) for a, b in zip(*report.chrf, strict=True)]

    found = numbers(shown)

    assert [differences[number - 1] for number in found] == sorted(differences, reverse=True)
    shown.page.select_option("#order", label="number of the line")
    assert numbers(shown) == [1, 2, 3, 4, 5, 6]


def test_words_that_differ_are_marked(shown: Opened) -> None:
    assert marked(shown, 1, 1) == ["missing-1: zwei"]
    assert marked(shown, 1, 2) == ["own: zwo"]
    assert marked(shown, 1, 3) == []
    assert marked(shown, 4, 2) == ["own: い"]
    assert marked(shown, 3, 1)[0].startswith("missing-2: ")
    shown.page.select_option("#marking", "between")
    assert marked(shown, 1, 1) == []
    assert marked(shown, 1, 3) == ["own: zwei"]
    shown.page.select_option("#marking", "")
    assert shown.evaluate("document.querySelectorAll('#lines mark').length") == 0


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("ZWEI", [1]), ("天気", [4]), ("البيت", [3]), ("café", [5]), ("cafe\u0301", [5]),
        ("</script><script>", [2]), ("#3", [3]), ("#7", []), ("nowhere", []),
        ("", [1, 2, 3, 4, 5, 6]),
    ],
)  # fmt: skip
def test_search_finds_lines(shown: Opened, text: str, lines: list[int]) -> None:
    shown.page.select_option("#order", label="number of the line")

    shown.page.fill("#find", text)

    assert numbers(shown) == lines
    assert shown.page.inner_text("#found") == f"{len(lines)} of 6 lines"


def test_search_highlights_what_it_has_found(shown: Opened) -> None:
    shown.page.fill("#find", "zw")

    wait_until(shown.page, "CSS.highlights.get('found').size === 3")
    texts = shown.evaluate("[...CSS.highlights.get('found')].map((range) => range.toString())")
    assert texts == ["zw"] * 3


def test_number_of_lines_leads_to_the_lines_with_the_keyboard(shown: Opened) -> None:
    shown.page.focus("a[href='#lines-empty-a']")

    shown.page.keyboard.press("Enter")

    wait_until(shown.page, "document.documentElement.dataset.listed === '1'")
    shown.page.wait_for_selector(".line")
    assert numbers(shown) == [6]
    assert shown.evaluate("document.activeElement.id") == "view"
    assert shown.evaluate("location.hash") == "#lines-empty-a"


def test_address_of_lines_opens_them(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        shown.evaluate("location.hash = '#lines-copies-a'")
        wait_until(shown.page, "document.documentElement.dataset.listed === '1'")
        shown.page.wait_for_selector(".line")
        assert numbers(shown) == [2]


def test_alignment_is_shown_at_the_pointer_and_with_the_arrow_keys(shown: Opened) -> None:
    line = shown.page.locator("[data-line='1']")
    note = line.locator(".aligned")

    line.locator(".word", has_text="zwo").hover()
    assert note.inner_text() == "zwo ← two 60 %, three 30 %"
    assert line.locator(".there").all_inner_texts() == ["two", "three"]

    line.locator("[tabindex]").focus()
    shown.page.keyboard.press("End")
    assert note.inner_text() == "drei ← three 95 %"
    shown.page.keyboard.press("ArrowLeft")
    shown.page.keyboard.press("ArrowLeft")
    assert note.inner_text() == "eins ← one 90 %"
    assert line.locator(".here").all_inner_texts() == ["eins"]


def test_direction_and_order_of_text_are_its_own(shown: Opened) -> None:
    direction = """(line) => getComputedStyle(
        document.querySelector(`[data-line='${line}'] .cell:nth-child(3) .text`)).direction"""

    assert shown.page.evaluate(direction, 3) == "rtl"
    assert shown.page.evaluate(direction, 1) == "ltr"


def test_text_is_whole(shown: Opened) -> None:
    found = shown.evaluate(
        "[...document.querySelectorAll(\"[data-line='2'] .text\")].map((t) => t.textContent)"
    )

    assert found[0].startswith("</script><script>alert(1)</script><b>\"'&amp; \\u202eabc")
    assert found[1] == "x"
    assert shown.evaluate("document.querySelectorAll('#lines b').length") == 6  # Line 1, 2, …


def test_print_lists_lines_without_controls(browser: Any, page: Path) -> None:
    with opened(browser, page, media="print") as shown:
        shown.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert not shown.page.is_visible(".controls")
        assert len(numbers(shown)) == 6


# Many lines.

NUM_LINES = 10_000


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 10,000 lines of 20 words, of which a third are wrong."""
    draw = random.Random(1)
    words = [
        "".join(draw.choices("abcdefghiklmnoprstuvw", k=draw.randint(2, 9))) for _ in range(9999)
    ]

    def line() -> list[str]:
        return draw.choices(words, k=20)

    def worn(line: list[str]) -> str:
        return " ".join(draw.choice(words) if draw.random() < 0.33 else word for word in line)

    references = [line() for _ in range(NUM_LINES)]
    texts = Texts(
        systems=[System(name, [worn(each) for each in references]) for name in ("one", "two")],
        references=[[" ".join(each) for each in references]],
        source=[" ".join(line()) for _ in range(NUM_LINES)],
    )
    path = tmp_path_factory.mktemp("long") / "report.html"
    report_page(build_report(texts, num_resamples=20)).write(path)
    return path


# Seconds of the main thread, which do not depend on what else the machine computes.
SECONDS = "TaskDuration"


def seconds(session: Any) -> float:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(each["value"] for each in metrics if each["name"] == SECONDS))


def test_many_lines_open_in_3_s_are_searched_in_300_ms_and_take_20_mb(
    browser: Any, long_page: Path
) -> None:
    assert long_page.stat().st_size < 20_000_000
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = seconds(session)
    page.goto(long_page.as_uri())
    wait_until(page, "document.documentElement.dataset.drawn === 'true'")

    assert seconds(session) - before < 3
    page.wait_for_timeout(1000)
    for text in ("a", "ab", "abc", "e", "no such text", ""):
        before = seconds(session)
        page.evaluate(
            """async (text) => {
              const find = document.getElementById("find");
              find.value = text;
              find.dispatchEvent(new Event("input"));
              const frame = () => new Promise((done) => requestAnimationFrame(done));
              await frame();
              await frame();
            }""",
            text,
        )
        assert seconds(session) - before < 0.3, text
    page.close()


def test_only_lines_near_the_window_are_elements(browser: Any, long_page: Path) -> None:
    with opened(browser, long_page) as shown:
        shown.page.select_option("#order", label="number of the line")
        scroll_to_lines(shown)
        assert numbers(shown)[:2] == [1, 2]
        shown.evaluate("scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
        wait_until(shown.page, "document.querySelector('[data-line=\"10000\"]') !== null")
        wait_until(shown.page, "document.querySelector('[data-line=\"1\"]') === null")

        assert len(numbers(shown)) < 150
