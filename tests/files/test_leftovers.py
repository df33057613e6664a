"""The next command sweeps what a killed command left beside its output, and nothing else."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forked
from tests.conftest import Result
from tests.files.private_files import GOLDEN, PATCH
from tfm_cli.files.atomic import temporary_file
from tfm_cli.files.faults import VARIABLE
from tfm_cli.interop.verification import Verification

TEXT = b"one two\ntwo three one\n"
COMMANDS = {
    "shortlist": ["shortlist", "-m", str(GOLDEN), "-s", "text", "-t", "text", "-o", "to/o"],
    "tokenize train": ["tokenize", "train", "-i", "text", "--model-prefix", "to/o",
                       "--vocab-size", "20", "--model-type", "char", "--no-byte-fallback"],
    "tokenize encode": ["tokenize", "encode", "-m", str(GOLDEN), "text", "-o", "to/o"],
    "export": ["export", str(GOLDEN), "--to", "hf", "-o", "to/o"],
}  # fmt: skip
FAST = ("shortlist", "tokenize train")
ALL = [pytest.param(name, marks=() if name in FAST else pytest.mark.torture) for name in COMMANDS]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return `run(name)`, which runs a command in a folder with text."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_bytes(TEXT)
    Path("to").mkdir()

    def command(name: str, fault: str = "") -> Result:
        def prepare() -> None:
            PATCH.setattr(
                "tfm_cli.interop.exporting.verify_hugging_face", lambda *_: Verification()
            )

        return forked.run(Path("words"), COMMANDS[name], {VARIABLE: fault}, prepare=prepare)

    return command


def names() -> list[str]:
    return sorted(path.name for path in Path("to").iterdir())


def hidden() -> list[str]:
    return [name for name in names() if name.startswith(".")]


@pytest.mark.parametrize("name", ALL)
def test_r56_leftovers_of_a_killed_command_are_swept_by_the_next(
    name: str, run: Callable[..., Result]
) -> None:
    for _ in range(2):  # twice, so that leftovers would grow
        assert run(name, "rename:1=kill").code == -signal.SIGKILL
        assert len(hidden()) == 1
        assert hidden() == names()

    result = run(name)

    assert result.code == 0, result.err
    assert hidden() == []
    assert names() != []


@pytest.mark.parametrize("name", FAST)
def test_r56_file_of_a_live_process_is_not_swept(name: str, run: Callable[..., Result]) -> None:
    place = Path("to") / ("o.model" if name == "tokenize train" else "o")
    with temporary_file(place) as (held, stream):
        stream.write(b"half")
        stream.flush()

        assert run(name).code == 0

        assert held.read_bytes() == b"half"
        assert hidden() == [held.name]


def test_r56_foreign_names_are_not_swept(run: Callable[..., Result]) -> None:
    kept = [".o.part", ".o.1.part", ".other.tfm-0123456789abcdef.part", ".o.tfm-0123.part"]
    for name in kept:
        (Path("to") / name).write_bytes(b"mine\n")

    assert run("shortlist").code == 0

    assert names() == sorted([*kept, "o"])
