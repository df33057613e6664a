"""`tfm pack` and `tfm unpack`: messages, exit codes and spellings."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import RunTfm


@pytest.fixture(autouse=True)
def _model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "model")


def test_model_is_packed_and_unpacked(run_tfm: RunTfm) -> None:
    languages = ["--source-language", "en", "--target-language", "de,fr", "--license", "MIT"]

    packed = run_tfm(["pack", "model", "model.tar.gz", *languages])
    unpacked = run_tfm(["unpack", "model.tar.gz", "new/copy"])

    assert (packed.code, packed.out) == (0, "")
    assert packed.err.startswith("wrote model.tar.gz: 4 files, ")
    assert (unpacked.code, unpacked.out) == (0, "")
    assert unpacked.err == "wrote new/copy: 4 files\n"
    card = Path("new/copy/README.md").read_text()
    assert card.startswith("---\nlanguage:\n- en\n- de\n- fr\nlicense: mit\n")


def test_unpacked_model_can_be_packed_again(run_tfm: RunTfm) -> None:
    run_tfm(["pack", "model", "model.tar", "--source-language", "en"])
    run_tfm(["unpack", "model.tar", "copy"])

    result = run_tfm(["pack", "copy", "again.tar"])

    assert result.code == 0, result.err
    assert Path("again.tar").read_bytes() == Path("model.tar").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pack", "model", "model.tar", "--source-language", "english"], 2, "`english`"),
        (["pack", "model/config.json", "model.tar"], 4, "config.json: is not a directory"),
        (["pack", "long" * 100, "model.tar"], 4, "File name too long"),
        (["info", "long" * 100], 4, "File name too long"),
        (["info", ""], 2, "`MODEL` is empty"),
        (["pack", "model", "model.zip"], 2, "model.zip: its name must end in .tar"),
        (["pack", "other", "model.tar"], 4, "other: there is no such model directory"),
        (["pack", "model", "model.tar", "--license", "?"], 2, "`--license`: `?`"),
        (["pack", "model/checkpoints/update-00000300", "m.tar"], 4, "is a checkpoint of a run"),
        (["unpack", "none.tar", "copy"], 3, "none.tar: does not exist"),
        (["unpack", "model", "copy"], 3, "model: cannot be read"),
        (["unpack", "model/config.json", "model"], 2, "model: exists"),
        (["unpack", "model/config.json", "copy"], 3, "model/config.json: is damaged or not"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, run_tfm: RunTfm) -> None:
    result = run_tfm(arguments)

    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert [path.name for path in Path().iterdir()] == ["model"]


def test_file_of_the_model_is_never_overwritten(run_tfm: RunTfm) -> None:
    Path("weights.tar").hardlink_to("model/model.safetensors")

    result = run_tfm(["pack", "model", "weights.tar", "--overwrite"])

    assert result.code == 2
    assert "which is read" in result.err
