"""`tfm score`: a score for each pair, in order, which is that of `tfm translate`."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import RunTfm, TinyCorpus
from tests.translation.native_translator import needs_native
from tfm_cli.native.library import LIBRARY, NONE

NOTE = "pairs with two blank sides, whose score is 0"

ODD = [b"one", b" ", b"\r", b"\xe2\x80\xa8", b"\0", b"\xff", b"\x85", b"\t", b"\f", b"\xed\xa0"]
SIDE = st.lists(st.sampled_from(ODD), max_size=5).map(b"".join)


@pytest.fixture
def model(tiny_model: Path) -> list[str]:
    return ["--model", str(tiny_model), "--device", "cpu", "--precision", "fp32", "--quiet"]


@pytest.fixture
def corpus(tiny_corpus: TinyCorpus) -> list[str]:
    return ["-s", tiny_corpus.path("test.en"), "-t", tiny_corpus.path("test.de")]


def numbers(text: str) -> list[float]:
    return [float(line) for line in text.split("\n")[:-1]]


@pytest.mark.parametrize("library", ["", pytest.param(NONE, id="torch")])
@pytest.mark.parametrize(
    "flags", ["--greedy", "--beam 4", "--beam 3 --length-penalty 0", "-n 0.6 --length-norm wu"]
)
def test_scores_are_those_of_the_search(
    model: list[str],
    tiny_corpus: TinyCorpus,
    run_tfm: RunTfm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    library: str,
) -> None:
    if library:
        monkeypatch.setenv(LIBRARY, library)
    source = tmp_path / "source"
    source.write_text("\n".join([*tiny_corpus.lines("test.en"), "", " ", "one"]), encoding="utf-8")
    found = run_tfm(
        [
            "translate",
            *model,
            *flags.split(),
            "-i",
            str(source),
            "--with-score",
            "--max-tokens",
            "9",
        ]
    ).out.split("\n")[:-1]
    expected = [float(line.split("\t")[0]) for line in found]
    target = tmp_path / "target"
    target.write_text("".join(line.split("\t")[1] + "\n" for line in found), encoding="utf-8")
    kept = flags.split() if "-n" in flags else flags.split()[2:]

    result = run_tfm(["score", *model, "-s", str(source), "-t", str(target), *kept])

    assert result.code == 0, result.err
    assert numbers(result.out) == pytest.approx(expected, abs=1.5e-4)  # both are rounded


def test_word_scores_are_those_of_the_search(
    model: list[str], tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    flags = ["--format", "json", "--word-scores"]
    lines = tiny_corpus.path("test.en")
    found = run_tfm(["translate", *model, *flags, "--n-best", "3", "-i", lines]).out
    expected = [
        {"source": one["source"]} | best
        for one in map(json.loads, found.split("\n")[:-1])
        for best in one["n_best"]
    ]
    text = "".join(json.dumps(one | {"target": one["translation"]}) + "\n" for one in expected)

    result = run_tfm(["score", *model, *flags, "--pairs", "-", "--pairs-format", "jsonl"], text)

    assert result.code == 0, result.err
    rows = [json.loads(line) for line in result.out.split("\n")[:-1]]
    for one, other in zip(rows, expected, strict=True):
        assert one["pieces"] == other["pieces"]
        assert one["source"] == other["source"]
        assert one["target"] == other["translation"]
        assert one["word_scores"] == pytest.approx(other["word_scores"], abs=1.5e-4)
        for name in ("score", "log_probability"):
            assert one[name] == pytest.approx(other[name], abs=1.5e-4)


@needs_native
def test_output_is_the_same_with_any_batches_and_processes(
    model: list[str], corpus: list[str], run_tfm: RunTfm
) -> None:
    command = ["score", *model, *corpus, "--word-scores"]

    plain = run_tfm(command)
    others = [
        run_tfm([*command, *flags.split()])
        for flags in ("--max-tokens 1", "--buffer-size 3 --workers 2", "--workers 2")
    ]

    assert plain.code == 0
    assert [(other.code, other.out) for other in others] == [(0, plain.out)] * 3


def test_all_inputs_give_the_same_scores(
    model: list[str], corpus: list[str], tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    sides = tiny_corpus.lines("test.en"), tiny_corpus.lines("test.de")
    both = list(zip(*sides, strict=True))
    tsv = "".join(f"{source}\t{target}\n" for source, target in both)
    objects = "".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in both)
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(tsv.encode()))
    (tmp_path / "a.jsonl").write_text(objects, encoding="utf-8")
    expected = run_tfm(["score", *model, *corpus])

    found = [
        run_tfm(["score", *model, "--pairs", str(tmp_path / "a.tsv.gz")]),
        run_tfm(["score", *model, "--pairs", str(tmp_path / "a.jsonl")]),
        run_tfm(["score", *model, "--pairs", "-", "--pairs-format", "tsv"], tsv),
        run_tfm(["score", *model, *corpus[:3], "-"], "\n".join(sides[1])),
        run_tfm(["score", *model, *corpus[2:], "-s", "-"], "\r\n".join(sides[0]) + "\r\n"),
    ]

    assert expected.out.count("\n") == 40
    assert [(each.code, each.out, each.err) for each in found] == [(0, expected.out, "")] * 5


def test_right_translations_score_higher_than_wrong_ones(
    model: list[str], corpus: list[str], tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    wrong = "\n".join(reversed(tiny_corpus.lines("test.de")))

    right = numbers(run_tfm(["score", *model, *corpus]).out)
    others = numbers(run_tfm(["score", *model, *corpus[:3], "-"], wrong).out)

    assert sum(one > other for one, other in zip(right, others, strict=True)) >= 38


def test_blank_sides_have_scores(model: list[str], run_tfm: RunTfm) -> None:
    text = "one\teins\n\n\t\none\t\n\teins\n"
    command = ["score", *model, "--pairs", "-", "--pairs-format", "tsv", "-f", "json"]

    result = run_tfm([*command, "--word-scores"], text)

    rows = [json.loads(line) for line in result.out.split("\n")[:-1]]
    assert result.code == 0
    assert result.err == f"warning: standard input: {NOTE}: 2 (first: line 2)\n"
    assert [row["pieces"] for row in rows] == [
        ["▁eins", "</s>"], [], [], ["</s>"], ["▁eins", "</s>"],
    ]  # fmt: skip
    assert rows[1]["score"] == rows[2]["score"] == 0
    assert rows[0]["score"] > rows[4]["score"]
    assert rows[3]["score"] < -1


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(SIDE, SIDE), max_size=20))
def test_as_many_lines_come_out_as_pairs_go_in(
    model: list[str], run_tfm: RunTfm, tmp_path: Path, pairs: list[tuple[bytes, bytes]]
) -> None:
    padding = (b"one two three four\n" * 3, b"eins zwei drei\n" * 3)  # so that no file looks binary
    for side, name in enumerate(("s", "t")):
        lines = b"".join(pair[side] + b"\n" for pair in pairs)
        (tmp_path / name).write_bytes(padding[side] + lines)
    command = ["score", *model, "-s", str(tmp_path / "s"), "-t", str(tmp_path / "t")]

    result = run_tfm(command)

    assert result.code == 0 or "looks binary" in result.err, result.err
    if result.code == 0:
        assert len(numbers(result.out)) == len(pairs) + 3
        assert all(number <= 0 for number in numbers(result.out))


@pytest.mark.parametrize(("more", "counts"), [("de", "40 and 41"), ("en", "41 and 40")])
def test_misaligned_files_are_told_with_their_lines(
    model: list[str], tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path, more: str,
    counts: str,
) -> None:  # fmt: skip
    paths = {}
    for side in ("en", "de"):
        paths[side] = str(tmp_path / side)
        lines = tiny_corpus.lines(f"test.{side}") + (["more"] if side == more else [])
        Path(paths[side]).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    output = tmp_path / "out"

    command = ["score", *model, "-s", paths["en"], "-t", paths["de"]]
    result = run_tfm([*command, "-o", str(output)])
    shown = run_tfm(command)

    assert (result.code, result.out) == (3, "")
    assert f"{paths['en']} and {paths['de']} do not align: {counts} lines" in result.err
    assert not output.exists()
    assert shown.code == 3
    assert shown.out.count("\n") == 40  # those that align


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("one\teins\ntwo\n", "tsv", "standard input:2: has 1 column, expected source<TAB>target"),
        ('{"source": "one"}\n', "jsonl", "standard input:1: lacks `target`"),
        ("one\n", "jsonl", "standard input:1: is not JSON"),
    ],
)
def test_line_without_a_pair_is_told(
    model: list[str], run_tfm: RunTfm, text: str, kind: str, message: str
) -> None:
    result = run_tfm(["score", *model, "--pairs", "-", "--pairs-format", kind], text)

    assert result.code == 3
    assert message in result.err


def test_output_appears_when_it_is_complete(
    model: list[str], corpus: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    expected = run_tfm(["score", *model, *corpus]).out

    result = run_tfm(["score", *model, *corpus, "-o", str(tmp_path / "new" / "out")])

    assert (result.code, result.out) == (0, "")
    assert (tmp_path / "new" / "out").read_text(encoding="utf-8") == expected
    assert os.listdir(tmp_path / "new") == ["out"]  # noqa: PTH208


def test_end_tells_pairs_and_speed(tiny_model: Path, corpus: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm(["score", "-m", str(tiny_model), *corpus, "--device", "cpu"])

    assert result.err.startswith("scored 40 pairs in ")
    assert result.err.endswith(" target tokens/s\n")


def test_ensemble_of_one_model_twice_scores_as_the_model(
    model: list[str], corpus: list[str], run_tfm: RunTfm
) -> None:
    alone = run_tfm(["score", *model, *corpus])
    twice = run_tfm(["score", *model[:2], *model, *corpus])

    assert numbers(twice.out) == pytest.approx(numbers(alone.out), abs=1.5e-4)


@needs_native
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_lower_precisions_score_alike(
    model: list[str], corpus: list[str], run_tfm: RunTfm, precision: str
) -> None:
    expected = numbers(run_tfm(["score", *model, *corpus]).out)

    result = run_tfm(["score", *model, *corpus, "--precision", precision])

    assert result.code == 0
    assert numbers(result.out) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "`--source` and `--target` are missing"),
        (["-s", "a"], "`--target` is missing"),
        (["-t", "a"], "`--source` is missing"),
        (["-s", "a", "--pairs", "a.tsv"], "`--pairs` and `--source` exclude each other"),
        (["-s", "-", "-t", "-"], "standard input can be read only once"),
        (["-s", "a", "-t", "b", "--pairs-format", "tsv"], "`--pairs-format` needs `--pairs`"),
        (["--pairs", "a.txt"], "a.txt: its name does not show the format of its pairs"),
        (["-s", "a", "-t", "b", "--max-tokens", "0"], "`--max-tokens` must be at least 1, got 0"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_of_the_call(run_tfm: RunTfm, flags: list[str], message: str) -> None:
    result = run_tfm(["score", *flags])

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {message}")
    assert "Traceback" not in result.err


def test_missing_model_and_missing_text_are_told(
    model: list[str], corpus: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    no_model = run_tfm(["score", "-m", str(tmp_path / "none"), *corpus])
    no_text = run_tfm(["score", *model, "-s", str(tmp_path / "none"), *corpus[2:]])

    assert (no_model.code, no_model.out) == (4, "")
    assert (no_text.code, no_text.out) == (3, "")
    assert f"{tmp_path}/none: cannot be read" in no_text.err


def test_pair_of_unbounded_length_is_refused_by_its_line(
    model: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    """Memory and time grow with the square of the length."""
    (tmp_path / "a").write_text("one\n" + "one " * 5000 + "\n")
    (tmp_path / "b").write_text("eins\neins\n")

    result = run_tfm(["score", *model, "-s", str(tmp_path / "a"), "-t", str(tmp_path / "b")])

    assert result.code == 3
    assert f"{tmp_path / 'a'}:2: the source has 5000 tokens, expected at most 4096" in result.err
    assert result.out == ""
