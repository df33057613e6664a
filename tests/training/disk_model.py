"""The states of a disk after a loss of power, which keeps only synced data for sure.

The model is that of a file system which keeps the order of changes of names, as the usual ones do:
of the changes since a folder was last synced, any first part may have reached the disk. Of what was
written to a file since it was last synced, nothing, a part, or all may have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfm_cli.files.durable import Operation

Tree = dict[str, bytes | None]  # content by name; None for a folder


@dataclass
class _File:
    """A file that may have several names in its life, and its content on the disk and in memory."""

    written: bytes = b""
    synced: bytes = b""


def states(operations: Sequence[Operation], root: Path) -> Iterator[tuple[int, Tree]]:
    """Each state in which a loss of power after each operation may leave the disk.

    Yields how many operations were made, and what is under `root` then. States that were there
    already for the same number of operations are left out.
    """
    names: dict[Path, _File | None] = {}  # as the running system sees them
    pending: list[dict[Path, _File | None]] = []  # how names were before each change not synced yet
    for done, each in enumerate(operations, 1):
        before = dict(names)
        file = names.get(each.path)
        if each.kind in ("create", "open"):
            if each.kind == "create" or file is None:
                names[each.path] = _File()
                pending.append(before)
        elif each.kind == "write":
            assert file is not None
            end = each.offset + len(each.data)
            first = file.written[: each.offset].ljust(each.offset, b"\0")
            file.written = first + each.data + file.written[end:]
        elif each.kind == "truncate":
            assert file is not None
            file.written = file.written[: each.offset]
        elif each.kind == "sync":
            if file is not None:
                file.synced = file.written
        elif each.kind == "sync_directory":
            pending.clear()
        else:
            _rename(names, each)
            pending.append(before)
        seen = []
        for kept in (*pending, names):
            for part in (0.0, 0.5, 1.0):
                tree = _tree(kept, part, root)
                if tree not in seen:
                    seen.append(tree)
                    yield done, tree


def _rename(names: dict[Path, _File | None], each: Operation) -> None:
    if each.kind == "make_directory":
        names[each.path] = None
        return
    moved = {path: names.pop(path) for path in list(names) if path.is_relative_to(each.path)}
    if each.kind == "rename":
        assert each.target is not None
        for path, file in moved.items():
            names[each.target / path.relative_to(each.path)] = file


def _tree(names: dict[Path, _File | None], part: float, root: Path) -> Tree:
    tree: Tree = {}
    for path, file in names.items():
        if path.is_relative_to(root):
            name = str(path.relative_to(root))
            tree[name] = None if file is None else _content(file, part)
    return tree


def _content(file: _File, part: float) -> bytes:
    if part == 0 or file.synced == file.written:
        return file.synced
    # What was appended leaves alone what was there; what was written over it may be torn anywhere.
    safe = len(file.synced) if file.written.startswith(file.synced) else 0
    return file.written[: safe + int((len(file.written) - safe) * part)]


def put(tree: Tree, root: Path) -> None:
    """Write a state into an empty folder."""
    root.mkdir(parents=True)
    for name in sorted(tree):  # a folder before what is in it
        content = tree[name]
        if content is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
