import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.corpus.conftest import hostile_lines, write
from tfm_cli.corpus import parallel_text
from tfm_cli.corpus import store as store_module
from tfm_cli.corpus.batching import CorpusSpan
from tfm_cli.corpus.encoding import id_type, length_type
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.parallel_text import read_corpus
from tfm_cli.corpus.prepare import prepare
from tfm_cli.corpus.sources import aligned_files
from tfm_cli.corpus.store import CorpusStore, Segments, open_store
from tfm_cli.errors import DataError
from tfm_cli.tokenizer.pair import TokenizerPair


@pytest.fixture
def directory(bytes_pair: TokenizerPair, tmp_path: Path) -> Path:
    """A small corpus on disk."""
    lines = [b"of the", b"a", b"bb ccc of"]
    files = aligned_files([write(tmp_path / "a", lines)], [write(tmp_path / "b", lines[::-1])])
    prepare(files, bytes_pair, Filters(40), tmp_path / "store", workers=0)
    return tmp_path / "store"


def test_gather_returns_the_requested_segments(directory: Path) -> None:
    store = open_store(directory, ())
    for indices in ([2, 0, 2], [1], []):
        actual = store.source.gather(np.array(indices, dtype=np.int64))
        ids, lengths = actual.ids, actual.lengths

        expected = [store.source[index].tolist() for index in indices]
        assert ids.dtype == lengths.dtype == np.int64
        assert lengths.tolist() == [len(segment) for segment in expected]
        assert ids.tolist() == [piece for segment in expected for piece in segment]


def test_gather_works_on_segments_in_memory() -> None:
    segments = Segments(np.arange(10, dtype=np.uint16), np.array([0, 3, 3, 10]))

    actual = segments.gather(np.array([2, 1, 0]))
    ids, lengths = actual.ids, actual.lengths

    assert ids.tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert lengths.tolist() == [7, 0, 3]
    assert segments.lengths.dtype == np.uint16


def test_memory_is_released_after_many_segments() -> None:
    released: list[int] = []
    segments = Segments(
        np.arange(3), np.array([0, 1, 3]), release=lambda: released.append(len(asked))
    )
    asked: list[int] = []

    for _ in range(9):
        asked.append(0)
        segments.gather(np.array([0, 1] * 600))

    assert released == [4, 8]


def test_content_can_be_read_after_its_memory_was_released(directory: Path) -> None:
    store = open_store(directory, ())
    before = [store.source[index].tolist() for index in range(3)]

    store.release()

    assert [store.source[index].tolist() for index in range(3)] == before


def test_weights_are_those_of_the_files(directory: Path) -> None:
    assert open_store(directory, (0.5,)).spans == (CorpusSpan(0, 3, 0.5),)
    assert open_store(directory, ()).spans == (CorpusSpan(0, 3, 1.0),)


@pytest.mark.parametrize("name", ["source.ids", "target.starts", "source.lengths", "store.json"])
@pytest.mark.parametrize("kind", ["missing", "short", "empty"])
def test_incomplete_corpus_is_refused(name: str, kind: str, directory: Path) -> None:
    path = directory / name
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-2] if kind == "short" else b"")

    with pytest.raises(DataError, match=r"store: is not a complete corpus: ") as caught:
        open_store(directory, ())

    assert caught.value.hint == "remove the folder, and it will be written again"


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 9},
        {"pairs": "x"},
        {"files": [2]},
        {"files": []},
        {"files": [10**400]},
        {"files": [-3, 6]},
        {"files": 3},
        {"pieces": [1]},
        {"pieces": None},
        {"pieces": [True, 1]},
        {"id_types": ["O", "O"]},
        {"id_types": [["<u2"], {}]},
        {"length_type": ["<u2"]},
        {"vocab_sizes": [1e9, 2]},
        {"dropped": ["a"]},
        {"dropped": {"a": "b"}},
        {"dropped": {"\n# a": 1}},
        {"sha256": None},
        {"sha256": "x"},
    ],
    ids=repr,
)
def test_inconsistent_metadata_is_refused(changes: dict[str, object], directory: Path) -> None:
    path = directory / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")

    with pytest.raises(DataError, match="is not a complete corpus"):
        open_store(directory, ())


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["store.json", "source.ids", "target.lengths"])
def test_pipe_or_link_is_refused_without_blocking(
    name: str, directory: Path, tmp_path: Path
) -> None:
    whole = (directory / name).rename(tmp_path / "whole")
    os.mkfifo(directory / name)
    with pytest.raises(DataError, match=r"not a complete corpus: it is a pipe"):
        open_store(directory, ())

    (directory / name).unlink()
    (directory / name).symlink_to(whole)
    with pytest.raises(DataError, match=r"store: is not a complete corpus: it is a symbolic link"):
        open_store(directory, ())


