import os
import socket
from pathlib import Path

import pytest

from tests.odd_files import KINDS, make_odd
from tfm_cli.files.untrusted import (
    NotPrivateError,
    check_private,
    open_regular,
    parse_json,
    parse_json_object,
    read_private,
    read_private_json,
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

    for name, message in (
        ("pipe", "is not a regular file"),
        ("zero", "is not a regular file"),
        (".", "is a directory"),
        ("gone", "No such file"),
        ("circle", "Too many levels"),
    ):
        with pytest.raises(OSError, match=message):
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"\xff", "'utf-8' codec"),
        (b"[1] x", "Extra data"),
        (b'{"a": {"b": 1, "b": 2}}', "the name `b` occurs twice"),
        (b"[NaN]", "NaN is not a finite number"),
        (b"[-Infinity]", "-Infinity is not a finite number"),
        (b"[1e400]", "1e400 is not a finite number"),
        (b"[-1e400]", "-1e400 is not a finite number"),
        (b"[" * 9 + b"]" * 9, "nested deeper than 8 levels"),
        (b"[" * 200_000 + b"]" * 200_000, "nested deeper than 8 levels"),
        (b'{"a":' * 200_000, "nested deeper than 8 levels"),
        (b"1" * 5000, "Exceeds the limit"),
    ],
)
def test_invalid_json_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[" * 8 + b"]" * 8, [[[[[[[[]]]]]]]]),
        (b'\xef\xbb\xbf{"a": [1, 1.5, true, "\\udc80"]}', {"a": [1, 1.5, True, "\udc80"]}),
        (b"1e300", 1e300),
        (b'"[[[[[[[[[["', "[[[[[[[[[["),
    ],
)  # fmt: skip
def test_valid_json_is_parsed(content: bytes, expected: object) -> None:
    assert parse_json(content) == expected


def test_only_an_object_is_accepted() -> None:
    assert parse_json_object(b"{}") == {}
    with pytest.raises(ValueError, match="it is not a JSON object"):
        parse_json_object(b"[]")


def test_object_is_read(tmp_path: Path, log_messages: list[str]) -> None:
    (tmp_path / "file").write_bytes(b'{"a": [1]}')

    assert read_private_json(tmp_path / "file") == {"a": [1]}
    assert log_messages == []


def test_missing_file_causes_no_warning(tmp_path: Path, log_messages: list[str]) -> None:
    assert read_private_json(tmp_path / "file") is None
    assert log_messages == []


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "kind", ["pipe", "folder", "socket", "symbolic link", "hard link", "dangling", "denied"]
)
def test_unreadable_file_is_treated_as_absent_with_a_warning(
    kind: str, tmp_path: Path, log_messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("file")
    elif kind == "symbolic link":
        (tmp_path / "other").write_bytes(b"{}")
        path.symlink_to("other")
    elif kind == "hard link":
        (tmp_path / "other").write_bytes(b"{}")
        path.hardlink_to("other")
    elif kind == "dangling":
        path.symlink_to("nothing")
    else:
        path.write_bytes(b"{}")

        def deny(*_: object, **__: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", deny)

    assert read_private_json(path, fallback="it begins again") is None

    reason = {"folder": "directory", "dangling": "symbolic link", "denied": "Permission denied"}
    assert len(log_messages) == 1
    assert log_messages[0].startswith(f"{path}: cannot be read: ")
    assert reason.get(kind, kind) in log_messages[0]
    assert log_messages[0].endswith("; it begins again")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"[1]", "it is not a JSON object"),
        (b"[" * 200_000, "it is nested deeper than 8 levels"),
        (b'{"a":' * 200_000, "it is nested deeper than 8 levels"),
        (b"\xff", "byte 1 is 0xff, expected UTF-8"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number has too many digits"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "expected at most 1048576"),
    ],
    ids=["empty", "list", "brackets", "braces", "no UTF-8", "NaN", "digits", "large"],
)
def test_damaged_file_is_treated_as_absent_with_a_warning(
    content: bytes, reason: str, tmp_path: Path, log_messages: list[str]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    assert read_private_json(path) is None

    assert len(log_messages) == 1
    assert log_messages[0].startswith(f"{path}: is damaged: ")
    assert reason in log_messages[0]
    assert log_messages[0].endswith("; it is treated as absent")
