"""What a command imports before it is of use: nothing that takes longer than a translation."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.translation.native_translator import needs_native

MODEL = Path(__file__).parents[1] / "golden" / "model_v1"
pytestmark = needs_native


def imported(arguments: list[str], place: Path) -> set[str]:
    """The packages that a command imports, which succeeds."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tfm_cli", *arguments],
        input="eins\n", capture_output=True, text=True, cwd=place, check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    modules = re.findall(r"import time: .*\| +(\S+)", done.stderr)
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize(
    "flags",
    ["", "--greedy", "--sampling", "--precision int8", "--n-best 2 --format json", "--workers 2",
     "--alignment hard", "--word-scores", f"--model {MODEL} --model {MODEL}"],
)  # fmt: skip
def test_translate_imports_neither_pytorch_nor_numpy_nor_pydantic(
    flags: str, tmp_path: Path
) -> None:
    result = imported(["translate", "--model", str(MODEL), *flags.split()], tmp_path)

    assert not result & {"torch", "numpy", "pydantic", "rich", "sacrebleu"}


def test_evaluation_imports_no_pytorch(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("eins\n", encoding="utf-8")

    assert "torch" not in imported(["evaluate", "text", "--input", "text"], tmp_path)
    arguments = ["evaluate", "text", "--model", str(MODEL), "--source", "text"]
    assert "torch" not in imported(arguments, tmp_path)


def test_cutting_and_checking_of_text_import_no_pytorch(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("eins\nzwei\n", encoding="utf-8")
    model = str(MODEL / "tokenizer.model")

    assert "torch" not in imported(["tokenize", "encode", "--model", model], tmp_path)
    arguments = ["check", "--source", "text", "--target", "text"]
    assert "torch" not in imported(arguments, tmp_path)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["translate", "--help"]])
def test_help_imports_no_more_than_the_command_line(arguments: list[str], tmp_path: Path) -> None:
    result = imported(arguments, tmp_path)

    assert not result & {"torch", "numpy", "pydantic", "sacrebleu", "sentencepiece", "rich"}
