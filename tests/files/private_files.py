"""The private files of every command, and the odd files that may be in their places."""

import ctypes
import hashlib
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import forked
from tests.conftest import Result, TinyCorpus, invoke
from tests.runs import SMALL_RUN, write_part

GOLDEN = Path(__file__).parents[1] / "golden" / "model_v2"
PATCH = pytest.MonkeyPatch()  # for the processes of commands, so that patches end with them
PRECIOUS = "mine.txt"
# In an older checkpoint, and arrays of a prepared text.
_OTHERS = re.compile(r"/update-00000002/|/(target\.|source\.starts)")
_DEEP = b"[" * 200_000
_BYPASSES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@dataclass(frozen=True)
class Scene:
    """A command with its private files, in a folder of its own.

    Attributes:
        folder: contains inputs, outputs and foreign files.
        command: the arguments of `tfm`; all paths are relative to the folder.
        outputs: paths that the command may change: folders, and prefixes of files.
        names: paths of private files.
        prepare: called in the process of the command.
    """

    folder: Path
    command: list[str]
    outputs: tuple[str, ...]
    names: list[str]
    prepare: Callable[[], object] = lambda: None

    def copied(self, place: Path) -> "Scene":
        """Return the same scene in another folder."""
        shutil.copytree(self.folder, place, symlinks=True)
        return Scene(place, self.command, self.outputs, self.names, self.prepare)

    def run(self, *, is_privileged: bool = True) -> Result:
        """Run the command."""

        def prepare() -> None:
            os.chdir(self.folder)
            if not is_privileged:
                heed_permissions()
            self.prepare()

        return forked.run(self.folder.with_name("words"), self.command, prepare=prepare)

    def around(self) -> dict[str, str]:
        """Return what is outside of the outputs: each path with its kind, mode and content."""
        return {
            name: state
            for name, state in tree(self.folder).items()
            if not f"{name}/".startswith(self.outputs)
        }


def tree(folder: Path) -> dict[str, str]:
    """Return all paths in a folder, each with a description; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        state = f"{stat.filemode(status.st_mode)} "
        if stat.S_ISLNK(status.st_mode):
            state += str(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            state += hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = state
    return found


def heed_permissions() -> None:
    """Apply file permissions to this process even if it runs as root."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface; this process
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    for index in range(3):  # effective, permitted, inheritable: of the first 32 capabilities
        sets[index] &= ~_BYPASSES
    assert libc.capset(header, sets) == 0


# --- what may be in the place of a private file --------------------------------------------------


