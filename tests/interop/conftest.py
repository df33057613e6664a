"""Directories that tests of imports read."""

from pathlib import Path

import pytest

from tests.interop.marian_directories import (
    hugging_face_model,
    marian_arrays,
    without_padding_row,
    write_hugging_face_directory,
    write_marian_directory,
)
from tests.interop.random_models import random_tokenizers


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory as on the Hub; tests must not change it."""
    pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
    pair = random_tokenizers("shared")
    directory = tmp_path_factory.mktemp("hub") / "opus-mt-en-de"
    return write_hugging_face_directory(directory, hugging_face_model(pair), pair)


@pytest.fixture(scope="session")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory as OPUS-MT distributes it; tests must not change it."""
    pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
    pair = random_tokenizers("shared")
    model = hugging_face_model(pair, decoder_ffn_dim=40)
    without_padding_row(model)
    directory = tmp_path_factory.mktemp("marian") / "opus"
    return write_marian_directory(
        directory, marian_arrays(model), pair, transformer_decoder_dim_ffn="40"
    )


@pytest.fixture
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a few short lines, so that verification is fast."""
    path = tmp_path_factory.mktemp("probe") / "probe.txt"
    path.write_text("the cat\n\nsat\non a mat\n", encoding="utf-8")
    return path
