from pathlib import Path

import pytest

from tests.conftest import RunTfm
from tests.interop.marian_directories import hugging_face_model, write_hugging_face_directory
from tests.interop.random_models import random_tokenizers

pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns of is its own affair


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pair = random_tokenizers("shared")
    directory = tmp_path / "source"
    return write_hugging_face_directory(directory, hugging_face_model(pair), pair)


@pytest.fixture
def probe(tmp_path: Path) -> list[str]:
    """Flags for a few short lines, so that no verification takes long."""
    path = tmp_path / "probe.txt"
    path.write_text("the cat\non a mat\n", encoding="utf-8")
    return ["--probe", str(path)]


def test_import_says_what_it_read_verified_and_wrote(
    source: Path, probe: list[str], tmp_path: Path, run_tfm: RunTfm
) -> None:
    result = run_tfm(["import", str(source), "--output", str(tmp_path / "model"), *probe])

    assert (result.code, result.out) == (0, "")
    lines = result.err.rstrip("\n").split("\n")
    assert lines[0] == "reading `source` (Hugging Face Marian)"
    assert lines[-2].startswith("verified with transformers")
    assert lines[-1].startswith(f"wrote {tmp_path / 'model'}: 2+2 layers, width 16")


def test_quiet_import_says_nothing(
    source: Path, probe: list[str], tmp_path: Path, run_tfm: RunTfm
) -> None:
    result = run_tfm(["import", str(source), "-o", str(tmp_path / "model"), "-q", *probe])

    assert (result.code, result.out, result.err) == (0, "", "")


def test_imported_model_translates(
    source: Path, probe: list[str], tmp_path: Path, run_tfm: RunTfm
) -> None:
    run_tfm(["import", str(source), "-o", str(tmp_path / "model"), "-q", *probe])

    result = run_tfm(
        ["translate", "-m", str(tmp_path / "model"), "-q", "--device", "cpu"],
        "the cat\n\n>>deu<< a mat\n",
    )

    assert result.code == 0, result.err
    assert len(result.out.split("\n")) == 4
    assert result.out.split("\n")[1] == ""


def test_pickle_needs_leave(source: Path, tmp_path: Path, run_tfm: RunTfm) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")

    result = run_tfm(["import", str(source), "-o", str(tmp_path / "model")])

    assert result.code == 4
    assert "has its weights in a pickle" in result.err
    assert "hint: use `--allow-pickle`" in result.err


def test_output_is_needed(run_tfm: RunTfm) -> None:
    assert run_tfm(["import", "somewhere"]).code == 2


def test_positions_are_of_two_kinds(source: Path, tmp_path: Path, run_tfm: RunTfm) -> None:
    arguments = ["import", str(source), "-o", str(tmp_path / "model"), "--positions", "learned"]

    assert run_tfm(arguments).code == 2


def test_missing_source_is_told(tmp_path: Path, run_tfm: RunTfm) -> None:
    result = run_tfm(["import", str(tmp_path / "gone"), "-o", str(tmp_path / "model")])

    assert result.code == 3
    assert "there is no such directory, and it is not a name on the Hub" in result.err


def test_positions_are_of_an_npz_only(source: Path, tmp_path: Path, run_tfm: RunTfm) -> None:
    arguments = ["import", str(source), "-o", str(tmp_path / "model"), "--positions", "marian"]

    result = run_tfm(arguments)

    assert result.code == 2
    assert "`--positions` does not apply" in result.err
    assert "hint: leave out `--positions`" in result.err
