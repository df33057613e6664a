import json

import pytest

from tfm_cli.corpus.sources import Format, Pair, parse_pairs
from tfm_cli.errors import DataError
from tfm_cli.text.reader import Repairs


def pairs(lines: list[str], held: Format, repairs: Repairs | None = None) -> list[Pair]:
    return list(parse_pairs(lines, held, repairs or Repairs(), name="text", num_lines=10))


def test_first_two_columns_are_the_sides_and_others_are_counted() -> None:
    repairs = Repairs()

    actual = pairs(["a\tb", "", "c\t", "d\te\tf\tg", "\th\t"], "tsv", repairs)

    assert actual == [("a", "b"), ("", ""), ("c", ""), ("d", "e"), ("", "h")]
    assert repairs.notes(9) == [
        "lines with more than two columns, of which the first two count: 2 (first: line 14)"
    ]


def test_objects_with_a_repeated_name_are_counted() -> None:
    repairs = Repairs()
    lines = ['{"source": "a", "target": "b"}', '{"source": "a", "source": "c", "target": "b"}']

    actual = pairs(lines, "jsonl", repairs)

    assert actual == [("a", "b"), ("c", "b")]
    assert repairs.notes(9) == [
        "objects with a name more than once, of which the last value counts: 1 (first: line 12)"
    ]


def test_line_with_one_column_is_refused_with_its_number() -> None:
    with pytest.raises(DataError) as caught:
        pairs(["a\tb", "a b"], "tsv")

    assert str(caught.value) == "text:12: has 1 column, expected source<TAB>target"


def test_object_has_its_sides_by_name_in_any_order() -> None:
    lines = [
        '{"source": "a", "target": "b"}', " ", '{"target": "d", "id": 7, "source": "c\\n\\u0000e"}',
        json.dumps({"source": "\ud800x", "target": "\ud83d\ude00"}),
    ]  # fmt: skip

    assert pairs(lines, "jsonl") == [("a", "b"), ("", ""), ("c e", "d"), ("\ufffdx", "😀")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON: expected a name in double quotes at character 2, found the end"),
        ('{"source": "a', "is not JSON: the string at character 12 has no end"),
        ("[" * 100_000, "cannot be parsed as JSON, expected an object with `source` and "
         "`target`"),
        ('["a", "b"]', "is not an object, expected an object with `source` and `target`"),
        ('{"source": "a"}', "lacks `target`, expected an object with `source` and `target`"),
        ("{}", "lacks `source` and `target`, expected an object with `source` and `target`"),
        ('{"source": "a", "target": 1}', "`target` is not a string"),
        ('{"translation": {"en": "a", "de": "b"}}', "has `translation`, in which no "
         "language is marked as the source, expected an object with `source` and `target`"),
    ],
)  # fmt: skip
def test_malformed_object_is_refused_with_its_line_number(line: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        pairs(['{"source": "a", "target": "b"}', line], "jsonl")

    assert str(caught.value) == f"text:12: {message}"
