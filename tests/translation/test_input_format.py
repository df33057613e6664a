import json

import pytest

from tfm_cli.errors import DataError
from tfm_cli.translation.input_format import InputLine, from_columns, from_forced, from_json

# Prefixes.


@pytest.mark.parametrize(
    ("line", "source", "prefix"),
    [("one\teins", "one", "eins"), ("one", "one", ""), ("one\t", "one", ""), ("", "", ""),
     ("\teins", "", "eins")],
)  # fmt: skip
def test_prefix_follows_a_tab(line: str, source: str, prefix: str) -> None:
    assert from_forced(line, "in:1") == InputLine(source, prefix)


def test_more_columns_than_source_and_prefix_are_refused() -> None:
    message = "^in:7: has 3 columns, expected `source<TAB>target prefix`$"

    with pytest.raises(DataError, match=message) as caught:
        from_forced("one\teins\t", "in:7")

    assert "--tsv" in str(caught.value.hint)


# Columns.


def test_all_columns_are_kept() -> None:
    line = from_columns("7\tone\t\teins ", "in:1", number=2, forced=False)

    assert line == InputLine("one", "", ("7", "one", "", "eins "))


def test_column_after_the_source_is_the_prefix_if_requested() -> None:
    assert from_columns("7\tone\teins", "in:1", number=2, forced=True).target_prefix == "eins"
    assert from_columns("7\tone", "in:1", number=2, forced=True).target_prefix == ""


def test_blank_line_has_no_columns() -> None:
    assert from_columns("", "in:1", number=3, forced=True) == InputLine("")
    assert from_columns("\t", "in:1", number=2, forced=True).columns == ("", "")


@pytest.mark.parametrize(("line", "found"), [("one", "1 column"), ("one\ttwo", "2 columns")])
def test_missing_column_is_refused(line: str, found: str) -> None:
    with pytest.raises(DataError, match=f"^in:9: has {found}, but column 3 is the source$"):
        from_columns(line, "in:9", number=3, forced=False)


# JSON.


@pytest.mark.parametrize("name", ["source", "text"])
def test_source_goes_by_two_names(name: str) -> None:
    fields = {"id": 1, name: "one", "target_prefix": "ei"}

    assert from_json(json.dumps(fields), "in:1") == InputLine("one", "ei", (), fields)


def test_source_goes_before_text() -> None:
    assert from_json('{"text": 5, "source": "one"}', "in:1").source == "one"


@pytest.mark.parametrize("blank", ["", " ", "\t\r"])
def test_blank_line_is_blank_text(blank: str) -> None:
    assert from_json(blank, "in:1") == InputLine("")


def test_lines_of_a_string_stay_apart_and_nul_is_left_out() -> None:
    line = from_json(r'{"source": "a\nb\u0000c\n", "target_prefix": "d\ne"}', "in:1")

    assert (line.source, line.target_prefix) == ("a\nbc\n", "d\ne")
    assert line.fields == {"source": "a\nb\0c\n", "target_prefix": "d\ne"}


@pytest.mark.parametrize("each", ["\n", "\r\n", "\r", "\u2028", "\u2029", "\x85", "\v", "\f"])
def test_every_break_of_a_string_is_one(each: str) -> None:
    text = f"{each}a{each}{each}b{each}"

    line = from_json(json.dumps({"text": text}), "in:1")

    assert line.source == "\na\n\nb\n"
    assert line.breaks == (() if each == "\n" else (each,) * 4)


@pytest.mark.parametrize(
    ("source", "prefix", "number"), [("a", "d\ne", 2), ("a\n\nb", "d\ne", 2), ("\na", "d\n", 1)]
)
def test_line_of_a_prefix_needs_a_line_of_the_source(source: str, prefix: str, number: int) -> None:
    fields = {"source": source, "target_prefix": prefix}
    told = f"line {number} of `target_prefix` has text, line {number} of the source none"

    with pytest.raises(DataError, match=f"^in:3: {told}$"):
        from_json(json.dumps(fields), "in:3")


def test_repeated_names_are_noted_at_any_depth() -> None:
    line = from_json('{"text": "a", "x": [{"y": 1, "y": 2}], "text": "b", "text": "c"}', "in:1")

    assert sorted(line.repeated) == ["text", "y"]
    assert line.source == "c"


def test_characters_that_cannot_be_translated_are_noted() -> None:
    line = from_json(
        r'{"text": "a\ud83db", "target_prefix": "\udc00\u0000", "id": "\u0000\ud800"}', "in:1"
    )
    whole = from_json(r'{"text": "\ud83d\ude00", "target_prefix": "x"}', "in:1")

    assert line.has_nul == ("target_prefix",)
    assert line.has_surrogates == ("text", "target_prefix")
    assert whole.has_nul == whole.has_surrogates == ()


def test_message_of_a_long_number_has_no_advice_for_programmers() -> None:
    with pytest.raises(DataError, match=r"value has 5000 digits$"):
        from_json('{"source": "one", "x": ' + "9" * 5000 + "}", "in:4")


def test_null_is_no_prefix() -> None:
    assert from_json('{"source": "a", "target_prefix": null}', "in:1").target_prefix == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one", "is not a JSON object: character 1: Expecting value"),
        ('{"source": "one"', "is not a JSON object: character 17: Expecting ',' delimiter"),
        ('["one"]', "is not a JSON object"),
        ('"one"', "is not a JSON object"),
        ("null", "is not a JSON object"),
        ('{"id": 5}', "has neither `source` nor `text`"),
        ('{"source": 5}', "`source` is not a string"),
        ('{"text": null}', "`text` is not a string"),
        ('{"source": "one", "target_prefix": ["a"]}', "`target_prefix` is not a string"),
        ('{"source": "one", "x": NaN}', "has a number that cannot be kept: `NaN` is not JSON"),
        ('{"source": "one", "x": 1e999}', "has a number that cannot be kept: Out of range"),
        ('{"source": "one", "x": ' + "9" * 5000 + "}", "has a number that cannot be kept: "),
        ("[" * 100_000, "has objects or lists nested too deeply"),
    ],
    ids=lambda text: text[:30],
)
def test_invalid_object_is_refused_with_its_position(line: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        from_json(line, "in:4")

    assert str(caught.value).startswith(f"in:4: {message}")