def _emptied(path: Path) -> None:
    """Remove whatever is at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()


def put_damaged(path: Path, theirs: Path) -> None:
    _emptied(path)
    path.write_bytes(_DEEP)


def put_hard_link(path: Path, theirs: Path) -> None:
    _emptied(path)
    path.hardlink_to(theirs / "victim")


def put_link(path: Path, theirs: Path) -> None:
    _emptied(path)
    path.symlink_to(theirs / "victim")


def put_folder_link(path: Path, theirs: Path) -> None:
    _emptied(path)
    path.symlink_to(theirs / "folder")


def put_dangling_link(path: Path, theirs: Path) -> None:
    _emptied(path)
    path.symlink_to(theirs / "nothing")


def put_pipe(path: Path, theirs: Path) -> None:
    _emptied(path)
    os.mkfifo(path)


def put_folder(path: Path, theirs: Path) -> None:
    _emptied(path)
    path.mkdir()
    (path / PRECIOUS).write_bytes(b"mine\n")


def put_socket(path: Path, theirs: Path) -> None:
    _emptied(path)
    before = Path.cwd()
    os.chdir(path.parent)  # since the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(before)


def put_unreadable(path: Path, theirs: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"{}")
    path.chmod(0)


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "damaged": put_damaged,
    "hard link": put_hard_link,
    "link": put_link,
    "link to a folder": put_folder_link,
    "dangling link": put_dangling_link,
    "pipe": put_pipe,
    "folder": put_folder,
    "socket": put_socket,
    "unreadable": put_unreadable,
}

# --- the commands --------------------------------------------------------------------------------


def _inside(folder: Path, output: str) -> list[str]:
    """Return the paths in an output, with one representative of each kind of file."""
    found = sorted(str(path.relative_to(folder)) for path in (folder / output).rglob("*"))
    assert found
    return [path for path in found if not _OTHERS.search(path)]


def _write_theirs(folder: Path, run: Path) -> None:
    """Write foreign files, and folders that look like those of a run."""
    theirs = folder / "theirs"
    (theirs / "folder").mkdir(parents=True)
    (theirs / "victim").write_bytes(b"victim\n")
    for name in (PRECIOUS, ".stdin.123.part", "metrics.jsonl", "files.json"):
        (theirs / "folder" / name).write_bytes(b"theirs\n")
    for part in ("corpus", "checkpoints"):
        for entry in (run / part).iterdir():
            if entry.is_dir():
                shutil.copytree(entry, theirs / "folder" / entry.name)


def _world(corpus: TinyCorpus, folder: Path) -> list[str]:
    """Create a folder with text, a run that can be resumed, and more; return the training flags."""
    folder.mkdir(parents=True)
    flags = write_part(corpus, folder, pairs=55)
    flags = [flag.removeprefix(f"{folder}/") for flag in flags]
    often = ["--valid-freq", "3", "--save-freq", "2", "--disp-freq", "2"]
    command = ["train", *flags, *SMALL_RUN, *often, "-o", "model"]
    _made(folder, [*command, "--max-updates", "4"])
    _write_theirs(folder, folder / "model")
    return command


def _made(folder: Path, command: list[str]) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = invoke(command)
    finally:
        os.chdir(before)
    assert result.code == 0, result.err


def _goes_on(corpus: TinyCorpus, folder: Path) -> Scene:
    command = _world(corpus, folder)
    names = [
        *_inside(folder, "model"),
        "model/.tfm-train.lock",
        "model/shortlist.safetensors",
        "model/checkpoints/best-on-schedule",
    ]
    return Scene(folder, [*command, "--max-updates", "6"], ("model/",), names)


def _begins_again(corpus: TinyCorpus, folder: Path) -> Scene:
    scene = _goes_on(corpus, folder)
    return Scene(folder, [*scene.command, "--overwrite"], scene.outputs, scene.names)


def _begins(corpus: TinyCorpus, folder: Path) -> Scene:
    scene = _goes_on(corpus, folder)
    shutil.rmtree(folder / "model")
    return scene


def _shared_cache(corpus: TinyCorpus, folder: Path) -> Scene:
    command = [*_world(corpus, folder), "--data-cache", "cache"]
    shutil.rmtree(folder / "model")
    _made(folder, [*command, "--max-updates", "2"])
    names = _inside(folder, "cache")
    names += [f"{name}.lock" for name in names if (folder / name).is_dir()]
    shutil.rmtree(folder / "model")
    return Scene(folder, [*command, "--max-updates", "2"], ("model/", "cache/"), names)


def _translates(corpus: TinyCorpus, folder: Path) -> Scene:
    _world(corpus, folder)
    lines = "".join(f"{line}\n" for line in corpus.lines("test.en")[:12])
    (folder / "text").write_text(lines, encoding="utf-8")
    (folder / "to").mkdir()
    command = ["translate", "-m", "model", "-i", "text", "-o", "to/o", "--device", "cpu"]
    command += ["--workers", "1", "--buffer-size", "4", "--beam", "2", "--shortlist"]
    _made(folder, ["shortlist", "-m", "model", "-s", "train.en", "-t", "train.de"])
    names = ["to/.o.partial", "to/.o.progress", "to/.o.progress.new"]
    names += [str(path.relative_to(folder)) for path in (folder / "model").glob("*")]

    def often() -> None:
        PATCH.setattr("tfm_cli.translation.resumable_output.COMMIT_SECONDS", 0.0)

    killed = {"TFM_FAILPOINT": "rename:3=kill"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = forked.run(folder.with_name("words"), command, killed, prepare=often)
    finally:
        os.chdir(before)
    assert result.code == -9, result.err
    assert (folder / "to" / ".o.progress").is_file()
    return Scene(folder, command, ("to/",), names, often)


def _notes_a_shortlist(corpus: TinyCorpus, folder: Path) -> Scene:
    _world(corpus, folder)
    command = ["shortlist", "-m", "model", "-s", "train.en", "-t", "train.de", "--device", "cpu"]
    _made(folder, command)
    names = [str(path.relative_to(folder)) for path in (folder / "model").glob("*.*")]
    return Scene(folder, command, ("model/",), names)


def _learns_a_tokenizer(corpus: TinyCorpus, folder: Path) -> Scene:
    _world(corpus, folder)
    (folder / "to").mkdir()
    command = ["tokenize", "train", "-i", "train.en", "--model-prefix", "to/t"]
    command += ["--vocab-size", "40", "--model-type", "word", "--no-byte-fallback"]
    names = ["to/.t.model.1.part", "to/.t.vocab.1.part"]
    return Scene(folder, command, ("to/",), names)


def _exports(corpus: TinyCorpus, folder: Path) -> Scene:
    _world(corpus, folder)
    shutil.copytree(GOLDEN, folder / "golden")
    command = ["export", "golden", "--to", "hf", "-o", "to", "--overwrite"]

    def unverified() -> None:
        from tfm_cli.interop.verification import Verification

        PATCH.setattr("tfm_cli.interop.exporting.verify_hugging_face", lambda *_: Verification())

    result = Scene(folder, command, (), [], unverified).run()
    assert result.code == 0, result.err
    return Scene(folder, command, ("to/",), [*_inside(folder, "to"), "to/.x.1.part"], unverified)


def _imports(corpus: TinyCorpus, folder: Path) -> Scene:
    _exports(corpus, folder)
    command = ["import", "to", "-o", "imported", "--overwrite"]

    def unverified() -> None:
        from tfm_cli.interop.verification import Verification

        PATCH.setattr("tfm_cli.interop.importing.verify_import", lambda *_: Verification())

    result = Scene(folder, command, (), [], unverified).run()
    assert result.code == 0, result.err
    names = _inside(folder, "imported")
    names += [f"imported/{name}" for name in ("metrics.jsonl", "checkpoints", ".x.1.part")]
    return Scene(folder, command, ("imported/",), names, unverified)


SCENES: dict[str, Callable[[TinyCorpus, Path], Scene]] = {
    "train goes on": _goes_on,
    "train begins again": _begins_again,
    "train begins": _begins,
    "train with a shared cache": _shared_cache,
    "translate": _translates,
    "shortlist": _notes_a_shortlist,
    "tokenize train": _learns_a_tokenizer,
    "export": _exports,
    "import": _imports,
}
