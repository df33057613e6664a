"""Input lines are parsed and translations formatted as text, columns, n-best lists and JSON."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tfm_cli.errors import DataError
from tfm_cli.translation.assembly import Candidate, Translation
from tfm_cli.translation.formats import (
    InputLine,
    OutputFormat,
    alignment_pairs,
    format_translation,
    from_columns,
    from_forced,
    from_json,
)

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


@pytest.mark.parametrize(("line", "result"), [("one", "1 column"), ("one\ttwo", "2 columns")])
def test_missing_column_is_refused(line: str, result: str) -> None:
    with pytest.raises(DataError, match=f"^in:9: has {result}, but column 3 is the source$"):
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
    message = f"line {number} of `target_prefix` has text, line {number} of the source none"

    with pytest.raises(DataError, match=f"^in:3: {message}$"):
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
    with pytest.raises(DataError, match=r"a number has too many digits$"):
        from_json('{"source": "one", "x": ' + "9" * 5000 + "}", "in:4")


def test_null_is_no_prefix() -> None:
    assert from_json('{"source": "a", "target_prefix": null}', "in:1").target_prefix == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one", "is not a JSON object: expected a value at character 1, found `o`"),
        ('{"source": "one"', "is not a JSON object: expected `,` at character 17, found the end"),
        ('["one"]', "is not a JSON object"),
        ('"one"', "is not a JSON object"),
        ("null", "is not a JSON object"),
        ('{"id": 5}', "has neither `source` nor `text`"),
        ('{"source": 5}', "`source` is not a string"),
        ('{"text": null}', "`text` is not a string"),
        ('{"source": "one", "target_prefix": ["a"]}', "`target_prefix` is not a string"),
        ('{"source": "one", "x": NaN}', "has a number that cannot be kept: `NaN` is not JSON"),
        (
            '{"source": "one", "x": 1e999}',
            "has a number that cannot be kept: a number is not finite",
        ),
        (
            '{"source": "one", "x": ' + "9" * 5000 + "}",
            "has a number that cannot be kept: a number has too many digits",
        ),
        ("[" * 100_000, "has objects or lists nested too deeply"),
    ],
    ids=lambda text: text[:30],
)
def test_invalid_object_is_refused_with_its_position(line: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        from_json(line, "in:4")

    assert str(caught.value).startswith(f"in:4: {message}")


LINE = InputLine("one")
TWO = Translation(
    "one",
    (
        Candidate("eins", -0.25, -0.5, ("▁eins", "</s>"), (-0.2, -0.3)),
        Candidate("ein", -1.123456, -2.0, ("▁ein", "</s>"), (-0.5, -1.5)),
    ),
    num_tokens=2,
)
BLANK = Translation("", (Candidate("", 0.0, 0.0),), num_tokens=0)


def lines(
    translation: Translation, *, line: InputLine = LINE, index: int = 0, **form: Any
) -> Iterator[str]:
    return format_translation(line, translation, index, OutputFormat(**form))


def test_text_is_the_best_translation() -> None:
    assert list(lines(TWO)) == ["eins"]


def test_requested_score_precedes_the_text() -> None:
    assert list(lines(TWO, with_score=True)) == ["-0.2500\teins"]


def test_scores_of_the_pieces_stand_behind_the_text_as_marian_has_them() -> None:
    assert list(lines(TWO, word_scores=True)) == ["eins ||| WordScores= -0.2000 -0.3000"]
    assert list(lines(BLANK, word_scores=True)) == [" ||| WordScores="]


def test_n_best_list_has_the_format_of_moses() -> None:
    assert list(lines(TWO, index=7, n_best=2)) == [
        "7 ||| eins ||| logprob=-0.5000 ||| -0.2500",
        "7 ||| ein ||| logprob=-2.0000 ||| -1.1235",
    ]


def test_scores_of_the_pieces_stand_before_the_features() -> None:
    assert list(lines(TWO, index=7, n_best=2, word_scores=True)) == [
        "7 ||| eins ||| WordScores= -0.2000 -0.3000 ||| logprob=-0.5000 ||| -0.2500",
        "7 ||| ein ||| WordScores= -0.5000 -1.5000 ||| logprob=-2.0000 ||| -1.1235",
    ]


def test_translation_is_the_last_column() -> None:
    line = InputLine("one", columns=("7", "one", ""))

    assert list(lines(TWO, line=line)) == ["7\tone\t\teins"]
    assert list(lines(TWO, line=line, with_score=True)) == ["7\tone\t\t-0.2500\teins"]


def test_translation_with_a_tab_is_one_column() -> None:
    tabbed = Translation("one", (Candidate("a\tb", 0, 0),), 1)

    assert list(lines(tabbed, line=InputLine("one", columns=("one",)))) == ["one\ta b"]
    assert list(lines(tabbed)) == ["a\tb"]


def test_json_has_source_translation_and_score() -> None:
    (line,) = lines(TWO, kind="json")

    assert json.loads(line) == {"source": "one", "translation": "eins", "score": -0.25}


def test_json_has_all_candidates_of_an_n_best_list() -> None:
    (line,) = lines(TWO, kind="json", n_best=2)

    assert json.loads(line)["n_best"] == [
        {"translation": "eins", "score": -0.25, "log_probability": -0.5},
        {"translation": "ein", "score": -1.1235, "log_probability": -2.0},
    ]


def test_json_has_requested_pieces_and_their_scores() -> None:
    (line,) = lines(TWO, kind="json", n_best=2, word_scores=True)

    result = json.loads(line)
    assert result["log_probability"] == -0.5
    assert (result["pieces"], result["word_scores"]) == (["▁eins", "</s>"], [-0.2, -0.3])
    assert result["n_best"][1]["pieces"] == ["▁ein", "</s>"]
    assert result["n_best"][1]["word_scores"] == [-0.5, -1.5]


def test_json_keeps_the_fields_of_the_input_but_for_its_own() -> None:
    fields = {"id": 7, "text": "one", "translation": "old", "nested": {"a": [None, 1.5]}}

    (line,) = lines(TWO, line=InputLine("one", fields=fields), kind="json")

    assert json.loads(line) == {**fields, "translation": "eins", "score": -0.25}
    assert fields["translation"] == "old"


@pytest.mark.parametrize("odd", ["\u2028\u2029", "\x85", "\v\f\r", '"\\', "\t", "\x1b[2J", "\n"])
def test_json_is_one_line_for_any_text(odd: str) -> None:
    (line,) = lines(Translation(f"a{odd}b", (Candidate(f"c{odd}d", 0, 0),), 1), kind="json")

    assert "\n" not in line
    assert json.loads(line)["source"] == f"a{odd}b"
    assert json.loads(line)["translation"] == f"c{odd}d"


def test_json_keeps_letters_readable() -> None:
    (line,) = lines(Translation("猫", (Candidate("fünf", 0, 0),), 1), kind="json")

    assert line == '{"source": "猫", "translation": "fünf", "score": 0}'


def test_json_keeps_half_a_surrogate_pair_as_an_escape() -> None:
    line = InputLine("?", fields={"id": "\ud800"})

    (text,) = lines(TWO, line=line, kind="json")

    assert json.loads(text.encode()) == {"id": "\ud800", "translation": "eins", "score": -0.25}


# Alignments.

ALIGNED = Translation(
    "a b c",
    (
        Candidate(
            "x y",
            -0.25,
            -0.5,
            ("x", "y", "</s>"),
            (-0.1, -0.2, -0.2),
            ((0.1, 0.2, 0.6), (0.4, 0.4, 0)),
        ),
    ),
    num_tokens=3,
)


def test_hard_alignment_is_the_best_word_for_each_in_pharaohs_format() -> None:
    assert list(lines(ALIGNED, alignment="hard")) == ["x y ||| 0-1 2-0"]
    assert list(lines(BLANK, alignment="hard")) == [" ||| "]


def test_threshold_gives_the_pairs_of_more_than_it() -> None:
    assert list(lines(ALIGNED, alignment=0.2)) == ["x y ||| 0-1 1-1 2-0"]
    assert list(lines(ALIGNED, alignment=0.0)) == ["x y ||| 0-0 0-1 1-0 1-1 2-0"]
    assert list(lines(ALIGNED, alignment=0.9)) == ["x y ||| "]


def test_soft_alignment_has_the_weights_of_each_target_word() -> None:
    expected = "x y ||| 0.1000,0.2000,0.6000 0.4000,0.4000,0.0000"
    assert list(lines(ALIGNED, alignment="soft")) == [expected]
    assert list(lines(BLANK, alignment="soft")) == [" ||| "]


def test_word_that_came_from_nothing_has_no_pair() -> None:
    assert alignment_pairs([[0.0, 0.0], [0.0, 0.5]], "hard") == [(1, 1)]
    assert alignment_pairs([[], []], "hard") == []


def test_alignment_precedes_the_word_scores_as_in_marian() -> None:
    scores = "WordScores= -0.1000 -0.2000 -0.2000"
    options: dict[str, Any] = {"alignment": "hard", "word_scores": True}

    assert list(lines(ALIGNED, **options)) == [f"x y ||| 0-1 2-0 ||| {scores}"]
    assert list(lines(ALIGNED, index=3, n_best=2, **options)) == [
        f"3 ||| x y ||| 0-1 2-0 ||| {scores} ||| logprob=-0.5000 ||| -0.2500"
    ]


def test_alignment_in_json_is_a_list_of_pairs_or_a_row_for_each_target_word() -> None:
    (hard,) = lines(ALIGNED, kind="json", alignment="hard")
    (soft,) = lines(ALIGNED, kind="json", alignment="soft", n_best=2)
    (plain,) = lines(ALIGNED, kind="json")

    assert json.loads(hard)["alignment"] == [[0, 1], [2, 0]]
    assert json.loads(soft)["alignment"] == [[0.1, 0.2, 0.6], [0.4, 0.4, 0]]
    assert json.loads(soft)["n_best"][0]["alignment"] == [[0.1, 0.2, 0.6], [0.4, 0.4, 0]]
    assert "alignment" not in plain
