"""The directory that tests of the import from Marian change."""

from pathlib import Path

import pytest

from tests.interop.marian_directories import marian_arrays, marian_model, write_marian_directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a small model that is imported without problems."""
    theirs, pair = marian_model()
    return write_marian_directory(tmp_path / "source", marian_arrays(theirs), pair)
