import errno
import fcntl
import os
import pty
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.odd_files import make_odd
from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.files.atomic import (
    atomic_directory,
    atomic_file,
    check_writable,
    remove_directory,
    temporary_directory,
    temporary_file,
)
from tfm_cli.files.ownership import is_empty_directory, temporary_name


def has_old(directory: Path) -> bool:
    return (directory / "old").is_file()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_file_appears_once_it_is_complete(tmp_path: Path) -> None:
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


def test_lack_of_memory_is_not_an_error_of_the_output(tmp_path: Path) -> None:
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


def test_symbolic_link_is_kept(tmp_path: Path) -> None:
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


def test_full_disk_is_reported_and_leaves_the_old_file(
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


def test_path_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for path, reason in ((tmp_path / "file" / "text", "Not a directory|File exists"),
                         (tmp_path, "it is a directory"),
                         (tmp_path / ("x" * 256), "File name too long")):  # fmt: skip
        message = f"{path}: cannot be written: ({reason})"
        with pytest.raises(ResourceError, match=message), atomic_file(path):
            pass


def test_directory_appears_once_it_is_complete(tmp_path: Path) -> None:
    place = tmp_path / "new" / "folder"

    with atomic_directory(place) as temporary:
        (temporary / "one").write_bytes(b"1")
        assert not place.exists()

    assert names(place) == ["one"]
    assert names(place.parent) == ["folder"]


def test_directory_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()

    with atomic_directory(tmp_path / "folder", may_replace=has_old) as temporary:
        (temporary / "new").touch()

    assert names(tmp_path / "folder") == ["new"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("kind", ["folder", "file", "link to a folder", "link to nothing"])
def test_foreign_file_or_directory_is_never_replaced(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "folder"

    def fill(temporary: Path) -> None:
        (temporary / "new").touch()  # it appears while the directory is written
        if kind == "folder":
            place.mkdir()
            (place / "theirs").write_bytes(b"theirs")
        elif kind == "file":
            place.write_bytes(b"theirs")
        else:
            (tmp_path / "elsewhere").mkdir()
            (tmp_path / "elsewhere" / "theirs").write_bytes(b"theirs")
            place.symlink_to("elsewhere" if kind == "link to a folder" else "nothing")

    message = f"{place}: cannot be written: it exists and was not created by tfm"
    with pytest.raises(ResourceError, match=message), atomic_directory(place) as temporary:
        fill(temporary)

    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path.read_bytes() for path in files] == [b"theirs"]
    assert names(tmp_path) == (["elsewhere", "folder"] if "link" in kind else ["folder"])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_directory_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()

    def fail(temporary: Path) -> None:
        (temporary / "new").touch()
        raise error

    with pytest.raises(error), atomic_directory(tmp_path / "folder") as temporary:
        fail(temporary)

    assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["folder"]


def test_directory_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    place = tmp_path / "file" / "folder"
    message = f"{place}: cannot be written: "
    with pytest.raises(ResourceError, match=message), atomic_directory(place):
        pass


def test_removed_directory_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one").touch()

    assert remove_directory(tmp_path / "folder", is_ours=lambda path: path.name == "folder")
    assert remove_directory(tmp_path / "none", is_ours=is_empty_directory)

    assert names(tmp_path) == []


def test_foreign_directory_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one").touch()
    (tmp_path / "link").symlink_to("folder")

    assert not remove_directory(tmp_path / "folder", is_ours=is_empty_directory)
    assert not remove_directory(tmp_path / "link", is_ours=is_empty_directory)

    assert names(tmp_path / "folder") == ["one"]


@pytest.mark.parametrize("folder", [False, True])
def test_check_of_a_new_path_creates_nothing(tmp_path: Path, folder: bool) -> None:
    check_writable(tmp_path / "a" / "b" / "c", folder=folder)

    assert names(tmp_path) == []


def test_check_creates_no_name_even_briefly(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path, getattr(os, "O_TMPFILE", -1) | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system has no files without a name")
    os.utime(tmp_path, ns=(0, 0))

    check_writable(tmp_path / "file")
    check_writable(tmp_path / "folder", folder=True)

    assert tmp_path.stat().st_mtime_ns == 0  # creating or removing a name would change it


def test_existing_files_are_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    check_writable(tmp_path / "file")
    check_writable(tmp_path, folder=True)
    check_writable("/dev/null")
    check_writable("-")


def test_unwritable_path_is_reported_beforehand(tmp_path: Path) -> None:
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


def test_missing_permission_is_reported_beforehand(
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


def test_closed_standard_output_is_reported_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)

    with pytest.raises(ResourceError, match="standard output: cannot be written: it is closed"):
        check_writable("-")


def test_leftovers_of_killed_processes_are_swept(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tfm_cli.files.atomic import atomic_directory, atomic_file\n"
        "with atomic_directory(Path(sys.argv[1])) as new, atomic_file(sys.argv[2]) as stream:\n"
        "    (new / 'one').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", program, f"{tmp_path}/folder", f"{tmp_path}/text"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    others = [temporary_name("other"), "folder.tfm-0123456789abcdef.part", ".folder.part",
              ".folder.tfm-0123.part", f".folder.{os.getpid()}.part"]  # fmt: skip
    for name in others:
        (tmp_path / name).mkdir()
    link = temporary_name("folder")
    (tmp_path / link).symlink_to("elsewhere")

    with atomic_directory(tmp_path / "folder") as temporary, atomic_file(tmp_path / "text"):
        (temporary / "two").touch()

    assert names(tmp_path) == sorted([*others, link, "folder", "text"])
    assert names(tmp_path / "folder") == ["two"]


def test_file_of_a_live_process_is_not_swept(tmp_path: Path) -> None:
    folder, text = tmp_path / "folder", tmp_path / "text"
    with temporary_directory(folder) as first, temporary_file(text) as (second, _):
        with atomic_directory(folder), atomic_file(text):
            pass

        assert names(tmp_path) == sorted(["folder", "text", first.name, second.name])

    assert names(tmp_path) == ["folder", "text"]


def test_nothing_is_swept_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    left = temporary_name("folder"), temporary_name("text")
    (tmp_path / left[0]).mkdir()
    (tmp_path / left[1]).touch()

    with atomic_directory(tmp_path / "folder"), atomic_file(tmp_path / "text"):
        pass

    assert names(tmp_path) == sorted([*left, "folder", "text"])


def test_file_that_is_swept_before_it_is_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    made: list[str] = []

    def swept_before_it_is_locked(descriptor: int, operation: int) -> None:
        made.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        if len(made) == 1:
            Path(made[0]).unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", swept_before_it_is_locked)

    with atomic_file(tmp_path / "text") as stream:
        stream.write(b"whole")

    assert (tmp_path / "text").read_bytes() == b"whole"
    assert len(set(made)) == 2
    assert names(tmp_path) == ["text"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder", "socket"])
def test_own_file_is_not_written_through_an_irregular_one(tmp_path: Path, kind: str) -> None:
    place, victim = tmp_path / "card", tmp_path / "victim"
    victim.write_bytes(b"theirs")
    make_odd(kind, place, victim)
    before = place.lstat()

    with (
        pytest.raises(ResourceError, match=f"{place}: cannot be written: (it is|Is a)"),
        atomic_file(place, follow=False),
    ):
        pass

    assert victim.read_bytes() == b"theirs"
    assert names(tmp_path) == ["card", "victim"]
    assert place.lstat().st_ino == before.st_ino


def test_other_names_of_an_own_file_keep_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"old")
    (tmp_path / "backup").hardlink_to(tmp_path / "model")

    with atomic_file(tmp_path / "model", follow=False) as stream:
        stream.write(b"new")

    assert (tmp_path / "backup").read_bytes() == b"old"
    assert (tmp_path / "model").read_bytes() == b"new"


def test_errors_name_the_final_directory(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        raise ModelError(f"{temporary / 'one'}: is torn", hint="look at it")

    with (
        pytest.raises(ModelError, match=f"^{tmp_path / 'folder' / 'one'}: is torn$") as caught,
        atomic_directory(tmp_path / "folder") as temporary,
    ):
        fail(temporary)

    assert caught.value.hint == "look at it"


def test_link_loop_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.symlink_to("out")

    message = "out: cannot be written: Too many levels of symbolic links"
    with pytest.raises(ResourceError, match=message), atomic_file(path) as stream:
        stream.write(b"new")
    with pytest.raises(ResourceError, match=message):
        check_writable(path)

    assert path.is_symlink()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
