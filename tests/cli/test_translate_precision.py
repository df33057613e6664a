"""Translations in fewer bits, and without the scores that nobody asked for."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tests.translation.native_translator import needs_native

INT8 = pytest.param("int8", marks=needs_native)


@pytest.fixture
def model(tiny_model: Path) -> list[str]:
    return ["translate", "-q", "--model", str(tiny_model), "--device", "cpu"]


def without_warning(err: str) -> str:
    """What a command said besides that this machine has no bf16."""
    return re.sub("warning: this processor has no bf16 instructions: .*fp32\n", "", err)


@pytest.mark.parametrize("flags", ["", "--greedy", "--greedy --with-score"])
@pytest.mark.parametrize("precision", ["bf16", INT8])
def test_fewer_bits_translate_as_well(
    model: list[str], tiny_corpus: TinyCorpus, run_tfm: RunTfm, precision: str, flags: str
) -> None:
    command = [*model, "--input", tiny_corpus.path("test.en"), *flags.split(), "--precision"]
    expected = tiny_corpus.lines("test.de")

    plain, rounded = (run_tfm([*command, name]) for name in ("fp32", precision))

    assert (rounded.code, without_warning(rounded.err)) == (0, "")
    of_plain, of_rounded = (
        [line.split("\t")[-1] for line in result.out.split("\n")[:-1]]
        for result in (plain, rounded)
    )
    assert sum(one == other for one, other in zip(of_rounded, expected, strict=True)) > 33  # of 40
    assert sum(one != other for one, other in zip(of_rounded, of_plain, strict=True)) <= 2


@pytest.mark.parametrize("precision", ["bf16", INT8])
def test_a_model_is_scored_in_fewer_bits(
    tiny_model: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm, precision: str
) -> None:
    result = run_tfm([
        "evaluate", tiny_corpus.path("test.de"), "--model", str(tiny_model), "--device", "cpu",
        "--source", tiny_corpus.path("test.en"), "--precision", precision, "--workers", "1",
    ])  # fmt: skip

    assert result.code == 0
    assert json.loads(result.out)["score"] > 95


def test_arithmetic_that_cpus_lack_is_refused(model: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm([*model, "--precision", "fp16"], "one\n")

    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "error: `--precision fp16` is for GPUs; CPUs compute it far slower\n"
        "hint: use int8, or bf16 on a processor that has it\n"
    )


def test_greedy_translations_are_the_same_with_and_without_scores(
    model: list[str], tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    command = [*model, "--precision", "fp32", "--greedy", "-i", tiny_corpus.path("test.en")]

    plain = run_tfm(command).out.split("\n")
    scored = run_tfm([*command, "--with-score"]).out.split("\n")

    assert [line.partition("\t")[2] for line in scored] == plain
    assert len(plain) == 41


@pytest.mark.parametrize(
    "flags",
    [
        "", "--with-score", "--format json", "--word-scores", "--alignment hard",
        "--alignment soft --with-score", "--word-scores --format json", "--n-best 1 --format json",
        "--n-best 1 --with-score", "--tsv", "--tsv --with-score", "--max-length 2",
        "--max-length 2 --with-score", "--force-decode", "--force-decode --with-score",
        "--json-input", "--json-input --format json", "--alignment soft --format json",
        "--repetition-penalty 1.5 --with-score", "--sampling", "--sampling --with-score",
        "--n-best 2", pytest.param("--precision int8 --format json", marks=needs_native),
    ],
)  # fmt: skip
def test_no_score_is_ever_not_a_number(model: list[str], run_tfm: RunTfm, flags: str) -> None:
    texts = ["one two three", "", "five"]
    lines = [json.dumps({"text": text}) if "--json-input" in flags else text for text in texts]
    alone = "--n-best 2" in flags or "--sampling" in flags
    greedy = [] if alone else ["--greedy"]

    result = run_tfm([*model, *greedy, *flags.split()], "".join(f"{line}\n" for line in lines))

    assert result.code == 0
    assert "nan" not in result.out.lower()
    if "json" in flags.replace("--json-input", ""):
        for line in result.out.split("\n")[:-1]:
            assert json.loads(line, parse_constant=pytest.fail)["score"] <= 0
