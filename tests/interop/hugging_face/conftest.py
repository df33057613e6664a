"""The directory that tests of the import from Hugging Face change."""

from pathlib import Path

import pytest

from tests.interop.marian_directories import hugging_face_model, write_hugging_face_directory
from tests.interop.random_models import random_tokenizers


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a small model that is imported without problems."""
    pair = random_tokenizers("shared")
    return write_hugging_face_directory(tmp_path / "source", hugging_face_model(pair), pair)
