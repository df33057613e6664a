import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tfm_cli.console import one_line
from tfm_cli.text.markdown import code, plain

RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = st.text(
    st.sampled_from("\\|<>&`*_[]()!~#-=+.:/ \n\tw1aé\u202e\x1b\"'{}$@^;x"), max_size=30
)


def _cells(text: str) -> list[list[str]]:
    """Return the text of the cells of a table row that contain nothing but text."""
    tokens = RENDERER.parse(f"# A\n\n| | |\n|---|---|\n| name | {text} |\n\n## B\n")
    assert [token.type for token in tokens].count("heading_open") == 2
    inline = [token for token in tokens if token.type == "inline"]
    assert not any(token.type in ("html_block", "fence", "bullet_list_open") for token in tokens)
    return [
        [child.content for child in token.children or () if child.type in ("text", "code_inline")]
        for token in inline[3:-1]
        if all(
            child.type in ("text", "text_special", "code_inline") for child in token.children or ()
        )
    ]


@settings(max_examples=300, deadline=None)
@given(HOSTILE)
def test_any_text_is_shown_verbatim_in_a_table(text: str) -> None:
    cells = _cells(plain(text))

    assert ["".join(cell) for cell in cells] == ["name", one_line(text).strip()]


@settings(max_examples=300, deadline=None)
@given(HOSTILE)
def test_any_code_is_shown_verbatim_in_a_table(text: str) -> None:
    cells = _cells(code(text))

    assert ["".join(cell) for cell in cells] == ["name", one_line(text).strip()]


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("data/train_set.en-fr.en", "data/train_set.en-fr.en"),
        ("a|b", "a&#124;b"),
        ("a\\|b", "a&#92;&#124;b"),
        ("<script>", "&#60;script&#62;"),
        ("![x](http://y)", "&#33;&#91;x&#93;(http&#58;//y)"),
        ("__init__.en", "&#95;&#95;init&#95;&#95;.en"),
        ("www.example.org", "www&#46;example.org"),
        ("a\nb", "a&#92;u000ab"),
    ],
)
def test_names_are_readable_and_marks_are_references(text: str, markdown: str) -> None:
    assert plain(text) == markdown


def test_plain_code_is_a_code_span() -> None:
    assert code("nrefs:1|case:mixed") == "`nrefs:1\\|case:mixed`"
    assert code(">>fra<<") == "`>>fra<<`"
