from pathlib import Path

import pytest

from tfm_cli.corpus import sources
from tfm_cli.errors import ResourceError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a checkout that has no sample corpus yet."""
    directory = tmp_path / "tfm_cli"
    directory.mkdir()
    monkeypatch.setattr(sources, "_PACKAGE", directory)
    return directory


def put(directory: Path) -> Path:
    directory.mkdir(parents=True)
    path = directory / "train.en"
    path.write_text("a\n", encoding="utf-8")
    return path


def test_checkout_has_the_sample_beside_the_package(package: Path) -> None:
    path = put(package.parent / "data")

    assert sources.sample_path("train.en") == str(path)


def test_installed_package_contains_the_sample(package: Path) -> None:
    put(package.parent / "data")  # somebody else's, where packages are installed
    path = put(package / "data")

    assert sources.sample_path("train.en") == str(path)


def test_missing_sample_is_reported(package: Path) -> None:
    with pytest.raises(ResourceError, match=r"sample corpus \(`train\.en`\) is not installed"):
        sources.sample_path("train.en")
