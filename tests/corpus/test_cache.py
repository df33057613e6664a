import fcntl
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.conftest import write
from tfm_cli.corpus import prepare
from tfm_cli.corpus import prepare as module
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.prepare import FileHashes, cached_store, remove_stale
from tfm_cli.corpus.sources import CorpusFile, aligned_files
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.errors import DataError
from tfm_cli.files.atomic import temporary_directory
from tfm_cli.files.ownership import temporary_name
from tfm_cli.tokenizer.pair import TokenizerPair


@pytest.fixture
def files(tmp_path: Path) -> tuple[CorpusFile, ...]:
    """Three pairs."""
    lines = [b"of", b"the a", b"bb"]
    return aligned_files([write(tmp_path / "a", lines)], [write(tmp_path / "b", lines)])


@pytest.fixture
def cached(tmp_path: Path, bytes_pair: TokenizerPair) -> Any:
    """Return a function that calls `cached_store` with a cache in `tmp_path`."""

    def call(
        files: tuple[CorpusFile, ...],
        filters: Filters = Filters(9),  # noqa: B008 - it cannot be changed
        tokenizers: TokenizerPair = bytes_pair,
        weights: tuple[float, ...] = (),
    ) -> tuple[CorpusStore, Path]:
        return cached_store(
            tmp_path / "out" / "cache", files, tokenizers, filters, weights=weights, workers=0
        )

    return call


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if text is prepared or opened."""
    monkeypatch.delattr(module, "prepare")
    before = Path.open

    def opened(self: Path, *arguments: Any, **named: Any) -> Any:
        assert self.name not in ("a", "b")
        return before(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", opened)


def test_second_run_neither_prepares_nor_reads_the_text(
    files: tuple[CorpusFile, ...], cached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, directory = cached(files)
    no_reading(monkeypatch)

    second, again = cached(files, weights=(2.0,))

    assert again == directory
    assert second.sha256() == first.sha256()
    assert second.spans[0].weight == 2.0


def test_touched_or_moved_text_is_recognized(
    files: tuple[CorpusFile, ...], cached: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, directory = cached(files)
    os.utime(files[0].paths[0], ns=(1, 1))
    moved = (tmp_path / "b").rename(tmp_path / "c")
    monkeypatch.delattr(module, "prepare")

    assert cached(aligned_files([files[0].paths[0]], [str(moved)]))[1] == directory


def test_key_depends_on_everything_that_ids_depend_on(
    files: tuple[CorpusFile, ...], cached: Any, bytes_pair: TokenizerPair, tmp_path: Path
) -> None:
    (source, target) = files[0].paths
    directories = [
        cached(files)[1],
        cached(files, Filters(8))[1],
        cached(files, Filters(9, max_ratio=2.0))[1],
        cached(files, Filters(9, duplicates=True))[1],
        cached(files, tokenizers=TokenizerPair.joint(bytes_pair.source))[1],
        cached((*files, *files))[1],
    ]
    write(tmp_path / "b", [b"of", b"the a", b"a"])
    directories.append(cached(files)[1])
    directories.append(cached(aligned_files([target], [source]))[1])

    assert len(set(directories)) == len(directories)


@pytest.mark.parametrize("damage", ["short", "missing", "facts"])
def test_incomplete_corpus_is_prepared_again_with_a_warning(
    damage: str, files: tuple[CorpusFile, ...], cached: Any, log_messages: list[str]
) -> None:
    store, directory = cached(files)
    expected = store.sha256()
    if damage == "missing":
        (directory / "target.starts").unlink()
    else:
        (directory / ("store.json" if damage == "facts" else "source.ids")).write_bytes(b"{")
    log_messages.clear()

    actual, _ = cached(files)

    assert actual.sha256() == expected
    assert len(log_messages) == 1
    assert log_messages[0].startswith(f"{directory}: is not a complete corpus: ")
    assert log_messages[0].endswith("; preparing it again")


def test_interrupted_preparation_is_not_used(files: tuple[CorpusFile, ...], cached: Any) -> None:
    store, directory = cached(files)
    directory.rename(directory.with_name(temporary_name(directory.name)))

    assert cached(files)[0].sha256() == store.sha256()
    assert sorted(p.name for p in directory.parent.iterdir()) == sorted(
        ["files.json", directory.name]
    )


def test_text_that_changes_while_it_is_read_is_refused(
    files: tuple[CorpusFile, ...], cached: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare.prepare

    def slow(*arguments: Any, **named: Any) -> None:
        before(*arguments, **named)
        write(tmp_path / "b", [b"x", b"y", b"zz", b""])

    monkeypatch.setattr(module, "prepare", slow)

    with pytest.raises(DataError, match=r"a: was changed while it was read"):
        cached(files)

    assert not (tmp_path / "out").exists()


def test_corpus_that_another_run_prepared_at_the_same_time_is_used(
    files: tuple[CorpusFile, ...], cached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path.replace

    def overtaken(self: Path, target: Path) -> Path:
        if self.name.endswith(".part") and self.is_dir():
            shutil.copytree(self, target)
        return before(self, target)  # which the system refuses, as the folder is not empty

    monkeypatch.setattr(Path, "replace", overtaken)

    store, directory = cached(files)

    assert len(store) == 3
    assert sorted(p.name for p in directory.parent.iterdir()) == sorted(
        ["files.json", directory.name]
    )


def test_text_that_disappears_while_it_is_read_is_refused(
    files: tuple[CorpusFile, ...], cached: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare.prepare

    def slow(*arguments: Any, **named: Any) -> None:
        before(*arguments, **named)
        (tmp_path / "b").unlink()

    monkeypatch.setattr(module, "prepare", slow)

    with pytest.raises(DataError, match=r"a: was changed while it was read"):
        cached(files)


def test_other_text_of_the_same_size_and_time_is_another_corpus(
    files: tuple[CorpusFile, ...], cached: Any
) -> None:
    path = Path(files[0].paths[0])
    status = path.stat()
    _, before = cached(files)

    path.write_bytes(path.read_bytes().replace(b"of", b"bb"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert path.stat().st_ino == status.st_ino
    assert path.stat().st_size == status.st_size
    assert cached(files)[1] != before


def test_failure_removes_a_new_cache(
    files: tuple[CorpusFile, ...], cached: Any, tmp_path: Path
) -> None:
    write(tmp_path / "b", [b"one line"])

    with pytest.raises(DataError, match="do not align"):
        cached(files)
    assert not (tmp_path / "out").exists()

    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="do not align"):
        cached(files)
    assert list((tmp_path / "out").iterdir()) == []


def test_failure_keeps_texts_prepared_before(
    files: tuple[CorpusFile, ...], cached: Any, tmp_path: Path
) -> None:
    _, directory = cached(files)
    write(tmp_path / "b", [b"one line"])

    with pytest.raises(DataError, match="do not align"):
        cached(files)

    assert (directory / "store.json").is_file()


def test_stale_texts_are_removed_but_file_hashes_are_kept(
    files: tuple[CorpusFile, ...], cached: Any
) -> None:
    cached(files, Filters(8))
    _, directory = cached(files)
    (directory.parent / f".{directory.name}.123.part").mkdir()
    (directory.parent / ".stdin.123.part").write_bytes(b"of\tof\n")

    remove_stale(directory)

    assert sorted(p.name for p in directory.parent.iterdir()) == sorted(
        [directory.name, "files.json"]
    )


def test_text_in_use_by_another_run_is_not_removed(
    files: tuple[CorpusFile, ...], cached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, used = cached(files, Filters(8))
    _, directory = cached(files)

    remove_stale(directory)
    assert used.exists()

    del store
    with monkeypatch.context() as inside:
        inside.setattr(fcntl, "flock", lambda *_: os.close(-1))  # no locks
        remove_stale(directory)
    assert used.exists()

    remove_stale(directory)
    assert not used.exists()


def test_leftovers_of_any_text_are_swept_unless_locked(
    files: tuple[CorpusFile, ...], cached: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "out" / "cache"
    other, key = cache / ("0" * 32), "1" * 32
    cache.mkdir(parents=True)
    for name in (temporary_name(key), temporary_name(key, "trash")):
        (cache / name).mkdir()
    (cache / temporary_name("stdin")).touch()
    (cache / f".{key}.lock").touch()
    kept = [".x.tfm-0123456789abcdef.part", f".{key}.7.part", ".notes", "mine"]
    for name in kept:  # somebody else's, or of version 0.1, which held no locks
        (cache / name).touch()

    with temporary_directory(other) as held:
        _, directory = cached(files)
        actual = {path.name for path in cache.iterdir()}

    assert actual == {*kept, held.name, directory.name, "files.json"}


@pytest.mark.timeout(10)
def test_pipe_in_place_of_the_hashes_does_not_block(
    files: tuple[CorpusFile, ...], cached: Any, log_messages: list[str]
) -> None:
    store, directory = cached(files)
    path = directory.parent / "files.json"
    path.unlink()
    os.mkfifo(path)
    log_messages.clear()

    assert cached(files)[0].sha256() == store.sha256()

    assert len(log_messages) == 1
    assert log_messages[0].startswith(f"{path}: cannot be read: ")
    assert log_messages[0].endswith("; it is left unchanged and ignored")
    assert path.is_fifo()


def test_link_in_place_of_the_hashes_is_not_followed(
    files: tuple[CorpusFile, ...], cached: Any, tmp_path: Path
) -> None:
    (tmp_path / "victim").write_bytes(b"{}")
    (tmp_path / "out" / "cache").mkdir(parents=True)
    path = tmp_path / "out" / "cache" / "files.json"
    path.symlink_to(tmp_path / "victim")

    cached(files)

    assert (tmp_path / "victim").read_bytes() == b"{}"
    assert path.is_symlink()


@pytest.mark.parametrize("change", ["size", "time", "length", "digest", "kind"])
def test_malformed_hash_is_dropped(
    change: str, files: tuple[CorpusFile, ...], tmp_path: Path
) -> None:
    path = tmp_path / "files.json"
    hashes = FileHashes(path)
    expected = hashes.of(files[0])
    hashes.save()
    actual = json.loads(path.read_bytes())
    for entry in actual.values():
        if change == "length":
            entry.append(0)
        else:
            index = {"size": 0, "time": 1}.get(change, 4)
            entry[index] = {"digest": "x" * 64, "kind": 5}.get(change, True)
    path.write_text(json.dumps(actual), encoding="utf-8")

    assert FileHashes(path).of(files[0]) == expected


def test_no_more_hashes_are_written_than_can_be_read(
    tmp_path: Path, log_messages: list[str]
) -> None:
    hashes = FileHashes(tmp_path / "files.json")
    paths = []
    for number in range(40):
        folder = tmp_path / ("x" * 200) / f"{number:03}{'y' * 200}"
        folder.mkdir(parents=True)
        paths.append(write(folder / "z", [b"of"]))
    hashes.of(CorpusFile(tuple(paths), tuple(paths), "tsv"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_JSON_BYTES", 8000)
        hashes.save()

    assert 4000 < (tmp_path / "files.json").stat().st_size < 8000
    assert paths[-1] in json.loads((tmp_path / "files.json").read_bytes())
    assert paths[0] not in json.loads((tmp_path / "files.json").read_bytes())


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    "content", [b"[]", b'["a.png"]', b"\xff", DEEP, b'["' + b"a" * (2 << 20) + b'"]'], ids=len
)
def test_malformed_files_json_is_left_unchanged(
    content: bytes, files: tuple[CorpusFile, ...], tmp_path: Path, log_messages: list[str]
) -> None:
    path = tmp_path / "files.json"
    path.write_bytes(content)

    hashes = FileHashes(path)
    actual = hashes.of(files[0])
    hashes.save()

    assert actual[0] == actual[1] != ""
    assert path.read_bytes() == content
    assert len(log_messages) == 1
    assert log_messages[0].endswith("; it is left unchanged and ignored")


@pytest.mark.parametrize("content", [b"", b"{}"])
def test_empty_files_json_is_replaced(
    content: bytes, files: tuple[CorpusFile, ...], tmp_path: Path
) -> None:
    path = tmp_path / "files.json"
    path.write_bytes(content)

    hashes = FileHashes(path)
    actual = hashes.of(files[0])
    hashes.save()

    assert actual[0] == actual[1] != ""
    assert FileHashes(path).of(files[0]) == actual
    assert len(json.loads(path.read_bytes())) == 2


@pytest.mark.parametrize("content", [b'{"x": 1}', b'{"x": [1, 2]}', b'{"files": ["a.py"]}'])
def test_foreign_files_json_is_left_unchanged(
    content: bytes, files: tuple[CorpusFile, ...], tmp_path: Path, log_messages: list[str]
) -> None:
    path = tmp_path / "files.json"
    path.write_bytes(content)

    hashes = FileHashes(path)
    actual = hashes.of(files[0])
    hashes.save()

    assert actual[0] == actual[1] != ""
    assert path.read_bytes() == content
    assert log_messages == [f"{path}: was not written by tfm; it is left unchanged"]


def test_unreadable_text_is_refused(tmp_path: Path) -> None:
    file = CorpusFile((str(tmp_path / "none"),), ("text",), "tsv")

    with pytest.raises(DataError, match="text: cannot be read: No such file or directory"):
        FileHashes(tmp_path / "files.json").of(file)


def test_read_only_cache_can_be_used(
    files: tuple[CorpusFile, ...], cached: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, directory = cached(files)
    (directory.parent / "files.json").unlink()
    (directory.parent / "files.json").mkdir()  # in the way

    with caplog.at_level(logging.WARNING):
        assert cached(files)[0].sha256() == store.sha256()
