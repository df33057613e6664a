"""`tfm sample`: the files of the sample corpus."""

from pathlib import Path

import pytest

from tests.conftest import RunTfm

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_files_are_those_that_train_learns_from(run_tfm: RunTfm) -> None:
    result = run_tfm(["sample", "new/data"])

    assert (result.code, result.out) == (0, "")
    written = {path.name: path.read_bytes() for path in Path("new/data").iterdir()}
    assert written == {name: (DATA / name).read_bytes() for name in written}
    corpora = {path.name for side in ("en", "fr") for path in DATA.glob(f"*.{side}")}
    assert set(written) == corpora | {"README.md"}


def test_files_of_the_sample_are_completed_and_left_as_they_are(run_tfm: RunTfm) -> None:
    run_tfm(["sample", "data"])
    Path("data/test.en").unlink()
    before = Path("data/train.en").stat()

    result = run_tfm(["sample", "data", "-q"])

    assert (result.code, result.out, result.err) == (0, "", "")
    assert Path("data/test.en").read_bytes() == (DATA / "test.en").read_bytes()
    assert Path("data/train.en").stat() == before


@pytest.mark.parametrize("kind", ["file", "folder", "link", "whole"])
def test_what_is_not_of_the_sample_is_kept(kind: str, run_tfm: RunTfm) -> None:
    other = Path("data/valid.fr")
    if kind == "whole":
        Path("data").write_text("mine")
    else:
        Path("data").mkdir()
    if kind == "file":
        other.write_text("mine")
    elif kind == "folder":
        other.mkdir()
    elif kind == "link":
        other.symlink_to("nowhere")

    result = run_tfm(["sample", "data"])

    assert result.code == 2, result.err
    assert result.err.startswith("error: data")
    assert ("--overwrite" in result.err) == (kind in ("file", "link"))
    if kind == "whole":
        assert Path("data").read_text() == "mine"
    else:
        assert [path.name for path in Path("data").iterdir()] == ["valid.fr"]
        assert other.is_symlink() or other.is_dir() or other.read_text() == "mine"


def test_overwrite_replaces_files_but_no_folder(run_tfm: RunTfm) -> None:
    Path("data").mkdir()
    Path("data/train.en").write_text("mine")

    assert run_tfm(["sample", "data", "--overwrite"]).code == 0
    assert Path("data/train.en").read_bytes() == (DATA / "train.en").read_bytes()

    Path("data/train.en").unlink()
    Path("data/train.en").mkdir()
    result = run_tfm(["sample", "data", "--overwrite"])

    assert result.code == 2
    assert result.err.startswith("error: data/train.en: is a directory")
