"""The estimated number of pairs, compared with the number of lines that were written."""

import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tfm_cli.config.settings import DataConfig
from tfm_cli.corpus import size
from tfm_cli.corpus.size import estimated_pairs

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
}


def text(lines: int) -> bytes:
    return b"".join(b"line %d has some words\n" % number for number in range(lines))


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("lines", [0, 1, 1234])
def test_small_files_are_counted(suffix: str, lines: int, tmp_path: Path) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(PACK[suffix](text(lines)))

    assert estimated_pairs(DataConfig(source=(str(path),), target=("absent",))) == lines


def test_last_line_needs_no_line_feed_and_files_add_up(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(text(3)[:-1])
    (tmp_path / "b.tsv").write_bytes(text(4))
    data = DataConfig(
        source=(str(tmp_path / "a.en"),), pairs=(str(tmp_path / "b.tsv"),), weights=(3.0, 1.0)
    )

    assert estimated_pairs(data) == 7


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_large_files_are_estimated_by_their_beginning(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lines = tmp_path / f"text{suffix}", 200_000
    path.write_bytes(PACK[suffix](text(lines)))
    monkeypatch.setattr(size, "_CHUNK", 1 << 14)
    monkeypatch.setattr(size, "_MAX_BYTES", 1 << 20)
    monkeypatch.setattr(size, "_MAX_COMPRESSED_BYTES", 1 << 17)

    found = estimated_pairs(DataConfig(source=(str(path),)))

    assert found != lines
    assert found == pytest.approx(lines, rel=0.1)


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "damaged", "standard input"])
def test_text_that_cannot_be_read_or_not_twice_is_not_counted(kind: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "text", tmp_path / "whole"
    whole.write_bytes(text(5))
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "damaged":
        path.write_bytes(gzip.compress(text(5000))[:100])
    pairs = ("-",) if kind == "standard input" else (str(path),)

    assert estimated_pairs(DataConfig(source=(str(whole),), pairs=pairs)) is None
