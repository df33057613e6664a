"""Only `durable` changes the disk; each operation can be watched and can be made to fail."""

import ast
import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.odd_files import KINDS, make_odd
from tfm_cli.files import durable
from tfm_cli.files.durable import Operation, watched
from tfm_cli.files.faults import VARIABLE, reset_faults
from tfm_cli.files.untrusted import NotPrivateError

PACKAGE = Path(__file__).parents[2] / "tfm_cli"
# Modules that change only temporary files.
WRITING = re.compile(r"[wax]b?\+?b?|rb?\+b?")
CHANGES = {
    "chmod", "copyfile", "copymode", "copytree", "fchmod", "fsync", "hardlink_to", "link",
    "makedirs", "mkdir", "mkfifo", "mkstemp", "move", "NamedTemporaryFile", "removedirs", "rename",
    "renames", "rmdir", "rmtree", "save_file", "symlink", "symlink_to", "TemporaryDirectory",
    "TemporaryFile", "touch", "unlink", "write_bytes", "write_text",
}  # fmt: skip
OF_OS = {"open", "remove", "replace", "truncate"}
TEMPORARY = {
    "files/atomic.py", "tokenizer/normalization.py", "corpus/check/statistics.py",
    "interop/verification.py",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    reset_faults()
    yield
    reset_faults()


def ask(fault: str, patch: pytest.MonkeyPatch) -> None:
    patch.setenv(VARIABLE, fault)
    reset_faults()


def test_watcher_receives_each_operation_in_order(tmp_path: Path) -> None:
    operations: list[Operation] = []
    folder = tmp_path / "new"

    with watched(operations.append):
        durable.make_directory(folder)
        with durable.create(folder / "a") as stream:
            stream.write(b"some")
            durable.sync(stream)
        with durable.open_for_update(folder / "a") as stream:
            stream.seek(4)
            stream.write(b"thing")
        durable.sync_directory(folder)
        durable.rename(folder / "a", folder / "b")
        durable.remove_tree(folder)

    assert operations == [
        Operation("make_directory", folder),
        Operation("create", folder / "a"),
        Operation("write", folder / "a", data=b"some"),
        Operation("sync", folder / "a"),
        Operation("open", folder / "a"),
        Operation("write", folder / "a", offset=4, data=b"thing"),
        Operation("sync_directory", folder),
        Operation("rename", folder / "a", folder / "b"),
        Operation("remove", folder / "b"),
        Operation("remove", folder),
    ]
    assert not folder.exists()


def test_file_can_be_updated_at_any_position(tmp_path: Path) -> None:
    operations: list[Operation] = []

    with watched(operations.append), durable.open_for_update(tmp_path / "a") as stream:
        stream.write(b"abcdef")
        stream.seek(2)
        stream.truncate()
        stream.write(b"X")

    assert (tmp_path / "a").read_bytes() == b"abX"
    assert [each.kind for each in operations] == ["open", "write", "truncate", "write"]


@pytest.mark.parametrize("kind", KINDS)
def test_private_file_is_not_opened_through_an_irregular_one(kind: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"theirs")
    make_odd(kind, tmp_path / "lock", victim)

    with pytest.raises(NotPrivateError, match=r"it is|Is a directory") as raised:
        durable.open_for_update(tmp_path / "lock")

    assert raised.value.filename == str(tmp_path / "lock")
    assert victim.read_bytes() == b"theirs"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link"])
def test_new_file_does_not_take_an_existing_name(kind: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"theirs")
    make_odd(kind, tmp_path / "new", victim)

    with pytest.raises(FileExistsError):
        durable.create(tmp_path / "new")

    assert victim.read_bytes() == b"theirs"
    assert not (tmp_path / "nowhere").exists()


def test_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("write:1=short", monkeypatch)
    operations: list[Operation] = []

    with watched(operations.append):
        durable.write_file(tmp_path / "a", b"0123456789")

    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert [each.data for each in operations[1:]] == [b"01234", b"56789"]


@pytest.mark.parametrize(
    ("point", "change"),
    [
        ("create", lambda place: durable.create(place / "new")),
        ("create", lambda place: durable.open_for_update(place / "new")),
        ("write", lambda place: durable.write_file(place / "new", b"text")),
        ("rename", lambda place: durable.rename(place / "old", place / "new")),
        ("remove", lambda place: durable.remove(place / "old")),
        ("make_directory", lambda place: durable.make_directory(place / "new")),
        ("sync_directory", lambda place: durable.sync_directory(place)),
    ],
)
def test_each_operation_can_fail(
    point: str, change: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_bytes(b"old")
    assert callable(change)
    for name in (point, "durable"):
        # The first operation of writing a file is its creation.
        number = 2 if (name, point) == ("durable", "write") else 1
        ask(f"{name}:{number}=enospc", monkeypatch)
        (tmp_path / "new").unlink(missing_ok=True)

        with pytest.raises(OSError, match="No space left") as raised:
            change(tmp_path)

        assert raised.value.errno == errno.ENOSPC
    assert (tmp_path / "old").read_bytes() == b"old"


def test_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")

    durable.remove_tree(tmp_path / "tree")

    assert (tmp_path / "kept" / "file").exists()
    assert not (tmp_path / "tree").exists()


def test_no_other_module_changes_the_disk() -> None:
    result = {
        f"{path.relative_to(PACKAGE)}: {word}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if str(path.relative_to(PACKAGE)) not in {"files/durable.py", *TEMPORARY}
        for word in changes_of(ast.parse(path.read_bytes()))
    }

    # Unwanted output is discarded.
    assert result == {"cli/__init__.py: open w", "cli/__init__.py: os.open for writing"}


def changes_of(tree: ast.AST) -> Iterator[str]:
    """Yield the calls that change a file system, except those of `durable`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil", "io"):
            names = {each.name for each in node.names} & (CHANGES | OF_OS)
            yield from (f"from {node.module} import {name}" for name in sorted(names))
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        if owner == "durable":
            continue
        is_method = owner not in ("", "io", "os")
        given = [*node.args[0 if is_method else 1 :], *(each.value for each in node.keywords)]
        words = [ast.unparse(each).strip("'") for each in given]
        modes = [word for word in words if WRITING.fullmatch(word)]
        if called == "os.open":
            if any(flag in word for word in words for flag in ("O_CREAT", "O_WRONLY", "O_RDWR")):
                yield "os.open for writing"
        elif (owner and name in CHANGES) or (owner == "os" and name in OF_OS):
            yield name
        elif name == "replace" and len(node.args) == 1 and not node.keywords:
            yield name  # Path.replace; str.replace has two arguments
        elif name in ("open", "FileIO") and modes:
            yield f"open {modes[0]}"


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("Path('a').unlink()", "unlink"),
        ("place.rename(other)", "rename"),
        ("place.replace(other)", "replace"),
        ("os.replace(a, b)", "replace"),
        ("shutil.rmtree(place)", "rmtree"),
        ("from shutil import rmtree", "from shutil import rmtree"),
        ("from os import replace", "from os import replace"),
        ("open('a', 'w')", "open w"),
        ("open('a', mode='r+')", "open r+"),
        ("place.open('ab')", "open ab"),
        ("io.open('a', 'xb')", "open xb"),
        ("FileIO(1, 'wb')", "open wb"),
        ("os.open(place, os.O_RDWR | os.O_CREAT)", "os.open for writing"),
        ("text.replace('a', 'b')", None),
        ("dataclasses.replace(config, a=1)", None),
        ("open('a', 'rb')", None),
        ("durable.rename(a, b)", None),
    ],
)
def test_calls_that_change_the_disk_are_recognized(code: str, result: str | None) -> None:
    assert list(changes_of(ast.parse(code))) == ([] if result is None else [result])
