"""The flags of `tfm evaluate` against those of the installed sacreBLEU, and what they compute."""

import argparse
import importlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunTfm
from tfm_cli.cli.evaluate import COMMAND

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
REFERENCE = "The cat sat, on the mat.\na dog ran over the Old road\nAll is well: it ends\n"
FIRST = "the Cat sat on a mat.\na dog ran over the old road\nAll is well\n"
SECOND = "The cat sat, on the mat\na dog walks over the road\nall is well, it ends\n"


@pytest.fixture(autouse=True)
def _texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("ref", REFERENCE), ("a.txt", FIRST), ("b_2.txt", SECOND)):
        Path(name).write_text(text)


def sacrebleu_flags(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The flags of each option of the installed sacreBLEU."""
    found: list[argparse.Action] = []

    def parse(parser: argparse.ArgumentParser, *_: object) -> argparse.Namespace:
        found.extend(parser._actions)
        raise SystemExit

    before = signal.getsignal(signal.SIGPIPE)
    program: Any = importlib.import_module("sacrebleu.sacrebleu")
    # With the handler that its import sets, a closed pipe would kill the process of the tests.
    signal.signal(signal.SIGPIPE, before)
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(SystemExit):
            program.parse_args()
    return [tuple(action.option_strings) for action in found if action.option_strings]


def test_every_flag_of_sacrebleu_is_there_or_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {flag for option in COMMAND.all_options() for flag in option.flags}
    table = re.findall(r"^\| (`--.*?) \| (.+) \|$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    excused = {flag for cell, _ in table for flag in re.findall(r"`(--[a-z-]+)`", cell)}
    theirs = sacrebleu_flags(monkeypatch)

    missing = {flags[-1] if flags[0][1] != "-" else flags[0] for flags in theirs}
    missing = {flags for flags in missing if flags not in own} - {"--help"}
    assert missing == excused
    for flags in theirs:  # of a flag that is there, short and other names are as well
        if flags[0] in own:
            assert set(flags) <= own, flags


def both(run_tfm: RunTfm, arguments: list[str]) -> tuple[str, str]:
    """The output of `tfm evaluate` and of sacreBLEU for the same arguments."""
    ours = run_tfm(["evaluate", *arguments, "--quiet"])
    theirs = subprocess.run(
        [sys.executable, "-m", "sacrebleu", *arguments, "--no-color"],
        capture_output=True, encoding="utf-8", timeout=120, check=True,
    )  # fmt: skip
    assert ours.code == 0, ours.err
    return ours.out, theirs.stdout


@pytest.mark.parametrize(
    "flags",
    [
        "-m chrf --chrf-beta 3",
        "-m chrf --chrf-whitespace --chrf-lowercase",
        "-m chrf --chrf-eps-smoothing -cw 2",
        "-m ter --ter-case-sensitive",
        "-m ter --ter-no-punct --ter-normalized",
        "-m ter --ter-normalized --ter-asian-support",
    ],
)
def test_metrics_are_those_of_sacrebleu(flags: str, run_tfm: RunTfm) -> None:
    ours, theirs = both(run_tfm, ["ref", "-i", "a.txt", *flags.split(), "-w", "4"])

    assert json.loads(ours) == json.loads(theirs)


@pytest.mark.parametrize(
    "flags", ["-m bleu chrf", "-m chrf ter -w 3 -sh", "--paired-bs -m bleu chrf", "-par -parn 100"]
)
def test_latex_is_what_sacrebleu_prints(flags: str, run_tfm: RunTfm) -> None:
    arguments = ["ref", "-i", "a.txt", "b_2.txt", "-f", "latex", *flags.split()]

    ours, theirs = both(run_tfm, arguments)

    assert ours == theirs
    assert "\\toprule" in ours
    assert "b\\_2.txt" in ours


def test_mean_is_over_the_inputs(run_tfm: RunTfm) -> None:
    arguments = ["evaluate", "ref", "-i", "a.txt", "b_2.txt", "-m", "bleu,chrf", "-q"]

    single = json.loads(run_tfm(arguments).out)
    bleu, chrf = json.loads(run_tfm([*arguments, "--mean"]).out)

    for table, name in ((bleu, "BLEU"), (chrf, "chrF2")):
        assert table["name"] == name
        assert [run["score"] for run in table["runs"]] == [each[name]["score"] for each in single]
        assert table["mean"] == pytest.approx(sum(each[name]["score"] for each in single) / 2)
    limit = bleu["mean"]
    assert run_tfm([*arguments, "--mean", "--fail-under", f"{limit - 0.1}"]).code == 0
    assert run_tfm([*arguments, "--mean", "--fail-under", f"{limit + 0.1}"]).code == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-i a.txt --mean", "`--mean` is over several runs, got one"),
        ("-i a.txt b_2.txt --mean --paired-bs", "`--mean` and `--paired-bs` exclude each other"),
        ("-i a.txt -f latex", "`--format latex` is a table of systems"),
        ("-i a.txt b_2.txt -f latex --mean", "`--format latex` and `--mean` exclude each other"),
    ],
)
def test_contradictions(flags: str, message: str, run_tfm: RunTfm) -> None:
    result = run_tfm(["evaluate", "ref", *flags.split()])

    assert (result.code, result.out) == (2, "")
    assert message in result.err
