import errno
import os
import pty
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.files import atomic_directory, atomic_file, check_writable, remove_directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "new" / "text") as stream:
        stream.write(b"whole")
        assert not (tmp_path / "new" / "text").exists()

    assert (tmp_path / "new" / "text").read_bytes() == b"whole"
    assert names(tmp_path / "new") == ["text"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "text").write_bytes(b"old")

    def fail(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise error

    with pytest.raises(error), atomic_file(tmp_path / "text") as stream:
        fail(stream)

    assert (tmp_path / "text").read_bytes() == b"old"
    assert names(tmp_path) == ["text"]


def test_want_of_memory_is_no_fault_of_the_output(tmp_path: Path) -> None:
    lack = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with pytest.raises(OSError, match="Cannot allocate memory") as raised:  # noqa: SIM117 - one of them raises
        with atomic_file(tmp_path / "text"):
            raise lack

    assert raised.value is lack
    assert names(tmp_path) == []


def test_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "text").touch()
    (tmp_path / "text").chmod(0o600)

    with atomic_file(tmp_path / "text") as stream:
        stream.write(b"new")

    assert stat.S_IMODE((tmp_path / "text").stat().st_mode) == 0o600


def test_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")

    with atomic_file(tmp_path / "link") as stream:
        stream.write(b"new")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_device_is_written_to_and_not_replaced() -> None:
    keyboard, terminal = pty.openpty()
    name = os.ttyname(terminal)

    with atomic_file(name) as stream:
        stream.write(b"shown")

    assert os.read(keyboard, 100) == b"shown"
    assert Path(name).is_char_device()
    os.close(keyboard)
    os.close(terminal)


def test_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()

    with atomic_file(tmp_path / "pipe") as stream:
        stream.write(b"through")

    reader.join()
    assert read == [b"through"]
    assert (tmp_path / "pipe").is_fifo()


def test_longest_name_can_be_written(tmp_path: Path) -> None:
    with atomic_file(tmp_path / ("x" * 255)) as stream:
        stream.write(b"whole")

    assert names(tmp_path) == ["x" * 255]


def test_full_disk_is_told_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = f"{tmp_path / 'text'}: cannot be written: No space left on device"

    with pytest.raises(ResourceError, match=message), atomic_file(tmp_path / "text") as stream:
        stream.write(b"new")

    assert (tmp_path / "text").read_bytes() == b"old"
    assert names(tmp_path) == ["text"]


def test_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for path, reason in ((tmp_path / "file" / "text", "Not a directory|File exists"),
                         (tmp_path, "it is a directory"),
                         (tmp_path / ("x" * 256), "File name too long")):  # fmt: skip
        message = f"{path}: cannot be written: ({reason})"
        with pytest.raises(ResourceError, match=message), atomic_file(path):
            pass


def test_folder_appears_when_all_is_in_it(tmp_path: Path) -> None:
    place = tmp_path / "new" / "folder"

    with atomic_directory(place) as aside:
        (aside / "one").write_bytes(b"1")
        assert not place.exists()

    assert names(place) == ["one"]
    assert names(place.parent) == ["folder"]


def test_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()

    with atomic_directory(tmp_path / "folder") as aside:
        (aside / "new").touch()

    assert names(tmp_path / "folder") == ["new"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()

    def fail(aside: Path) -> None:
        (aside / "new").touch()
        raise error

    with pytest.raises(error), atomic_directory(tmp_path / "folder") as aside:
        fail(aside)

    assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["folder"]


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    place = tmp_path / "file" / "folder"
    message = f"{place}: cannot be written: "
    with pytest.raises(ResourceError, match=message), atomic_directory(place):
        pass


def test_removed_folder_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one").touch()

    remove_directory(tmp_path / "folder")
    remove_directory(tmp_path / "none")

    assert names(tmp_path) == []


@pytest.mark.parametrize("folder", [False, True])
def test_new_place_is_writable_and_stays_unmade(tmp_path: Path, folder: bool) -> None:
    check_writable(tmp_path / "a" / "b" / "c", folder=folder)

    assert names(tmp_path) == []


def test_asking_makes_no_name_even_for_a_moment(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path, getattr(os, "O_TMPFILE", -1) | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system has no files without a name")
    os.utime(tmp_path, ns=(0, 0))

    check_writable(tmp_path / "file")
    check_writable(tmp_path / "folder", folder=True)

    assert tmp_path.stat().st_mtime_ns == 0  # which a name that comes or goes would change


def test_what_there_is_can_be_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    check_writable(tmp_path / "file")
    check_writable(tmp_path, folder=True)
    check_writable("/dev/null")
    check_writable("-")


def test_what_could_not_be_written_is_told_beforehand(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    for path, folder, reason in (
        (tmp_path, False, "it is a directory"),
        (file, True, "it is not a directory"),
        (file / "text", False, f"`{file}` is not a directory"),
        (file / "deep" / "folder", True, f"`{file}` is not a directory"),
        (tmp_path / ("x" * 256) / "text", False, "File name too long"),
    ):
        with pytest.raises(ResourceError, match=f"^{path}: cannot be written: {reason}"):
            check_writable(path, folder=folder)


def test_missing_permission_is_told_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    for path, folder, reason in (
        (tmp_path / "file", False, "it is read-only"),
        (tmp_path, True, "no permission to write in it"),
        (tmp_path / "text", False, f"no permission to write in `{tmp_path}`"),
    ):
        with pytest.raises(ResourceError, match=f"^{path}: cannot be written: {reason}"):
            check_writable(path, folder=folder)


def test_closed_standard_output_is_told_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)

    with pytest.raises(ResourceError, match="standard output: cannot be written: it is closed"):
        check_writable("-")


def test_what_killed_processes_left_of_a_folder_is_swept_out(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    swept = [f".folder.{gone.pid}.part", f".folder.{gone.pid}.trash"]
    kept = [f".folder.{os.getppid()}.part", f".other.{gone.pid}.part", f".folder.{gone.pid}.parts",
            f".folderx.{gone.pid}.part", ".folder.part", ".folder.x.part", "folder.1.part",
            f".folder.{'9' * 30}.part"]  # fmt: skip
    for name in swept + kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    (tmp_path / f".folder.{gone.pid + 1}.part").symlink_to("elsewhere")

    with atomic_directory(tmp_path / "folder") as aside:
        (aside / "one").touch()
        assert not any((tmp_path / name).exists() for name in swept)

    assert names(tmp_path) == sorted([*kept, "folder", f".folder.{gone.pid + 1}.part"])
    assert all((tmp_path / name / "weights").exists() for name in kept)


def test_errors_name_the_folder_and_not_where_it_is_written_aside(tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        raise ModelError(f"{aside / 'one'}: is torn", hint="look at it")

    with (
        pytest.raises(ModelError, match=f"^{tmp_path / 'folder' / 'one'}: is torn$") as caught,
        atomic_directory(tmp_path / "folder") as aside,
    ):
        fail(aside)

    assert caught.value.hint == "look at it"
