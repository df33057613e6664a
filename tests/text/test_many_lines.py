"""Memory is bounded for a small compressed file of millions of lines that is held as a whole."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Result, TinyCorpus
from tests.runs import SMALL_RUN, write_part
from tests.tiers import representative
from tfm_cli.errors import DataError
from tfm_cli.text import reader
from tfm_cli.text.reader import held_in_memory

REFUSED = "has more than 1,000,000 lines, which is more than is held in memory at once"


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bomb") / "lines.gz"
    path.write_bytes(gzip.compress(b"\n" * 20_000_000))
    assert path.stat().st_size < 40_000
    return path


def run(arguments: list[str], place: Path) -> tuple[Result, int]:
    """Return the result of a command and its peak memory in megabytes."""
    script = (
        "import re\nfrom pathlib import Path\nfrom tfm_cli.cli import app\n"
        "try: app()\n"
        "finally: print(re.search('VmHWM: *(.*) kB', Path('/proc/self/status').read_text())[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=place,
        env={"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    *out, kilobytes = done.stdout.splitlines()
    return Result(done.returncode, "\n".join(out), done.stderr), int(kilobytes) >> 10


def test_r35_evaluate_refuses_more_lines_than_it_should_hold(bomb: Path, tmp_path: Path) -> None:
    result, megabytes = run(["evaluate", str(bomb), "-i", str(bomb)], tmp_path)

    assert (result.code, result.out) == (3, "")
    assert f"error: {bomb}: {REFUSED}\n" in result.err
    assert megabytes < 300


def test_r35_training_refuses_more_validation_lines_than_it_should_hold(
    bomb: Path, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    text_flags = write_part(tiny_corpus, tmp_path, pairs=20, valid=0)
    valid = ["-vs", str(bomb), "-vt", str(bomb)]

    result, megabytes = run(["train", *text_flags, *valid, *SMALL_RUN], tmp_path)

    assert (result.code, result.out) == (3, "")
    assert f"error: {bomb}: {REFUSED}\n" in result.err
    assert megabytes < 700  # most of it is PyTorch
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
@representative("command", ["check", "tokenize encode", "tokenize train", "shortlist"])
def test_r35_other_commands_take_such_a_text_in_bounded_memory(
    command: str, bomb: Path, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = {
        "check": ["-s", str(bomb), "-t", str(bomb)],
        "tokenize encode": ["-m", str(tiny_model), "-i", str(bomb), "-o", "pieces"],
        "tokenize train": ["-i", str(bomb), "--model-prefix", "learned"],
        "shortlist": ["-m", str(tiny_model), "-s", str(bomb), "-t", str(bomb), "-o", "table"],
    }[command]

    result, megabytes = run([*command.split(), *arguments, "-q"], tmp_path)

    assert result.code in (0, 1, 3), result.err
    assert megabytes < (700 if command == "shortlist" else 400)


def test_r35_lines_are_counted_while_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_HELD_LINES", 3)
    lines = iter(["a", "b", "c", "d", "e"])

    assert held_in_memory(["a", "b", "c"], "x") == ["a", "b", "c"]
    with pytest.raises(DataError, match="x: has more than 3 lines"):
        held_in_memory(lines, "x")

    assert list(lines) == ["e"]


def test_r35_characters_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_HELD_CHARACTERS", 4)

    assert held_in_memory([("ab", "cd")], "x") == [("ab", "cd")]
    with pytest.raises(DataError, match="x: has more than 4 characters"):
        held_in_memory([("ab", "cd"), ("e", "")], "x")
