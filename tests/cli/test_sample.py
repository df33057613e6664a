"""`tfm sample`: the files of the sample corpus."""

import os
from pathlib import Path

import pytest

from tests.conftest import RunTfm

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def identity(path: Path) -> tuple[int, ...]:
    """Return what changes if a file is replaced or written, but not when it is read."""
    status = path.lstat()
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


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
    before = identity(Path("data/train.en"))

    result = run_tfm(["sample", "data", "-q"])

    assert (result.code, result.out, result.err) == (0, "", "")
    assert Path("data/test.en").read_bytes() == (DATA / "test.en").read_bytes()
    assert identity(Path("data/train.en")) == before


@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=str)
@pytest.mark.parametrize("kind", ["folder", "link", "dangling link", "pipe"])
def test_what_is_no_regular_file_is_kept(kind: str, flags: list[str], run_tfm: RunTfm) -> None:
    other = Path("data/valid.fr")
    Path("data").mkdir()
    Path("elsewhere").write_text("mine")
    if kind == "folder":
        other.mkdir()
    elif kind == "pipe":
        os.mkfifo(other)
    else:
        other.symlink_to("../elsewhere" if kind == "link" else "nowhere")
    before = identity(other)

    result = run_tfm(["sample", "data", *flags])

    assert result.code == 2
    assert result.err.startswith("error: data/valid.fr: is not a regular file\nhint: name another")
    assert [path.name for path in Path("data").iterdir()] == ["valid.fr"]
    assert identity(other) == before
    assert Path("elsewhere").read_text() == "mine"


def test_other_text_is_replaced_only_if_asked(run_tfm: RunTfm) -> None:
    Path("data").mkdir()
    Path("data/train.en").write_text("mine")

    refused = run_tfm(["sample", "data"])

    assert refused.code == 2
    assert refused.err.startswith("error: data/train.en: exists and differs from the sample")
    assert [path.name for path in Path("data").iterdir()] == ["train.en"]
    assert run_tfm(["sample", "data", "--overwrite"]).code == 0
    assert Path("data/train.en").read_bytes() == (DATA / "train.en").read_bytes()


@pytest.mark.parametrize(
    ("directory", "code", "reason"),
    [
        ("file", 5, "file: cannot be written: it is not a directory"),
        ("file/below", 5, "file/below: cannot be written: "),
        ("loop", 5, "loop: cannot be written: "),
        ("/proc/new", 5, "/proc/new: cannot be written: "),
        ("long" * 100, 5, "File name too long"),
        ("", 2, "`DIR` is empty"),
    ],
)
def test_directory_that_cannot_be_written_is_refused(
    directory: str, code: int, reason: str, run_tfm: RunTfm
) -> None:
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")

    result = run_tfm(["sample", directory])

    assert result.code == code, result.err
    assert reason in result.err
    assert sorted(path.name for path in Path().iterdir()) == ["file", "loop"]
