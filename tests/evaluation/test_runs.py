import json
import statistics

import pytest

from tfm_cli.errors import ConfigError
from tfm_cli.evaluation.runs import render, spreads
from tfm_cli.evaluation.scores import corpus_scores
from tfm_cli.evaluation.significance import compare

REFERENCE = ["the cat sat on the mat today", "a dog ran over the old road", "all is well that ends"]
SYSTEMS = [
    ("one", ["the cat sat on a mat today", "a dog ran over the old road", "all is well"]),
    ("two", ["the cat sat on the mat", "a dog walks over the road", "all is well that ends"]),
    ("three", REFERENCE),
]


def test_mean_and_deviation_are_those_of_the_single_scores() -> None:
    comparison = compare(SYSTEMS, [REFERENCE], metrics=("bleu", "chrf", "ter"))

    found = spreads(comparison)

    assert [spread.metric for spread in found] == ["BLEU", "chrF2", "TER"]
    for metric, spread in zip(("bleu", "chrf", "ter"), found, strict=True):
        values = [
            corpus_scores(lines, [REFERENCE], metrics=(metric,))[0].value for _, lines in SYSTEMS
        ]
        mean = sum(values) / 3
        assert spread.mean == pytest.approx(mean)
        assert spread.deviation**2 == pytest.approx(sum((v - mean) ** 2 for v in values) / 2)


def test_text_and_json_have_the_same_numbers() -> None:
    comparison = compare(SYSTEMS, [REFERENCE])

    text = render(comparison, "text", width=3).split("\n")
    (table,) = json.loads(render(comparison, "json"))

    values = [run["score"] for run in table["runs"]]
    assert [run["system"] for run in table["runs"]] == ["one", "two", "three"]
    assert table["mean"] == pytest.approx(statistics.fmean(values))
    assert table["std"] == pytest.approx(statistics.stdev(values))
    assert table["signature"].startswith("nrefs:1|")
    assert text[1].split() == ["BLEU", "one", f"{values[0]:.3f}"]
    assert text[4].endswith(f"  {table['mean']:.3f} ± {table['std']:.3f}")
    assert f"BLEU|{table['signature']}" in text
    assert render(comparison, "text", width=3, value_only=True) == f"{table['mean']:.3f}"


def test_one_run_has_no_deviation() -> None:
    with pytest.raises(ConfigError, match="two runs or more"):
        spreads(compare(SYSTEMS[:1], [REFERENCE]))
