from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from tfm_cli.cli import app

if TYPE_CHECKING:
    from tests.conftest import TinyCorpus


@pytest.fixture(autouse=True)
def _texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("ref", ["a small house stands on the hill"] * 30)
    write("hyp", ["a small house is on the hill"] * 30)
    write("other", ["the house is on a hill"] * 30)


def write(name: str, lines: Iterable[str]) -> None:
    Path(name).write_bytes("".join(f"{line}\n" for line in lines).encode())


def run(arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, ["evaluate", *arguments.split()], input=stdin)


def test_unequal_line_counts_are_refused_by_name_and_number() -> None:
    write("short", ["a"] * 29)

    result = run("ref -i short")

    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        "error: short and ref do not align: 29 and 30 lines",
        "hint: give one line for each line of ref, a blank one where there is no text",
    ]
    assert result.stdout == ""


def test_every_file_of_another_length_is_reported() -> None:
    write("short", ["a"])
    write("empty", [])

    result = run("ref short -i empty hyp")

    assert result.exit_code == 3
    assert result.stderr.splitlines()[:3] == [
        "error: 2 files do not align with ref, which has 30 lines",
        "  short: 1 lines",
        "  empty: 0 lines",
    ]


def test_every_unreadable_file_is_reported() -> None:
    result = run("nowhere -i nothing")

    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        "error: 2 files cannot be used",
        "  nowhere: cannot be read: No such file or directory",
        "  nothing: cannot be read: No such file or directory",
    ]


def test_an_empty_reference_is_refused() -> None:
    write("empty", [])

    result = run("empty", b"")

    assert result.exit_code == 3
    assert "error: empty: has no lines, expected one for each segment" in result.stderr


def test_an_empty_standard_input_is_refused() -> None:
    result = run("ref")

    assert result.exit_code == 3
    assert "error: standard input and ref do not align: 0 and 30 lines" in result.stderr


def test_invalid_utf8_is_refused_with_file_line_and_byte() -> None:
    Path("latin1").write_bytes(b"good\ncaf\xe9\n")

    result = run("ref -i latin1")

    assert result.exit_code == 3
    assert "error: latin1:2: byte 4: 0xe9 is not UTF-8" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-m blue", "unknown metric `blue`; did you mean `bleu`?"),
        ("-m bleu,", "unknown metric ``, expected one of bleu, chrf, ter, comet"),
        ("-tok 13", "unknown tokenizer `13`; did you mean `13a`?"),
        ("-s add", "unknown smoothing method `add`; did you mean `add-k`?"),
        ("-cc 0 -m chrf", "chrF has nothing to count: its character and word order are both 0"),
        ("-pbs", "`--paired-bs` compares systems, got one; repeat `--input`"),
        ("other -ci", "`--confidence` is for one system, got 2"),
        ("other -sl", "`--sentence-level` is for one system, got 2"),
        ("other -pbs -par", "`--paired-bs` and `--paired-ar` exclude each other"),
        ("other -pbs -b", "`--score-only` and `--paired-bs` exclude each other"),
        ("other other", "given more than once with `--input`: other"),
        ("-sl -ci", "`--sentence-level` and `--confidence` exclude each other"),
        ("-sl -m bleu,ter", "`--sentence-level` is for one metric, got 2"),
        ("-sl --fail-under 3", "`--sentence-level` and `--fail-under` exclude each other"),
        ("--beam 2", "`--beam-size` needs `--model`"),
        ("--source ref", "`--source` needs `--model`, `--report` or `--comet-model`"),
        ("--model m --source ref", "`--input` and `--model` exclude each other"),
    ],
)
def test_a_wrong_call_is_refused(arguments: str, message: str) -> None:
    result = run(f"ref -i hyp {arguments}")

    assert result.exit_code == 2
    assert result.stderr == f"error: {message}\n"
    assert result.stdout == ""


def test_everything_wrong_with_a_call_is_reported_at_once() -> None:
    result = run("ref -i hyp -par -sl -m bleu,ter -o kept")

    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: the command has 4 problems",
        "  `--output` needs `--model`",
        "  `--sentence-level` and `--paired-ar` exclude each other",
        "  `--paired-ar` compares systems, got one; repeat `--input`",
        "  `--sentence-level` is for one metric, got 2",
    ]


@pytest.mark.parametrize(
    "arguments",
    ["", "-i hyp", "ref -i hyp -w -1", "ref -f latex", "ref -x", "ref -i hyp --fail-under nan"],
)
def test_what_cannot_be_parsed_is_a_usage_error(arguments: str) -> None:
    result = run(arguments)

    assert result.exit_code == 2
    assert "rror: " in result.stderr


def test_standard_input_cannot_be_both_sides() -> None:
    result = run("-", b"a\n")

    assert result.exit_code == 2
    assert "error: standard input can be read only once" in result.stderr


@pytest.mark.parametrize("search", ["", " --beam 2 --length-penalty 0.5"])
def test_a_model_is_scored_as_its_translations_are(
    tiny_model: Path, tiny_corpus: "TinyCorpus", search: str
) -> None:
    source, reference = tiny_corpus.path("test.en"), tiny_corpus.path("test.de")
    command = f"translate --model {tiny_model} -i {source} -o hyp {search}"
    assert CliRunner().invoke(app, command.split()).exit_code == 0

    result = run(f"{reference} --model {tiny_model} --source {source} -o kept/out{search}")

    assert result.exit_code == 0
    assert result.stdout == run(f"{reference} -i hyp").stdout
    assert Path("kept/out").read_bytes() == Path("hyp").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--model m", 2, "`--model` needs `--source`, the text to translate"),
        ("--model m --source hyp --precision fp8", 2, "`--precision` must be one of `auto`, "),
        ("--model m --source ref -o -", 2, "`--output` must be a file"),
        ("--model m --source hyp -o ref", 2, "ref: is the same file as `ref`, which is read"),
        ("--model m --source short", 3, "short and ref do not align: 1 and 30 lines"),
        ("--model missing --source hyp", 4, "missing: there is no such model directory"),
        ("--model m --source hyp -o hyp/out", 5, "hyp/out: cannot be written"),
    ],
)
def test_what_a_model_cannot_be_scored_on_is_refused(
    arguments: str, code: int, message: str
) -> None:
    write("short", ["a"])

    result = run(f"ref {arguments}")

    assert result.exit_code == code
    assert result.stderr.startswith(f"error: {message}")
