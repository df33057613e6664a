"""Tests of `tfm evaluate --report`: which calls are right, and what the page has of them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tfm_cli.pictures.report import largest_weights
from tfm_cli.pictures.report_page import encoded_alignment
from tfm_cli.translation.translator import Translator, TranslatorOptions

pytest.importorskip("vl_convert", reason="pip install 'tfm-cli[pictures]'")


@pytest.fixture(autouse=True)
def _texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    for name, text in {
        "src": "one two three\nfour five\nsix\n",
        "ref": "eins zwei drei\nvier fünf\nsechs\n",
        "ref2": "eins zwei 3\nvier fünf\nsechs\n",
        "hyp": "eins zwei drei\nvier elf\nsix\n",
        "other": "eins zwei\nvier fünf\nsechs\n",
        "train": "eins eins zwei\nsechs drei\n",
    }.items():
        Path(name).write_text(text, encoding="utf-8")


def data(path: str, name: str) -> dict[str, Any]:
    """The columns of a page's data."""
    text = Path(path).read_text("utf-8")
    found = re.search(rf'<script type="application/json" id="data-{name}">(.*?)</script>', text)
    assert found is not None
    columns: dict[str, Any] = json.loads(found[1])["columns"]
    return columns


def test_report_of_two_systems_has_their_lines_and_leaves_the_output_as_it_is(
    run_tfm: RunTfm,
) -> None:
    plain = run_tfm(["evaluate", "ref", "ref2", "-i", "hyp", "other", "-m", "bleu,chrf"])
    report = ["--report", "report.html", "--source", "src", "--training-text", "train"]

    result = run_tfm(["evaluate", "ref", "ref2", "-i", "hyp", "other", "-m", "bleu,chrf", *report])

    assert (result.code, result.out) == (0, plain.out), result.err
    assert "wrote report.html\n" in result.err
    lines = data("report.html", "lines")
    assert lines["source"] == ["one two three", "four five", "six"]
    assert lines["reference-1"] == ["eins zwei 3", "vier fünf", "sechs"]
    assert lines["system-0"] == ["eins zwei drei", "vier elf", "six"]
    assert lines["length"] == [3, 2, 1]
    assert lines["rarest"] == [1, 0, 1]
    assert lines["marks-0"] == ["", "5,3", "0,3"]
    assert lines["missing-1"] == ["10,4", "", ""]
    assert lines["between-0"] == ["10,4", "5,3", "0,3"]
    assert data("report.html", "systems") == {"name": ["hyp", "other"]}


def test_sentence_scores_are_those_of_the_command(run_tfm: RunTfm) -> None:
    chrf = ["-m", "chrf", "-cw", "2"]
    sentences = run_tfm(["evaluate", "ref", "-i", "hyp", *chrf, "-sl", "-b", "-w", "6"])

    result = run_tfm(["evaluate", "ref", "-i", "hyp", *chrf, "--report", "report.html"])

    assert result.code == 0, result.err
    wanted = [float(line) for line in sentences.out.splitlines()]
    assert data("report.html", "lines")["chrf-0"] == pytest.approx(wanted, abs=1e-6)
    assert "chrF2++|nrefs:1|bs:1000|seed:12345|" in Path("report.html").read_text("utf-8")


def test_model_aligns_its_translations_and_those_of_others_alike(
    run_tfm: RunTfm, tiny_model: Path, tiny_corpus: TinyCorpus
) -> None:
    source, reference = tiny_corpus.path("test.en"), tiny_corpus.path("test.de")
    model = ["--model", str(tiny_model), "--source", source, "--device", "cpu"]
    translator = Translator.load(tiny_model, TranslatorOptions(alignment=True), device="cpu")
    wanted = [
        encoded_alignment(largest_weights(each.candidates[0].alignment), each.text, each.source)
        for each in translator.translate(tiny_corpus.lines("test.en"))
    ]

    own = run_tfm(["evaluate", reference, *model, "-o", "out", "--report", "own.html"])
    given = run_tfm(["evaluate", reference, "-i", "out", *model, "--report", "given.html"])

    assert (own.code, given.code) == (0, 0), own.err + given.err
    assert all(wanted)
    assert data("own.html", "lines")["alignment-0"] == wanted
    assert data("given.html", "lines")["alignment-0"] == wanted


