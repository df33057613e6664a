import pytest

from tfm_cli.text.language_tags import TagCounts, leading_tag


@pytest.mark.parametrize(
    ("line", "tag"),
    [
        (">>fra<< a", ">>fra<<"), (">>zh-Hant<<a", ">>zh-Hant<<"), (">>fra<<", ">>fra<<"),
        (" >>fra<< a", ""), (">> fra << a", ""), (">><< a", ""), ("a >>fra<<", ""), ("", ""),
        (">>a<<b<<", ">>a<<"),
    ],
)  # fmt: skip
def test_tag_begins_the_line(line: str, tag: str) -> None:
    assert leading_tag(line) == tag


def counts_of(lines: list[str]) -> TagCounts:
    counts = TagCounts()
    assert list(counts.watch(lines)) == lines
    return counts


def test_tags_of_a_text_are_those_that_lines_begin_with() -> None:
    counts = counts_of([">>fra<< a", "", ">>deu<< b", "c", "  ", ">>fra<< d"])

    assert (counts.num_lines, counts.num_tagged) == (4, 3)
    assert counts.tags == (">>deu<<", ">>fra<<")


@pytest.mark.parametrize(("num_others", "is_tagged"), [(9, True), (10, False)])
def test_tags_of_few_lines_are_text(num_others: int, is_tagged: bool) -> None:
    counts = counts_of([">>next<< a", *["b"] * num_others])

    assert counts.is_tagged == is_tagged
    assert counts.tags == ((">>next<<",) if is_tagged else ())


@pytest.mark.parametrize("lines", [[f">>{i}<< a" for i in range(2000)], [f">>{'x' * 99}<< a"], []])
def test_tags_that_cannot_be_pieces_are_not_tags(lines: list[str]) -> None:
    assert counts_of(lines).tags == ()
