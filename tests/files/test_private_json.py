import os
import socket
from pathlib import Path

import pytest

from tfm_cli.files.untrusted import read_private_json


def test_object_is_read(tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "file").write_bytes(b'{"a": [1]}')

    assert read_private_json(tmp_path / "file") == {"a": [1]}
    assert told == []


def test_missing_file_causes_no_warning(tmp_path: Path, told: list[str]) -> None:
    assert read_private_json(tmp_path / "file") is None
    assert told == []


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "kind", ["pipe", "folder", "socket", "symbolic link", "hard link", "dangling", "denied"]
)
def test_unreadable_file_is_treated_as_absent_with_a_warning(
    kind: str, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
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
    assert len(told) == 1
    assert told[0].startswith(f"{path}: cannot be read: ")
    assert reason.get(kind, kind) in told[0]
    assert told[0].endswith("; it begins again")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"[1]", "it is not a JSON object"),
        (b"[" * 200_000, "it is nested deeper than 8 levels"),
        (b'{"a":' * 200_000, "it is nested deeper than 8 levels"),
        (b"\xff", "invalid start byte"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "expected at most 1048576"),
    ],
    ids=["empty", "list", "brackets", "braces", "no UTF-8", "NaN", "digits", "large"],
)
def test_damaged_file_is_treated_as_absent_with_a_warning(
    content: bytes, reason: str, tmp_path: Path, told: list[str]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    assert read_private_json(path) is None

    assert len(told) == 1
    assert told[0].startswith(f"{path}: is damaged: ")
    assert reason in told[0]
    assert told[0].endswith("; it is treated as absent")
