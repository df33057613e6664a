from pathlib import Path

import pytest

from tfm_cli.files.layout import (
    CHECKPOINT_FILES,
    MANIFEST_FILE,
    PREPARED_FACTS,
    PREPARED_FILES,
)
from tfm_cli.files.ownership import is_checkpoint, is_prepared_text

CASES = [
    (is_checkpoint, "update-00000002", MANIFEST_FILE, CHECKPOINT_FILES),
    (is_prepared_text, "0123456789abcdef" * 2, PREPARED_FACTS, PREPARED_FILES),
]


@pytest.mark.parametrize(("is_ours", "name", "proof", "files"), CASES)
def test_directory_with_a_foreign_file_is_not_ours(
    is_ours: object, name: str, proof: str, files: tuple[str, ...], tmp_path: Path
) -> None:
    assert callable(is_ours)
    directory = tmp_path / name
    directory.mkdir()
    assert is_ours(directory)  # as a killed run may leave it

    (directory / proof).touch()
    assert is_ours(directory)
    for file in files:
        (directory / file).touch()
    assert is_ours(directory)
    assert not is_ours(directory.rename(tmp_path / f"{name}-kept"))
    (tmp_path / f"{name}-kept").rename(directory)

    (directory / "notes.txt").touch()
    assert not is_ours(directory)
    (directory / "notes.txt").unlink()
    (directory / files[-1]).unlink()
    (directory / files[-1]).mkdir()
    assert not is_ours(directory)


@pytest.mark.parametrize(("is_ours", "name", "proof", "files"), CASES)
def test_directory_without_its_marker_is_not_ours(
    is_ours: object, name: str, proof: str, files: tuple[str, ...], tmp_path: Path
) -> None:
    assert callable(is_ours)
    (tmp_path / name).mkdir()
    (tmp_path / name / next(file for file in files if file != proof)).touch()

    assert not is_ours(tmp_path / name)
