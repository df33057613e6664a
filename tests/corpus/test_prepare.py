"""Preparation by any number of processes, compared with the plain reader and a store in memory."""

import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus.conftest import hostile_lines, write
from tfm_cli.corpus import parallel_text
from tfm_cli.corpus import prepare as preparing
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.parallel_text import read_corpus
from tfm_cli.corpus.prepare import num_workers, prepare
from tfm_cli.corpus.sources import CorpusFile, aligned_files
from tfm_cli.corpus.store import CorpusStore, open_store
from tfm_cli.errors import DataError
from tfm_cli.text import reader
from tfm_cli.text.reader import open_lines
from tfm_cli.tokenizer.pair import TokenizerPair

FILTERS = Filters(40)


def plain(files: tuple[CorpusFile, ...]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the pairs of aligned files, read line by line, and the notes of the readers."""
    pairs, notes = [], []
    for file in files:
        with open_lines(file.paths[0]) as sources, open_lines(file.paths[1]) as targets:
            pairs += list(zip(sources, targets, strict=True))
            notes += [f"{one.name}: {note}" for one in (sources, targets) for note in one.notes()]
    return pairs, notes


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_same(actual: CorpusStore, expected: CorpusStore) -> None:
    assert len(actual) == len(expected)
    for index in range(len(expected)):
        assert actual.source[index].tolist() == expected.source[index].tolist()
        assert actual.target[index].tolist() == expected.target[index].tolist()
    assert actual.source.lengths.tolist() == expected.source.lengths.tolist()
    assert actual.target.lengths.tolist() == expected.target.lengths.tolist()
    assert actual.dropped == expected.dropped
    assert actual.sha256() == expected.sha256()


@pytest.mark.parametrize(("block_bytes", "max_lines"), [(1, 3), (500, 10_000), (1 << 18, 16_384)])
def test_store_equals_that_of_the_plain_reader_in_memory(
    block_bytes: int,
    max_lines: int,
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel_text, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(parallel_text, "MAX_BLOCK_LINES", max_lines)
    monkeypatch.setattr(reader, "_CHUNK_BYTES", max(100, block_bytes // 4))
    expected = CorpusStore.build(plain(two_files)[0], bytes_pair, max_length=40, name="x")

    prepare(two_files, bytes_pair, FILTERS, tmp_path / "store", workers=0)

    actual = open_store(tmp_path / "store", ())
    assert_same(actual, expected)
    first, second = actual.spans
    one = len(CorpusStore.build(plain(two_files[:1])[0], bytes_pair, max_length=40, name="x"))
    assert (first.first, first.end, first.weight) == (0, one, 1.0)
    assert (second.first, second.end, second.weight) == (one, len(expected), 1.0)


def test_bytes_do_not_depend_on_the_number_of_processes(
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel_text, "MAX_BLOCK_LINES", 50)
    for workers in (0, 1, 3):
        prepare(two_files, bytes_pair, FILTERS, tmp_path / str(workers), workers=workers)

    assert content(tmp_path / "1") == content(tmp_path / "0")
    assert content(tmp_path / "3") == content(tmp_path / "0")


def test_repairs_are_logged_like_those_of_the_plain_reader(
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    log_messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel_text, "MAX_BLOCK_LINES", 50)
    _, expected = plain(two_files)

    prepare(two_files, bytes_pair, FILTERS, tmp_path / "logged", workers=0)
    prepare(two_files, bytes_pair, FILTERS, tmp_path / "silent", workers=0, warn=False)

    assert log_messages == expected
    assert sum("NUL" in line for line in log_messages) == 4
    assert sum("end in CRLF" in line for line in log_messages) == 3
    log_messages.clear()
    assert list(read_corpus(two_files)) == plain(two_files)[0]
    assert log_messages == expected


def test_long_line_is_cut_like_by_the_plain_reader(
    bytes_pair: TokenizerPair, tmp_path: Path, log_messages: list[str]
) -> None:
    long = "é".encode() * (reader.MAX_LINE_BYTES // 2)
    lines = [b"a", long + b"x\r", b"b", long, b"of" + long * 2, b"c"]
    files = aligned_files(
        [write(tmp_path / "a", lines, end=b"\r\n")], [write(tmp_path / "b", [b"the"] * 6)]
    )
    filters = Filters(10_000_000)
    pairs, expected = plain(files)

    actual = list(read_corpus(files, warn=False))
    prepare(files, bytes_pair, filters, tmp_path / "store", workers=0)

    assert actual == pairs
    assert log_messages == expected
    assert len(open_store(tmp_path / "store", ())) == 6


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("line", [1, 100, 700])
def test_first_invalid_line_is_reported_with_its_number(
    line: int,
    workers: int,
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel_text, "MAX_BLOCK_LINES", 40)
    lines = hostile_lines(5, 700)
    source = write(tmp_path / "a", lines)
    lines[line - 1] = b"ab\xff"
    target = write(tmp_path / "b", [*lines[:-1], lines[-1] if line == 700 else b"\xfe"])

    with pytest.raises(DataError) as caught:
        prepare(
            aligned_files([source], [target]), bytes_pair, FILTERS, tmp_path / "store",
            workers=workers,
        )  # fmt: skip

    assert str(caught.value) == f"{target}:{line}: byte 3: 0xff is not UTF-8"
    assert caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("workers", [0, 2])
def test_misaligned_files_are_all_reported_and_nothing_is_left(
    workers: int, bytes_pair: TokenizerPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_text, "MAX_BLOCK_LINES", 60)
    a, b = write(tmp_path / "a", [b"x"] * 500), write(tmp_path / "b", [b"x"] * 499)
    c, d = write(tmp_path / "c", [b""]), write(tmp_path / "d", [b"x"] * 300 + [b"y"])

    with pytest.raises(DataError) as caught:
        prepare(
            aligned_files([a, c], [b, d]), bytes_pair, FILTERS, tmp_path / "store",
            workers=workers,
        )  # fmt: skip

    assert str(caught.value) == (
        f"{a} and {b} do not align: 500 and 499 lines\n  {c} and {d} do not align: 1 and 301 lines"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_text_without_a_usable_pair_is_refused_with_the_counts(
    bytes_pair: TokenizerPair, tmp_path: Path
) -> None:
    a, b = write(tmp_path / "a", [b"", b"of " * 99]), write(tmp_path / "b", [b"x", b"x"])

    with pytest.raises(DataError) as caught:
        prepare(aligned_files([a], [b]), bytes_pair, FILTERS, tmp_path / "store", workers=0)

    assert str(caught.value) == f"{a}: 0 usable pairs, dropped: 1 blank side, 1 too long"


def test_compressed_text_is_the_same_text(bytes_pair: TokenizerPair, tmp_path: Path) -> None:
    lines = hostile_lines(6, 200)
    plain = write(tmp_path / "plain", lines)
    (tmp_path / "gzip").write_bytes(gzip.compress(Path(plain).read_bytes()))
    (tmp_path / "xz").write_bytes(lzma.compress(Path(plain).read_bytes()))

    for name in ("plain", "gzip", "xz"):
        files = aligned_files([str(tmp_path / name)], [plain])
        prepare(files, bytes_pair, FILTERS, tmp_path / f"{name}.store", workers=0)

    assert content(tmp_path / "gzip.store") == content(tmp_path / "plain.store")
    assert content(tmp_path / "xz.store") == content(tmp_path / "plain.store")


def test_interruption_leaves_nothing(
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel_text, "MAX_BLOCK_LINES", 40)

    def interrupted(files: tuple[CorpusFile, ...]) -> Iterator[parallel_text.Block]:
        for number, block in enumerate(parallel_text.read_blocks(files)):
            if number == 9:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(preparing, "read_blocks", interrupted)

    with pytest.raises(KeyboardInterrupt):
        prepare(two_files, bytes_pair, FILTERS, tmp_path / "new" / "store", workers=2)

    assert list((tmp_path / "new").iterdir()) == []


def test_small_text_is_encoded_without_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "available_cores", lambda **_: 4)
    files = aligned_files([write(tmp_path / "a", [b"x"])], [write(tmp_path / "b", [b"y"])])

    assert num_workers(files, 0) == 0
    assert num_workers(files, 2) == 2
    monkeypatch.setattr(preparing, "_MIN_BYTES_FOR_PROCESSES", 4)
    assert num_workers(files, 0) == 4
    monkeypatch.setattr(preparing, "available_cores", lambda **_: 1)
    assert num_workers(files, 0) == 0
