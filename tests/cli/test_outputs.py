"""Outputs that cannot be, or must not be, written: told before any work, with nothing made."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunTfm
from tests.forked import PATIENCE
from tests.tiers import representative
from tfm_cli.errors import ResourceError
from tfm_cli.files.atomic import check_writable
from tfm_cli.translation.translator import Translator

ROOT = Path(__file__).parents[2]
Arguments = Callable[[str, str], list[str]]
# What each command is called with, by the model and the place it is to write to.
COMMANDS: dict[str, Arguments] = {
    "translate": lambda model, output: ["translate", "-m", model, "-i", "text", "-o", output],
    "encode": lambda model, output: ["tokenize", "encode", "-m", model, "text", "-o", output],
    "decode": lambda model, output: ["tokenize", "decode", "-m", model, "text", "-o", output],
    "evaluate": lambda model, output: [
        "evaluate", "ref", "--model", model, "--source", "text", "-o", output,
    ],
    "score": lambda model, output: [
        "score", "-m", model, "-s", "text", "-t", "ref", "-o", output,
    ],
    "shortlist": lambda model, output: [
        "shortlist", "-m", model, "-s", "text", "-t", "ref", "-o", output,
    ],
    "tokenize train": lambda model, output: [
        "tokenize", "train", "-i", "text", "--model-prefix", output, "--vocab-size", "20",
    ],
}  # fmt: skip
_FAST = ("translate", "tokenize train")
ALL = [pytest.param(name, marks=() if name in _FAST else pytest.mark.torture) for name in COMMANDS]
TO_A_FILE = ALL[:-1]
FULL = ["translate", "encode", "shortlist"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some texts, by several names."""
    monkeypatch.chdir(tmp_path)
    for name in ("text", "ref"):
        Path(name).write_bytes(b"one\ntwo\n")
    Path("link").symlink_to("text")
    Path("hard").hardlink_to("text")
    Path("text.vocab").hardlink_to("text")
    Path("folder").mkdir()


@pytest.fixture
def _no_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("a model is read before the mistake is told")

    monkeypatch.setattr(Translator, "load", load)
    monkeypatch.setattr("tfm_cli.model_directory.weights.load_model", load)


def everything() -> dict[str, bytes]:
    """All files and what is in them."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.usefixtures("_no_model_is_read")
@pytest.mark.parametrize("output", ["text", "./text", "folder/../text", "link", "hard"])
@pytest.mark.parametrize("name", TO_A_FILE)
def test_r09_output_that_is_read_is_refused(
    name: str, output: str, tiny_model: Path, run_tfm: RunTfm
) -> None:
    before = everything()

    result = run_tfm(COMMANDS[name](str(tiny_model), output))

    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"error: {Path(output) if name in ('evaluate', 'shortlist') else output}: "
        "is the same file as `text`, which is read\n"
        "hint: name another one with `--output`\n"
    )
    assert everything() == before


@pytest.mark.usefixtures("_no_model_is_read")
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.model"])
@pytest.mark.parametrize("name", TO_A_FILE)
def test_r09_output_that_is_a_file_of_the_model_is_refused(
    name: str, file: str, tiny_model: Path, run_tfm: RunTfm
) -> None:
    before = (tiny_model / file).read_bytes()
    Path("linked").symlink_to(tiny_model)

    result = run_tfm(COMMANDS[name](str(tiny_model), f"linked/{file}"))

    assert result.code == 2
    assert f"is the same file as `{tiny_model / file}`, which is read" in result.err
    assert (tiny_model / file).read_bytes() == before


def test_r09_prefix_of_a_tokenizer_that_names_its_text_is_refused(run_tfm: RunTfm) -> None:
    before = everything()

    result = run_tfm(COMMANDS["tokenize train"]("", "text"))

    assert result.code == 2
    assert result.err == (
        "error: text.vocab: is the same file as `text`, which is read\n"
        "hint: name another one with `--model-prefix`\n"
    )
    assert everything() == before


@pytest.mark.usefixtures("_no_model_is_read")
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("folder", "it is a directory"),
        ("ref/new", "`{here}/ref` is not a directory"),
        ("ref/a/b", "`{here}/ref` is not a directory"),
        ("/proc/new", "No such file or directory"),
        ("x" * 300, "File name too long"),
    ],
    ids=["directory", "below a file", "deep below a file", "read-only", "too long"],
)
@pytest.mark.parametrize("name", ALL)
def test_r09_output_that_cannot_be_written_is_told_before_any_work(
    name: str, output: str, reason: str, tiny_model: Path, run_tfm: RunTfm
) -> None:
    suffix = ".model" if name == "tokenize train" else ""
    if output == "folder":
        Path("folder.model").mkdir()
    before = everything()

    result = run_tfm(COMMANDS[name](str(tiny_model), output))

    message = reason.format(here=Path.cwd())
    assert (result.code, result.out) == (5, "")
    assert result.err == f"error: {output}{suffix}: cannot be written: {message}\n"
    assert everything() == before


def run_in_shell(command: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TFM": f"{sys.executable} -m tfm_cli"}
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True,
        timeout=PATIENCE, check=False, user=user,
    )  # fmt: skip


@pytest.mark.slow
@representative(
    ("redirection", "message"),
    [
        ("< text -o text", "text: is the same file as standard input"),
        ("< hard -o link", "link: is the same file as standard input"),
        ("-i text >> text", "standard output: is the same file as `text`"),
        ("< text >> link", "standard output: is the same file as standard input"),
    ],
)
@representative("name", ["translate", "tokenize encode"])
def test_r09_redirected_streams_are_told_apart_too(
    name: str, redirection: str, message: str, tiny_model: Path
) -> None:
    done = run_in_shell(f"$TFM {name} -m {tiny_model} {redirection}")

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}, which is read\n")
    assert Path("text").read_bytes() == b"one\ntwo\n"


@pytest.mark.slow
@representative("name", FULL)
def test_r09_full_disk_is_one_line_and_no_success(name: str, tiny_model: Path) -> None:
    arguments = " ".join(COMMANDS[name](str(tiny_model), "/dev/full"))

    done = run_in_shell(f"$TFM {arguments} --quiet")

    message = "error: /dev/full: cannot be written: No space left on device\n"
    assert (done.returncode, done.stdout, done.stderr) == (5, "", message)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user for a moment")
def test_r09_folder_without_permission_is_told() -> None:
    before = everything()
    os.seteuid(65534)
    try:
        with pytest.raises(ResourceError, match=r"cannot be written: .*[Pp]ermission"):
            check_writable("folder/new")
    finally:
        os.seteuid(0)

    assert everything() == before