def test_forced_alignment_is_that_of_the_search(tiny_model: Path, tiny_corpus: TinyCorpus) -> None:
    lines = ["", *tiny_corpus.lines("test.en")[:6], "one two three"]
    translator = Translator.load(tiny_model, TranslatorOptions(alignment=True), device="cpu")
    found = list(translator.translate(lines))
    texts = [translation.text for translation in found[:-1]]

    aligned = list(translator.align(lines, [*texts, ""]))

    assert aligned[0] == aligned[-1] == ()
    for rows, translation in zip(aligned[1:-1], found[1:-1], strict=True):
        assert len(rows) == len(translation.text.split())
        for row, wanted in zip(rows, translation.candidates[0].alignment, strict=True):
            assert row == pytest.approx(wanted, abs=1e-6)


def test_alignment_of_a_line_of_several_segments_is_empty(tiny_model: Path) -> None:
    translator = Translator.load(tiny_model, TranslatorOptions(alignment=True), device="cpu")
    long = " ".join(["one"] * 3000)

    first, second = translator.align([long, "two"], ["eins", "zwei"])

    assert first == ()
    assert second


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("-i hyp --training-text train", 2, "`--training-text` needs `--report`"),
        ("-i hyp --overwrite", 2, "`--overwrite` needs `--report`"),
        ("-i hyp other ref2 --report r.html", 2, "`--report` compares at most two systems, got 3"),
        ("-i hyp -sl --report r.html", 2, "`--sentence-level` and `--report` exclude each other"),
        ("-i hyp --report r.pdf", 2, "r.pdf: pictures are written as .html, .svg or .png"),
        ("-i hyp --report -", 2, "-: pictures are written as"),
        ("-i hyp --report r.html --training-text -", 2, "`--training-text` must be a file"),
        ("-i hyp --report r.html --training-text no", 3, "no: cannot be read"),
        ("-i hyp --report r.html --source train", 3, "train and ref do not align: 2 and 3 lines"),
        ("-i hyp --report no/ref/r.html", 5, "cannot be written"),
        ("-i hyp --report taken.html", 2, "taken.html: exists, and is not a picture of tfm"),
        ("-i hyp --report linked.html", 2, "linked.html: is the same file as `ref`"),
        (
            "-i hyp --model m --source src -o out --report r.html",
            2,
            "`--input` and `--output` exclude each other",
        ),
        ("--model m --source src -o r.html --report r.html", 2, "by both `--output` and"),
    ],
)  # fmt: skip
def test_wrong_calls_are_refused(run_tfm: RunTfm, arguments: str, code: int, message: str) -> None:
    Path("taken.html").write_text("<p>mine</p>", encoding="utf-8")
    Path("linked.html").symlink_to("ref")
    Path("no").write_text("", encoding="utf-8") if "no/ref" in arguments else None
    before = Path("ref").read_bytes()

    result = run_tfm(["evaluate", "ref", *arguments.split()])

    assert result.code == code, result.err
    assert result.err.startswith("error: ")
    assert message in result.err
    assert (result.out, Path("ref").read_bytes()) == ("", before)
    assert not Path("r.html").exists()
    assert Path("taken.html").read_text(encoding="utf-8") == "<p>mine</p>"


def test_report_replaces_a_report_and_with_a_flag_any_file(run_tfm: RunTfm) -> None:
    command = ["evaluate", "ref", "-i", "hyp", "--report"]
    Path("taken.html").write_text("<p>mine</p>", encoding="utf-8")

    codes = [
        run_tfm([*command, "report.html"]).code,
        run_tfm([*command, "report.html"]).code,
        run_tfm([*command, "taken.html", "--overwrite"]).code,
    ]

    assert codes == [0, 0, 0]
    assert Path("taken.html").read_bytes() == Path("report.html").read_bytes()


def test_report_is_written_although_the_score_is_too_low(run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", "-i", "hyp", "--fail-under", "99", "--report", "r.html"])

    assert result.code == 1
    assert Path("r.html").exists()


def test_evaluate_without_a_report_imports_no_pictures() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tfm_cli", "evaluate", "ref", "-i", "hyp"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, flags=re.MULTILINE))
    assert "tfm_cli.evaluation.scores" in imported
    assert not [n for n in imported if n.startswith(("tfm_cli.pictures", "altair", "vl_convert"))]
    assert not imported & {"torch", "numpy", "tfm_cli.evaluation.line_statistics"}
