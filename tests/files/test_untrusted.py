import os
from pathlib import Path

import pytest

from tests.odd_files import KINDS, make_odd
from tfm_cli.files.untrusted import (
    NotPrivateError,
    check_private,
    open_regular,
    read_private,
    read_regular,
)


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")

    assert read_regular(tmp_path / "file", max_bytes=7) == b"content"
    with open_regular(tmp_path / "file") as file:
        assert file.read(3) == b"con"


def test_link_to_a_regular_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")

    assert read_regular(tmp_path / "link", max_bytes=10) == b"content"


def test_file_over_the_size_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")

    with pytest.raises(ValueError, match="has 7 bytes, expected at most 6"):
        read_regular(tmp_path / "file", max_bytes=6)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_file_without_a_size_is_read_up_to_the_limit() -> None:
    with pytest.raises(ValueError, match="has more than 10 bytes"):
        read_regular(Path("/proc/self/status"), max_bytes=10)


def test_irregular_file_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "gone").symlink_to("nothing")
    (tmp_path / "circle").symlink_to("circle")

    for name, told in (
        ("pipe", "is not a regular file"),
        ("zero", "is not a regular file"),
        (".", "is a directory"),
        ("gone", "No such file"),
        ("circle", "Too many levels"),
    ):
        with pytest.raises(OSError, match=told):
            read_regular(tmp_path / name, max_bytes=10)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_file_that_becomes_a_pipe_is_refused_after_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    before, stat = num_open(), (tmp_path / "file").stat()
    monkeypatch.setattr(os, "stat", lambda path: stat)

    with pytest.raises(OSError, match="is not a regular file"):
        open_regular(tmp_path / "pipe")

    monkeypatch.undo()
    assert num_open() == before


@pytest.mark.parametrize("kind", KINDS)
def test_private_file_is_not_read_through_an_irregular_one(kind: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"theirs")
    make_odd(kind, tmp_path / "journal", tmp_path / "victim")
    before = num_open()

    for read in (check_private, lambda path: read_private(path, max_bytes=10)):
        with pytest.raises(NotPrivateError) as raised:
            read(tmp_path / "journal")
        assert raised.value.filename == str(tmp_path / "journal")

    assert num_open() == before


def test_private_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"content")

    assert check_private(tmp_path / "journal")
    assert not check_private(tmp_path / "none")
    assert read_private(tmp_path / "journal", max_bytes=7) == b"content"
    with pytest.raises(ValueError, match="has 7 bytes, expected at most 6"):
        read_private(tmp_path / "journal", max_bytes=6)
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "none", max_bytes=6)
