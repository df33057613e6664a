import json

import pytest

from tfm_cli.translation.render import as_json, as_n_best, as_text
from tfm_cli.translation.translator import Candidate, Translation

TWO = Translation(
    "one",
    (Candidate("eins", -0.25, -0.5), Candidate("ein", -1.123456, -2.0)),
    num_pieces=2,
)


def test_text_is_the_best_translation() -> None:
    assert list(as_text(TWO, with_score=False)) == ["eins"]


def test_score_stands_before_the_text_if_asked_for() -> None:
    assert list(as_text(TWO, with_score=True)) == ["-0.2500\teins"]


def test_n_best_list_has_the_format_of_moses() -> None:
    assert list(as_n_best(TWO, 7)) == [
        "7 ||| eins ||| logprob=-0.5000 ||| -0.2500",
        "7 ||| ein ||| logprob=-2.0000 ||| -1.1235",
    ]


def test_json_has_source_translation_and_score() -> None:
    (line,) = as_json(TWO, n_best=1)

    assert json.loads(line) == {"source": "one", "translation": "eins", "score": -0.25}


def test_json_has_all_candidates_where_n_best_is_asked_for() -> None:
    (line,) = as_json(TWO, n_best=2)

    assert json.loads(line)["n_best"] == [
        {"translation": "eins", "score": -0.25, "log_probability": -0.5},
        {"translation": "ein", "score": -1.1235, "log_probability": -2.0},
    ]


@pytest.mark.parametrize("odd", ["\u2028\u2029", "\x85", "\v\f\r", '"\\', "\t", "\x1b[2J"])
def test_json_is_one_line_whatever_the_text(odd: str) -> None:
    (line,) = as_json(Translation(f"a{odd}b", (Candidate(f"c{odd}d", 0, 0),), 1), n_best=1)

    assert "\n" not in line
    assert json.loads(line)["source"] == f"a{odd}b"
    assert json.loads(line)["translation"] == f"c{odd}d"


def test_json_keeps_letters_readable() -> None:
    (line,) = as_json(Translation("猫", (Candidate("fünf", 0, 0),), 1), n_best=1)

    assert line == '{"source": "猫", "translation": "fünf", "score": 0}'
