import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tfm_cli.errors import ResourceError
from tfm_cli.files.layout import LOCK_FILE
from tfm_cli.training.run_directory import locked


def test_lock_is_there_inside_and_gone_behind(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    with locked(tmp_path / "model"):
        holder = json.loads((tmp_path / "model" / LOCK_FILE).read_bytes())

    assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
    assert list((tmp_path / "model").iterdir()) == []


def test_error_names_the_holder_of_the_lock(tmp_path: Path) -> None:
    host = socket.gethostname()
    message = rf"model: process {os.getpid()} on {host} has been training into it since 20\d\d-"

    with (
        locked(tmp_path / "model"),
        pytest.raises(ResourceError, match=message),
        locked(tmp_path / "model"),
    ):
        pass

    with locked(tmp_path / "model"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff" * 2000, b"[" * 2000])
def test_unknown_holder_is_another_process(content: bytes, tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_bytes(content)
        with (
            pytest.raises(ResourceError, match="another process is training into it"),
            locked(tmp_path),
        ):
            pass


def test_holder_who_is_about_to_tell_of_itself_is_waited_for(tmp_path: Path) -> None:
    facts = {"pid": 7, "host": "there", "since": "2026-11-22"}
    with (tmp_path / LOCK_FILE).open("wb", buffering=0) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        later = threading.Timer(0.1, stream.write, [json.dumps(facts).encode()])
        later.start()

        with (
            pytest.raises(
                ResourceError, match="process 7 on there has been training into it since 2026-11"
            ),
            locked(tmp_path),
        ):
            pass

        later.join()


def test_lock_of_a_killed_process_does_not_count(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path;"
        "from tfm_cli.training.run_directory import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, tmp_path / "model"], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "model" / LOCK_FILE).exists()

    with locked(tmp_path / "model"):
        pass

    assert not (tmp_path / "model" / LOCK_FILE).exists()


def test_new_directory_that_stays_empty_is_removed(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b"):
        pass
    with locked(tmp_path / "c" / "d"):
        (tmp_path / "c" / "d" / "kept").touch()

    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ResourceError, match="is not a directory"), locked(tmp_path / "file" / "x"):
        pass


def test_lock_that_is_a_pipe_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK_FILE)

    with (
        pytest.raises(ResourceError, match="cannot be written: it is a pipe, not a regular file"),
        locked(tmp_path),
    ):
        pass


def test_file_of_somebody_else_with_the_name_of_the_lock_is_refused_and_left(
    tmp_path: Path,
) -> None:
    (tmp_path / LOCK_FILE).write_bytes(b"theirs")

    message = f"{LOCK_FILE}: cannot be written: tfm is not known to have made it"
    with pytest.raises(ResourceError, match=message), locked(tmp_path):
        pass

    assert (tmp_path / LOCK_FILE).read_bytes() == b"theirs"


@pytest.mark.parametrize(
    "content", [b"", b'{"pid": 12', b'{"pid": 12, "host": "h", "since": "2026"}']
)
def test_lock_of_a_killed_run_is_acquired(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)

    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).stat().st_size > 20

    assert not (tmp_path / LOCK_FILE).exists()
