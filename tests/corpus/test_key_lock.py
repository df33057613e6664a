import fcntl
import os
import threading
from pathlib import Path

import pytest

from tests.odd_files import KINDS, make_odd
from tfm_cli.corpus import prepare as module
from tfm_cli.corpus.prepare import key_lock, sweep_locks
from tfm_cli.errors import ResourceError
from tfm_cli.files import durable
from tfm_cli.files.ownership import try_lock

KEY = "0123456789abcdef" * 2


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_lock_file_exists_inside_the_context_only(tmp_path: Path) -> None:
    with key_lock(tmp_path / "new" / KEY):
        assert names(tmp_path / "new") == [f".{KEY}.lock"]

    assert names(tmp_path / "new") == []


def test_second_run_waits_for_the_first_and_logs_it_once(
    tmp_path: Path, log_messages: list[str]
) -> None:
    order = []

    def second() -> None:
        with key_lock(tmp_path / KEY):
            order.append("second")

    with key_lock(tmp_path / KEY):
        thread = threading.Thread(target=second)
        thread.start()
        while not log_messages:
            thread.join(0.01)
        thread.join(0.3)
        order.append("first")
    thread.join(30)

    assert order == ["first", "second"]
    assert log_messages == [f"{tmp_path / KEY}: waiting for another run that prepares this text"]
    assert names(tmp_path) == []


def test_locks_of_other_texts_are_independent(tmp_path: Path) -> None:
    with key_lock(tmp_path / KEY), key_lock(tmp_path / KEY[::-1]):
        assert len(names(tmp_path)) == 2


def test_removed_lock_file_is_not_acquired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = try_lock

    def remove_first(descriptor: int) -> bool | None:
        monkeypatch.undo()
        (tmp_path / f".{KEY}.lock").unlink()
        return lock(descriptor)

    monkeypatch.setattr(module, "try_lock", remove_first)

    with key_lock(tmp_path / KEY), (tmp_path / f".{KEY}.lock").open("rb") as stream:
        assert lock(stream.fileno()) is False


def test_cache_that_another_run_removed_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_for_update = durable.open_for_update

    def remove_cache(path: Path) -> object:
        monkeypatch.undo()
        path.parent.rmdir()
        return open_for_update(path)

    monkeypatch.setattr(durable, "open_for_update", remove_cache)

    with key_lock(tmp_path / "cache" / KEY):
        assert names(tmp_path / "cache") == [f".{KEY}.lock"]


def test_file_system_without_locks_lets_both_runs_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    with key_lock(tmp_path / KEY), key_lock(tmp_path / KEY):
        sweep_locks(tmp_path)
        assert names(tmp_path) == [f".{KEY}.lock"]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", KINDS)
def test_file_that_is_not_a_lock_is_refused_and_left_unchanged(kind: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine\n")
    path = tmp_path / f".{KEY}.lock"
    make_odd(kind, path, tmp_path / "victim")
    before = path.lstat()

    with (
        pytest.raises(ResourceError, match=rf"\.{KEY}\.lock: cannot be written: "),
        key_lock(tmp_path / KEY),
    ):
        pass
    sweep_locks(tmp_path)

    assert os.path.samestat(path.lstat(), before)
    assert (tmp_path / "victim").read_bytes() == b"mine\n"
    assert not (tmp_path / "nowhere").exists()


def test_only_locks_of_killed_runs_are_swept(tmp_path: Path) -> None:
    held, free, foreign = (tmp_path / f".{digit * 32}.lock" for digit in "abc")
    free.touch()
    foreign.write_bytes(b"mine\n")
    (tmp_path / ".x.lock").touch()

    with key_lock(tmp_path / ("a" * 32)):
        sweep_locks(tmp_path)

        assert names(tmp_path) == sorted([held.name, foreign.name, ".x.lock"])
