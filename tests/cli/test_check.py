import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tfm_cli.corpus.sources import sample_path

BLANKS = {"count": 0, "file": None, "line": None}


@pytest.fixture
def corpus(tiny_corpus: TinyCorpus) -> list[str]:
    return ["-s", tiny_corpus.path("train.en"), "-t", tiny_corpus.path("train.de")]


@pytest.fixture
def test_files(tiny_corpus: TinyCorpus) -> list[str]:
    return [
        "--test-source", tiny_corpus.path("test.en"), "--test-target", tiny_corpus.path("test.de"),
    ]  # fmt: skip


def report(run_tfm: RunTfm, *arguments: str, code: int = 0) -> dict[str, Any]:
    result = run_tfm(["check", "--format", "json", *arguments])
    assert result.code == code, result.err
    table: dict[str, Any] = json.loads(result.out)
    return table


def test_report_has_the_same_keys_always(run_tfm: RunTfm, corpus: list[str]) -> None:
    table = report(run_tfm, *corpus)

    assert list(table) == [
        "ok", "errors", "warnings", "notes", "tokenizer", "max_length", "corpora", "findings",
    ]  # fmt: skip
    train = table["corpora"]["train"]
    assert list(train) == [
        "files", "pairs", "pairs_with_text", "usable_pairs", "blank", "identical_sides", "repeats",
        "overlap_with_train", "unit", "lengths", "ratio", "tokens",
        "language_tags",
    ]  # fmt: skip
    assert train["blank"] == {"source": BLANKS, "target": BLANKS, "both": BLANKS}
    assert set(train["repeats"]) == {"pairs", "sources", "several_targets"}
    assert set(train["lengths"]["source"]) == {"total", "mean", "median", "p99", "max"}
    assert set(train["ratio"]) == {"p1", "median", "p99", "beyond_2", "beyond_3", "beyond_9"}
    assert list(train["files"][0]["source"]) == [
        "path", "problem", "hint", "lines", "line_end", "byte_order_mark", "last_line_ends",
        "binary", "invalid_byte", "invalid", "nul", "other_ends", "cut", "long", "separators",
        "bad",
    ]  # fmt: skip
    assert (table["tokenizer"], table["max_length"], train["tokens"]) == (None, 256, None)


def test_counts_are_those_of_the_files(
    run_tfm: RunTfm, corpus: list[str], test_files: list[str], tiny_corpus: TinyCorpus
) -> None:
    table = report(run_tfm, *corpus, *test_files, code=1)

    train = list(zip(tiny_corpus.lines("train.en"), tiny_corpus.lines("train.de"), strict=True))
    test = list(zip(tiny_corpus.lines("test.en"), tiny_corpus.lines("test.de"), strict=True))
    known = sum(pair in train for pair in test)
    result = table["corpora"]["train"]
    assert result["pairs"] == result["usable_pairs"] == 600
    assert result["repeats"]["pairs"] == 600 - len(set(train))
    assert result["lengths"]["source"]["total"] == sum(len(s.split()) for s, _ in train)
    assert table["corpora"]["test"]["overlap_with_train"]["pairs"] == known
    assert known > 0.01 * len(test)
    assert (table["ok"], table["errors"]) == (False, 1)
    assert [table[f"{level}s"] for level in ("error", "warning", "note")] == [
        sum(finding["level"] == level for finding in table["findings"])
        for level in ("error", "warning", "note")
    ]