def test_metadata_that_is_nested_or_large_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (directory / "store.json").read_bytes()
    (directory / "store.json").write_bytes(b"[" * 200_000)
    with pytest.raises(DataError, match="nested deeper than 8 levels"):
        open_store(directory, ())

    (directory / "store.json").write_bytes(whole)
    monkeypatch.setattr(store_module, "_MAX_METADATA_BYTES", len(whole) - 1)
    with pytest.raises(DataError, match="bytes, expected at most"):
        open_store(directory, ())


def test_corpus_for_another_tokenizer_or_limit_is_refused(directory: Path) -> None:
    longest = int(open_store(directory, ()).source.lengths.max()) - 1
    open_store(directory, (1.0,), max_length=longest)

    with pytest.raises(DataError, match=r"has vocabularies of .* tokens"):
        open_store(directory, (), vocab_sizes=(1, 2))
    with pytest.raises(DataError, match="lengths of the source are out of range"):
        open_store(directory, (), max_length=longest - 1)
    with pytest.raises(DataError, match="has 1 files, expected 2"):
        open_store(directory, (1.0, 1.0))


def test_lengths_below_one_are_refused(directory: Path) -> None:
    path = directory / "source.lengths"
    lengths = np.fromfile(path, np.uint16)
    lengths[:2] = 0, lengths[:2].sum()
    lengths.tofile(path)

    with pytest.raises(DataError, match="lengths of the source are out of range"):
        open_store(directory, ())


def flip(path: Path, position: int) -> None:
    """Flip all bits of one byte; negative positions count from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["source.ids", "target.ids"])
def test_ids_that_the_tokenizer_does_not_have_are_refused(name: str, directory: Path) -> None:
    flip(directory / name, 1)
    store = open_store(directory, ())

    with pytest.raises(
        DataError, match="store: is not a complete corpus: has ids outside"
    ) as caught:
        getattr(store, name.split(".")[0]).gather(np.arange(3))

    assert caught.value.hint == "remove the folder, and it will be written again"


def test_changed_lengths_are_refused(directory: Path) -> None:
    flip(directory / "source.lengths", 2)

    with pytest.raises(DataError, match="lengths of the source do not add up to its tokens"):
        open_store(directory, ())


@pytest.mark.parametrize("position", [0, -1])
def test_first_and_last_offset_are_checked(position: int, directory: Path) -> None:
    flip(directory / "target.starts", position)

    with pytest.raises(DataError, match="lengths of the target do not add up"):
        open_store(directory, ())


@pytest.mark.parametrize("position", [8, 15, 16])
def test_wrong_offsets_are_refused(position: int, directory: Path) -> None:
    flip(directory / "target.starts", position)
    store = open_store(directory, ())

    with pytest.raises(DataError, match="segments with wrong offsets"):
        store.target.gather(np.arange(3))


def test_types_are_the_narrowest_that_fit() -> None:
    assert id_type(1 << 16) == np.uint16
    assert id_type((1 << 16) + 1) == np.int32
    assert length_type((1 << 16) - 2) == np.uint16
    assert length_type((1 << 16) - 1) == np.int32


@pytest.mark.parametrize("workers", [0, 2])
def test_repeated_pairs_are_dropped(
    workers: int, bytes_pair: TokenizerPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_text, "MAX_BLOCK_LINES", 60)
    monkeypatch.setattr(store_module, "_COPIED_PAIRS", 17)
    lines = hostile_lines(1, 40)
    sources = [(lines + lines[::-1] + lines)[i] for i in range(120)]
    targets = [(lines * 2 + lines[::-1])[i] for i in range(120)]
    paths = [[write(tmp_path / f"{side}{n}", half) for n, half in enumerate((all_[:70], all_[70:]))]
             for side, all_ in (("a", sources), ("b", targets))]  # fmt: skip
    files = aligned_files(*paths)

    prepare(files, bytes_pair, Filters(40, duplicates=True), tmp_path / "s", workers=workers)

    pairs = list(read_corpus(files))
    usable = CorpusStore.build(pairs, bytes_pair, max_length=40, name="x")
    seen: set[tuple[str, str]] = set()
    unique = [pair for pair in pairs if not (pair in seen or seen.add(pair))]  # type: ignore[func-returns-value] # None
    expected = CorpusStore.build(unique, bytes_pair, max_length=40, name="x")
    actual = open_store(tmp_path / "s", ())
    assert actual.sha256() == expected.sha256()
    assert actual.dropped["duplicate"] == len(usable) - len(expected) > 0
    assert [actual.target[i].tolist() for i in range(len(actual))] == [
        expected.target[i].tolist() for i in range(len(expected))
    ]
    first = CorpusStore.build(dict.fromkeys(pairs[:70]), bytes_pair, max_length=40, name="x")
    assert [span.end for span in actual.spans] == [len(first), len(expected)]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "source.ids", "source.lengths", "source.starts", "store.json",
        "target.ids", "target.lengths", "target.starts",
    ]  # fmt: skip


def test_store_in_memory_has_no_spans(bytes_pair: TokenizerPair) -> None:
    store = CorpusStore.build([("a", "bb")] * 3, bytes_pair, max_length=9, name="x")

    assert store.spans == ()
    store.release()
    assert store.dropped == Counter()
