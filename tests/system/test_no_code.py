"""No file makes tfm run code, and no command opens a connection."""

import ast
import io
import marshal
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import traps
from tests.conftest import TFM, TINY_SHAPE, RunTfm, TinyCorpus

PACKAGE = Path(__file__).parents[2] / "tfm_cli"
_MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "dbm"}
_NETWORK = {"socket", "http", "urllib", "ftplib", "smtplib", "ssl", "requests", "httpx", "aiohttp"}
_BUILT_IN = {"eval", "exec", "compile", "__import__"}
_METHODS = {("torch", "load"), ("torch", "save"), ("yaml", "load"), ("yaml", "unsafe_load"),
            ("np", "load"), ("pickle", "load"), ("marshal", "loads")}  # fmt: skip
# What is there for a reason that stands beside it.
_KNOWN = {
    ("interop/hugging_face/reading.py", "pickle"),  # the name of an error that torch raises
    ("interop/hugging_face/reading.py", "torch.load"),  # if asked for; runs no code
    ("interop/marian/files.py", "np.load"),  # with allow_pickle=False
    ("training/run_directory.py", "socket"),  # the name of this machine
}


def _named(tree: ast.AST) -> set[str]:
    """What a file has of all that could run code or reach out."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] in _MODULES | _NETWORK}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module.split(".")[0] in _MODULES | _NETWORK else set()
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in _BUILT_IN:
                found.add(called.id)
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                pair = (called.value.id, called.attr)
                found |= {".".join(pair)} if pair in _METHODS else set()
    return found


def test_r38_no_file_of_the_package_names_what_runs_code_or_reaches_out() -> None:
    result = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in _named(ast.parse(path.read_text(encoding="utf-8")))
    }

    assert result == _KNOWN


def test_r38_pickles_are_never_read_with_code() -> None:
    text = (PACKAGE / "interop" / "hugging_face" / "reading.py").read_text(encoding="utf-8")
    assert text.count("torch.load(") == text.count("weights_only=True") == 1
    text = (PACKAGE / "interop" / "marian" / "files.py").read_text(encoding="utf-8")
    assert text.count("np.load(") == 1
    assert text.count("np.load(self.path, allow_pickle=False)") == 1


def _as_ours(program: Callable[[], object]) -> object:
    """Run something as if tfm did: the caller's module has such a name."""
    scope = {"__name__": "tfm_cli.model_directory.weights", "program": program}
    return eval("program()", scope)  # noqa: S307 - words of ours


def connect() -> None:
    with socket.socket() as one:
        one.connect(("192.0.2.1", 9))


@pytest.mark.parametrize(
    "program",
    [
        lambda: pickle.loads(pickle.dumps(Path())),  # noqa: S301 - to be trapped
        lambda: pickle.Unpickler(io.BytesIO()).find_class("os", "system"),  # noqa: S301 - the same
        lambda: marshal.loads(b"N"),
        connect,
        lambda: socket.getaddrinfo("example.org", 80),
    ],
    ids=["pickle", "class", "marshal", "connection", "name"],
)  # fmt: skip
def test_r38_r46_traps_close(program: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="trap: "):
        _as_ours(program)
    assert traps.found.pop().endswith("for tfm_cli.model_directory.weights")


def test_r38_torch_load_is_trapped() -> None:
    with pytest.raises(AssertionError, match=r"torch\.load"):
        torch.load("nothing")


COMMANDS: dict[str, list[str]] = {
    "train": [
        "train", "-s", "{text}/train.en", "-t", "{text}/train.de", "-vs", "{text}/valid.en",
        "-vt", "{text}/valid.de", "-o", "{out}/model", "--max-updates", "2", "--max-tokens", "256",
        "--device", "cpu", *TINY_SHAPE,
    ],
    "translate": ["translate", "-m", "{model}", "-i", "{text}/test.en", "-o", "{out}/test.de"],
    "evaluate": ["evaluate", "{text}/test.de", "-m", "bleu", "-i", "{text}/test.de"],
    "check": ["check", "-s", "{text}/train.en", "-t", "{text}/train.de", "--tokenizer", "{model}"],
    "tokenize train": [
        "tokenize", "train", "-i", "{text}/train.en", "--model-prefix", "{out}/a",
        "--vocab-size", "14", "--model-type", "word", "--no-byte-fallback",
    ],
    "tokenize encode": ["tokenize", "encode", "--model", "{model}", "{text}/test.en"],
    "tokenize decode": ["tokenize", "decode", "--model", "{model}", "{text}/test.en"],
    "export": ["export", "{model}", "--to", "hf", "--output", "{out}/exported"],
    "import": ["import", "{out}/exported", "--output", "{out}/imported"],
    "shortlist": ["shortlist", "-m", "{model}", "-s", "{text}/train.en", "-t", "{text}/train.de"],
}  # fmt: skip


@pytest.mark.slow
def test_r38_r46_no_command_runs_code_of_a_file_or_opens_a_connection(
    tiny_corpus: TinyCorpus, tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    """Each in a process of its own that traps both, its children too."""
    pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
    (tmp_path / "traps").mkdir()
    environment = traps.environment(str(tmp_path / "traps"))
    names = {"text": tiny_corpus.directory, "model": tiny_model, "out": tmp_path}
    for name, arguments in COMMANDS.items():
        filled = [argument.format(**names) for argument in arguments]
        if name == "shortlist":
            filled += ["--output", str(tmp_path / "shortlist")]

        done = subprocess.run(
            [*TFM, *filled],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert done.returncode == 0, (name, done.stderr)
        assert "trap: " not in done.stderr


@pytest.mark.slow
def test_r38_traps_close_in_processes_that_are_started(tmp_path: Path) -> None:
    program = (
        "import pickle, pathlib; data = pickle.dumps(pathlib.Path())\n"
        "names = {'__name__': 'tfm_cli.text.reader', 'pickle': pickle, 'data': data}\n"
        "eval('pickle.loads(data)', names)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        env=traps.environment(str(tmp_path)), capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 99
    assert done.stderr.startswith("trap: pickle.find_class ('pathlib', 'PosixPath')")