def test_all_that_is_wrong_is_told_at_once_and_the_exit_code_is_1(
    run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.en").write_bytes(b"one\n\xfftwo\nthree\n")
    Path("a.de").write_bytes(b"eins\nzwei\n")
    Path("b.en").write_bytes("four\u2028\n".encode())
    flags = ["-s", "a.en", "-t", "a.de", "-s", "b.en", "-t", "none.de"]

    result = run_tfm(["check", *flags, "--valid-source", "a.en", "--valid-target", "a.de"])

    assert result.code == 1
    assert result.err == ("error: the corpus has 6 errors, expected none\n")
    lines = result.out.split("\n")
    spelled = [line for line in lines if line.startswith(("error", "warning", "note"))]
    assert spelled == [
        "error: a.en:2: byte 1: 0xff is not UTF-8; 1 line of that kind",
        "error: a.en and a.de do not align: 3 and 2 lines",
        "error: none.de: there is no such file",
        "error: a.en:2: byte 1: 0xff is not UTF-8; 1 line of that kind",
        "error: a.en and a.de do not align: 3 and 2 lines",
        "error: valid: 2 pairs occur in the training corpus (100.00 %)",
        "warning: b.en:1: 1 line with LS inside, which other programs take for a line end",
    ]
    place = lines.index(spelled[0])
    hint = "  convert the file to UTF-8 (`iconv`) or remove the line on both sides"
    assert lines[place + 1] == hint
    assert lines[-2:] == ["6 errors, 1 warning, 0 notes", ""]


def test_without_files_the_sample_corpus_is_checked(run_tfm: RunTfm) -> None:
    result = run_tfm(["check"])

    assert (result.code, result.err) == (0, "no text is given: checking the sample corpus\n")
    rows = [line.split() for line in result.out.split("\n")]
    assert ["train", sample_path("train.en"), "34000", "LF", "0"] in rows
    assert ["pairs", "34000", "1000"] in rows
    assert ["usable", "34000", "1000"] in rows
    assert ["target", "words", "316554", "9210"] in rows
    assert rows[-2] == ["0", "errors,", "0", "warnings,", "0", "notes"]


def test_model_and_its_tokenizer_count_the_same_tokens(
    run_tfm: RunTfm, corpus: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "odd").write_text("zwölf one 日\n", encoding="utf-8")
    odd = ["--test-source", str(tmp_path / "odd"), "--test-target", str(tmp_path / "odd")]

    by_model = report(run_tfm, *corpus, *odd, "--model", str(tiny_model), "--max-length", "5")
    by_file = report(
        run_tfm, *corpus, *odd, "--tokenizer", str(tiny_model / "tokenizer.model"),
        "--max-length", "5",
    )  # fmt: skip

    assert by_model["corpora"] == by_file["corpora"]
    assert [{**finding, "hint": ""} for finding in by_model["findings"]] == [
        {**finding, "hint": ""} for finding in by_file["findings"]
    ]
    train, test = by_model["corpora"]["train"], by_model["corpora"]["test"]
    # Of this model every word is a token.
    words = report(run_tfm, *corpus)["corpora"]["train"]
    assert train["lengths"] == words["lengths"]
    assert (train["unit"], words["unit"]) == ("tokens", "words")
    assert train["tokens"]["too_long"]["count"] == 600 - train["usable_pairs"] > 0
    assert test["tokens"]["unknown"]["source"] == {
        "count": 2, "file": odd[1], "line": 1,
        "commonest": [{"text": "ö", "count": 1}, {"text": "日", "count": 1}],
    }  # fmt: skip
    messages = [finding["message"] for finding in by_model["findings"]]
    assert f"{odd[1]}:1: 2 unknown source tokens (66.67 %): `ö` 1, `日` 1" in messages
    assert any(" pairs over the maximum length" in message for message in messages)


def test_lines_that_a_tokenizer_changes_are_counted_with_the_first(
    run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.en").write_text("one\n\nhalf ½\n½ km²\n" + "x\n" * 96, encoding="utf-8")
    Path("a.zh").write_text("一\n二\n\n（三），四\n" + "x\n" * 96, encoding="utf-8")
    learn = ["tokenize", "train", "-i", "a.en,a.zh", "--vocab-size", "300", "-q",
             "--no-hard-vocab-limit"]  # fmt: skip
    run_tfm([*learn, "--model-prefix", "as-it-is"])
    run_tfm([*learn, "--model-prefix", "nfkc", "--normalization-rule-name", "nfkc"])
    files = ["-s", "a.en", "-t", "a.zh"]

    result = report(run_tfm, *files, "--tokenizer", "nfkc.model")
    plain = report(run_tfm, *files, "--tokenizer", "as-it-is.model")
    text = run_tfm(["check", *files, "--tokenizer", "nfkc.model"])

    changed = {
        "source": {"count": 1, "file": "a.en", "line": 4, "text": "½ km²", "becomes": "1⁄2 km2"},
        "target": {
            "count": 1,
            "file": "a.zh",
            "line": 4,
            "text": "（三），四",
            "becomes": "(三),四",
        },
    }
    assert result["corpora"]["train"]["tokens"]["changed"] == changed
    findings = [finding for finding in result["findings"] if finding["code"] == "changed_line"]
    assert [(each["level"], each["file"], each["line"]) for each in findings] == [
        ("warning", "a.en", 4), ("warning", "a.zh", 4),
    ]  # fmt: skip
    assert findings[1]["message"] == (
        "a.zh:4: 1 line of the target changed by the tokenizer (1.02 %): "
        "`（三），四` becomes `(三),四`"
    )
    assert findings[1]["hint"] == "learn the tokenizer with `--normalization-rule-name identity`"
    assert "source lines changed by the tokenizer" in text.out
    assert f"warning: {findings[1]['message']}\n  {findings[1]['hint']}\n" in text.out
    for side in ("source", "target"):
        nothing = {**BLANKS, "text": None, "becomes": None}
        assert plain["corpora"]["train"]["tokens"]["changed"][side] == nothing
    assert "changed_line" not in [finding["code"] for finding in plain["findings"]]


def test_hint_fits_a_model_that_is_given(
    run_tfm: RunTfm, tiny_model: Path, corpus: list[str], tmp_path: Path
) -> None:
    odd = [str(tmp_path / "odd")] * 2
    Path(odd[0]).write_text("one 日 two\n", encoding="utf-8")
    files = [*corpus, "--test-source", odd[0], "--test-target", odd[1]]
    (tmp_path / "run.toml").write_text(
        f"[training]\npretrained_model = {json.dumps(str(tiny_model))}\n", encoding="utf-8"
    )

    hints = [
        [
            (finding["line"], finding["hint"])
            for finding in report(run_tfm, *files, *flags)["findings"]
            if finding["code"] == "unknown_token"
        ]
        for flags in (
            ["--model", str(tiny_model)],
            ["--config", str(tmp_path / "run.toml")],
            ["--tokenizer", str(tiny_model)],
        )
    ]

    assert hints[0] == hints[1]
    assert len(hints[0]) == len(hints[2]) == 2
    for line, hint in hints[0]:
        assert line == 1
        assert hint.startswith("the vocabulary of a trained model cannot grow: ")
    assert all("--byte-fallback" in hint for _, hint in hints[2])


def test_files_may_stand_in_a_file_of_settings(
    run_tfm: RunTfm, corpus: list[str], tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(
        f"[data]\nsource = [{json.dumps(corpus[1])}]\ntarget = [{json.dumps(corpus[3])}]\n"
        "max_length = 7\n"
    )

    table = report(run_tfm, "--config", str(tmp_path / "run.toml"))

    assert table["max_length"] == 7
    assert table["corpora"] == report(run_tfm, *corpus)["corpora"]


def test_test_text_can_be_checked_alone(run_tfm: RunTfm, test_files: list[str]) -> None:
    table = report(run_tfm, *test_files)

    assert list(table["corpora"]) == ["test"]
    assert table["corpora"]["test"]["overlap_with_train"] is None


def test_wrong_usage_is_told_before_the_work(
    run_tfm: RunTfm, corpus: list[str], tmp_path: Path
) -> None:
    both = run_tfm(["check", "--model", "m", "--tokenizer", "t"])
    unequal = run_tfm(["check", *corpus, "-s", "more.en"])
    half = run_tfm(["check", *corpus, "--test-source", "test.en"])
    missing = run_tfm(["check", *corpus, "--model", str(tmp_path / "none")])

    assert (both.code, both.err) == (
        2, "error: `--model` and `--tokenizer` exclude each other\n",
    )  # fmt: skip
    assert unequal.code == 2
    assert "data.target: must be as many files as data.source, got 1 and 2" in unequal.err
    assert (half.code, half.err) == (
        2, "error: `--test-target` must be as many files as `--test-source`, got 0 and 1\n",
    )  # fmt: skip
    assert missing.code == 4
    assert {both.out, unequal.out, half.out, missing.out} == {""}


def test_text_of_the_report_cannot_steer_a_terminal(
    run_tfm: RunTfm, tmp_path: Path, tiny_model: Path
) -> None:
    path = tmp_path / "a"
    path.write_text("one \x1b]0;x\x07\x9b\u202e\n", encoding="utf-8")
    flags = ["-s", str(path), "-t", str(path), "--model", str(tiny_model)]

    for output_format in ("text", "json"):
        result = run_tfm(["check", *flags, "--format", output_format])
        assert not set(result.out) & set("\x1b\x07\x9b\u202e")
    table = report(run_tfm, *flags)
    assert table["corpora"]["train"]["files"][0]["source"]["bad"]["control"]["count"] == 1


def test_torch_is_not_imported() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tfm_cli", "check", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    modules = {line.rpartition("|")[2].strip() for line in done.stderr.split("\n")}
    assert "tfm_cli.corpus.check.inspection" in modules
    assert "torch" not in modules
    assert done.stdout.endswith("0 errors, 0 warnings, 0 notes\n")


def test_what_cannot_be_read_has_no_column_of_zeros(
    run_tfm: RunTfm, corpus: list[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "none")

    alone = run_tfm(["check", "-q", "-s", missing, "-t", missing])
    beside = run_tfm(["check", "-q", *corpus, "--valid-source", missing, "--valid-target", missing])

    assert (alone.code, beside.code) == (1, 1)
    assert [line.split() for line in alone.out.split("\n")[:4]] == [
        ["file", "lines", "ends", "odd", "lines"],
        ["train", missing, "?", "?", "?"],
        ["train", missing, "?", "?", "?"],
        [],
    ]
    assert alone.out.split("\n")[4].startswith(f"error: {missing}: there is no such file")
    assert "pairs" not in alone.out
    columns = beside.out.split("\n\n")[1]
    assert columns.split("\n")[0].split() == ["train"]
    assert "usable" in columns
