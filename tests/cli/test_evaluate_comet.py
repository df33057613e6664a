"""`tfm evaluate --comet-python --comet-model` in every format, with a stand-in for COMET."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from tests import fake_comet
from tests.conftest import RunTfm

SOURCE = ["ein Haus", "zwei kleine Katzen", "drei", "gut"]
REFERENCE = ["a house", "two little cats", "three", "all is well"]
SYSTEMS = {
    "one": ["a house", "two cats", "four", "is it well"],
    "two": ["the house", "two little cats", "three", "well"],
}
SIGNATURE = (
    "model:comet-model|class:regression_metric|license:apache-2.0|nrefs:1|version:"
    + fake_comet.VERSION
)
FLAGS = ["--source", "src", "--comet-python", "env/bin/python", "--comet-model", "comet-model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comet")
    fake_comet.environment(folder / "env")
    fake_comet.model(folder / "comet-model")
    for name, lines in {"src": SOURCE, "ref": REFERENCE, **SYSTEMS}.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)


def segments(system: str) -> list[float]:
    return list(map(fake_comet.score, SOURCE, SYSTEMS[system], REFERENCE))


def mean(system: str) -> float:
    return statistics.fmean(segments(system))


def test_text_has_comet_after_the_other_metrics(run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", "-i", "one", "-m", "chrf", "-f", "text", *FLAGS])

    chrf, comet = result.out.splitlines()
    assert result.code == 0
    assert chrf.strip().startswith("chrF2|")
    assert comet.strip() == f"COMET|{SIGNATURE} = {mean('one'):.4f}"
    assert result.err.count("is a pickle, which ") == 1


def test_json_has_the_parts_of_the_signature(run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", "-i", "one", "-m", "comet", "-w", "2", *FLAGS])

    table = json.loads(result.out)
    assert table == {
        "name": "COMET",
        "score": round(mean("one"), 5),
        "signature": SIGNATURE,
        "model": "comet-model",
        "class": "regression_metric",
        "license": "apache-2.0",
        "nrefs": "1",
        "version": fake_comet.VERSION,
    }


def test_only_the_number(run_tfm: RunTfm) -> None:
    result = run_tfm(
        ["evaluate", "ref", "-i", "one", "-m", "comet", "chrf", "-b", "-f", "text", *FLAGS]
    )

    chrf, comet = result.out.splitlines()
    assert comet == f"{mean('one'):.4f}"
    assert float(chrf) > 0
    assert f"COMET|{SIGNATURE}\n" in result.err


def test_short_signature(run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", "-i", "one", "-m", "comet", "-sh", "-f", "text", *FLAGS])

    assert "COMET|m:comet-model|c:regression_metric|lic:apache-2.0|#:1|v:" in result.out


def test_each_line_by_itself(run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", "-i", "two", "-m", "comet", "-sl", "-b", *FLAGS])

    assert result.out.splitlines() == [f"{value:.4f}" for value in segments("two")]


def test_confidence_interval_is_that_of_the_resampled_means(run_tfm: RunTfm) -> None:
    result = run_tfm(
        ["evaluate", "ref", "-i", "one", "-m", "comet", "-ci", "-cin", "200", "-w", "3", *FLAGS]
    )

    drawn = np.random.default_rng(12345).choice(4, size=(200, 4), replace=True)
    means = np.sort(np.array(segments("one"))[drawn].mean(axis=1))
    table = json.loads(result.out)
    assert table["confidence_mean"] == pytest.approx(means.mean(), abs=1e-5)
    assert table["confidence_var"] == pytest.approx((means[194] - means[5]) / 2, abs=1e-5)


@pytest.mark.parametrize("style", ["json", "text", "latex"])
def test_several_systems(style: str, run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", "-i", "one", "two", "-f", style, *FLAGS])

    assert result.code == 0
    if style == "json":
        found = {table["system"]: table["COMET"]["score"] for table in json.loads(result.out)}
        assert found == pytest.approx({name: mean(name) for name in SYSTEMS})
    else:
        rows = {
            name: line
            for line in result.out.split("\n")
            for name in SYSTEMS
            if name in line.split()[:2] and "BLEU" not in line
        }
        assert f"{mean('one'):.4f}" in rows["one"]
        assert f"{mean('two'):.4f}" in rows["two"]
        assert "\u2060" not in result.out
        assert SIGNATURE in result.out


@pytest.mark.parametrize("flag", ["--paired-bs", "--paired-ar"])
@pytest.mark.parametrize("style", ["json", "text", "latex"])
def test_paired_tests(flag: str, style: str, run_tfm: RunTfm) -> None:
    result = run_tfm(
        ["evaluate", "ref", "-i", "one", "two", "-m", "comet", flag, "-f", style, *FLAGS]
    )

    assert result.code == 0
    if style != "json":
        assert f"{mean('two'):.4f}" in result.out
        return
    table = json.loads(result.out)[1]["COMET"]
    one, two = np.array(segments("one")), np.array(segments("two"))
    draw = np.random.default_rng(12345)
    if flag == "--paired-bs":
        drawn = draw.choice(4, size=(1000, 4), replace=True)
        gaps = np.abs(two[drawn].mean(axis=1) - one[drawn].mean(axis=1))
        gaps = gaps - gaps.mean()
        num_samples = 1000
    else:
        keeps = draw.integers(2, size=(10000, 4), dtype=bool)
        gaps = np.abs(np.where(keeps, one - two, two - one).mean(axis=1))
        num_samples = 10000
    least = abs(two.mean() - one.mean())
    assert abs(least - gaps).min() > 1e-6 or flag == "--paired-ar"
    counts = [(gaps > least + nudge).sum() for nudge in (1e-6, -1e-6)]
    low, high = ((count + 1) / (num_samples + 1) for count in counts)
    assert low <= table["p_value"] <= high
    assert table["score"] == pytest.approx(two.mean())


def test_mean_over_runs(run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", "-i", "one", "two", "-m", "comet", "--mean", *FLAGS])

    (table,) = json.loads(result.out)
    values = [mean("one"), mean("two")]
    assert table["mean"] == pytest.approx(statistics.fmean(values))
    assert table["std"] == pytest.approx(statistics.stdev(values))


def test_fail_under_is_in_the_scale_of_comet(run_tfm: RunTfm) -> None:
    arguments = ["evaluate", "ref", "-i", "one", "-m", "comet", *FLAGS, "--fail-under"]
    value = mean("one")

    passes, fails = (run_tfm([*arguments, f"{value + more}"]) for more in (-0.01, 0.01))

    assert (passes.code, fails.code) == (0, 1)
    assert f"comet is {value:.4f}, expected at least" in fails.err


def test_model_without_references_has_none_in_its_signature(run_tfm: RunTfm) -> None:
    if not Path("kiwi").exists():
        fake_comet.model(Path("kiwi"), '{"references": false}')

    result = run_tfm(["evaluate", "ref", "-i", "one", "-m", "comet", *FLAGS[:-1], "kiwi"])

    assert json.loads(result.out)["nrefs"] == "0"


def test_everything_that_is_missing_is_reported(run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", "-i", "one", "-m", "comet"])

    assert result.code == 2
    assert result.err.splitlines() == [
        "error: the command has 3 problems",
        "  COMET needs `--comet-python`",
        "  COMET needs `--comet-model`",
        "  COMET needs `--source`, the text that was translated",
    ]


def test_one_reference_only(run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", "ref", "-i", "one", *FLAGS])

    assert (result.code, result.err) == (2, "error: COMET takes one reference, got 2\n")


def test_unusable_model_is_found_before_anything_is_read(run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", "-i", "-", *FLAGS[:-1], "nowhere"])

    assert result.code == 4
    assert result.err.startswith("error: nowhere: there is no such directory\nhint: ")
    assert result.out == ""
