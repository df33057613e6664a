"""What a machine lacks is no bug: memory for a library, or the library itself."""

import os
import resource
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TFM, Result
from tfm_cli.cli import _resource_problem

MODEL = str(Path(__file__).parents[1] / "golden" / "model_v1")
NEED_TORCH = {
    "translate": ["translate", "--model", MODEL],
    "train": ["train", "--output", "model", "--max-updates", "1"],
    "evaluate": ["evaluate", "text", "--model", MODEL, "--source", "text"],
    "score": ["score", "--model", MODEL, "-s", "text", "-t", "text"],
    "shortlist": ["shortlist", "--model", MODEL, "-s", "text", "-t", "text", "-o", "table"],
    "export": ["export", MODEL, "--to", "hf", "--output", "exported"],
}


def run(
    arguments: list[str], place: Path, *, limit: int | None = None, modules: Path | None = None
) -> Result:
    def prepare() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    (place / "text").write_text("one two\n", encoding="utf-8")
    paths = [] if modules is None else [str(modules)]
    done = subprocess.run(
        [*TFM, *arguments],
        input="one two\n",
        capture_output=True,
        text=True,
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, str(Path.cwd())]),
            "TFM_NATIVE_LIBRARY": "none",  # so that PyTorch translates
        },
        preexec_fn=prepare,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("command", NEED_TORCH)
def test_memory_that_does_not_hold_a_library_is_a_lack(command: str, tmp_path: Path) -> None:
    result = run(NEED_TORCH[command], tmp_path, limit=320_000 << 10)

    assert (result.code, result.out) == (5, ""), result.err
    assert "error: `torch" in result.err
    assert "cannot be imported: " in result.err
    assert "Traceback" not in result.err


def test_memory_that_does_not_hold_numpy_is_a_lack(tmp_path: Path) -> None:
    result = run(NEED_TORCH["shortlist"], tmp_path, limit=100_000 << 10)

    assert (result.code, result.out) == (5, ""), result.err
    assert "error: out of memory: `numpy` cannot be imported" in result.err


@pytest.mark.parametrize(
    "content",
    ["raise ImportError('no such symbol')", "raise OSError('failed to map segment')", "import nix"],
)
def test_library_that_cannot_be_imported_is_a_lack(content: str, tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "torch.py").write_text(content, encoding="utf-8")

    result = run(NEED_TORCH["translate"], tmp_path, modules=modules)

    assert (result.code, result.out) == (5, ""), result.err
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ImportError("no symbol", name="numpy._core"),
            "`numpy._core` cannot be imported: no symbol",
        ),
        (ImportError("no symbol"), "a library cannot be imported: no symbol"),
        (
            ImportError("\n\nIMPORTANT: read\n\nOriginal error was: libx.so: no\n\nmore"),
            "a library cannot be imported: libx.so: no",
        ),
        (RuntimeError("std::bad_alloc"), "out of memory: std::bad_alloc"),
        (OSError("libgomp.so.1: cannot allocate memory in static TLS block"), "out of memory: "),
        (RuntimeError("can't start new thread"), "cannot start a thread or process: "),
        (OSError(27, "File too large"), "cannot write: File too large"),
        (OSError(24, "Too many open files"), "cannot open more files: Too many open files"),
        (BlockingIOError(11, "Resource temporarily unavailable"), ""),
        (ModuleNotFoundError("No module named 'tfm_cli.x'", name="tfm_cli.x"), ""),
        (ImportError("cannot import name 'x'", name="tfm_cli"), ""),
        (ValueError("out of memory"), ""),
    ],
    ids=str,
)
def test_lacks_are_told_from_bugs(error: Exception, words: str) -> None:
    result = _resource_problem(error)

    assert result.startswith(words)
    assert bool(result) == bool(words)
