"""What needs no PyTorch runs where PyTorch is not installed, and imports none where it is."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import environments
from tests.conftest import RunTfm, TinyCorpus
from tfm_cli.native import library

pytestmark = pytest.mark.skipif(
    not library.available() and "TFM_REQUIRE_NATIVE" not in os.environ,
    reason="needs the native engine",
)

LINES = "one two three\nseven\n\nnine four\n"
TRANSLATIONS = "eins zwei drei\nsieben\n\nneun vier\n"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that finds the small packages and this one, and no PyTorch."""
    python = environments.environment(tmp_path_factory.mktemp("environment"))
    environments.link_package(python)
    return python


@pytest.fixture
def run(python: Path, tmp_path: Path) -> Run:
    """`run(["translate", …], stdin)` where PyTorch is not installed."""

    def tfm(
        arguments: list[str], stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-m", "tfm_cli", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=_with_library() | environment,
            timeout=120,
            check=False,
        )

    return tfm


def _with_library() -> dict[str, str]:
    """The environment of a process that finds the library which this process has found."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {library.LIBRARY: str(library.load().path.resolve())}


def test_environment_has_no_torch(python: Path) -> None:
    code = "import importlib.util as u; print([bool(u.find_spec(n)) for n in ('torch', 'tfm_cli')])"

    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[False, True]\n"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--greedy"],
        ["--device", "cpu", "--precision", "int8", "--beam", "3"],
        ["--precision", "bf16", "--greedy"],
        ["--workers", "2", "--max-tokens", "8"],
        ["--sampling", "--top-k", "1"],
        ["--no-repeat-ngram-size", "3", "--repetition-penalty", "1.01", "--early-stopping"],
        [
            "--format",
            "json",
            "--n-best",
            "2",
            "--with-score",
            "--word-scores",
            "--alignment",
            "hard",
        ],
    ],
    ids=" ".join,
)
def test_lines_are_translated(
    run: Run, run_tfm: RunTfm, tiny_model: Path, flags: list[str]
) -> None:
    command = ["translate", "--model", str(tiny_model), *flags]

    done = run(command, LINES)

    assert (done.returncode, done.stdout) == (0, run_tfm(command, LINES).out), done.stderr
    assert "json" in flags or done.stdout == TRANSLATIONS


def test_two_models_translate_together(run: Run, tiny_model: Path) -> None:
    done = run(["translate", "--model", str(tiny_model), "--model", str(tiny_model)], LINES)

    assert (done.returncode, done.stdout) == (0, TRANSLATIONS), done.stderr


def test_shortlist_is_made_and_used(
    run: Run, tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    corpus = ["-s", tiny_corpus.path("train.en"), "-t", tiny_corpus.path("train.de")]
    table = str(tmp_path / "shortlist.safetensors")

    made = run(["shortlist", "--model", str(tiny_model), *corpus, "--output", table])
    used = run(["translate", "--model", str(tiny_model), "--shortlist-file", table], LINES)

    assert made.returncode == 0, made.stderr
    assert (used.returncode, used.stdout) == (0, TRANSLATIONS), used.stderr


def test_translations_are_scored(run: Run, tiny_model: Path, tiny_corpus: TinyCorpus) -> None:
    source, target = tiny_corpus.path("test.en"), tiny_corpus.path("test.de")
    scores = ["-m", "bleu,chrf", "--format", "text"]

    own = run(["evaluate", target, "--model", str(tiny_model), "--source", source, *scores])
    given = run(["evaluate", target, "-i", target, *scores])

    assert own.returncode == given.returncode == 0, own.stderr + given.stderr
    assert "100.0" in own.stdout
    assert "100.0" in given.stdout


def test_pairs_are_scored(
    run: Run, run_tfm: RunTfm, tiny_model: Path, tiny_corpus: TinyCorpus
) -> None:
    corpus = ["-s", tiny_corpus.path("test.en"), "-t", tiny_corpus.path("test.de")]
    command = ["score", *corpus, "--model", str(tiny_model), "--format", "json", "--word-scores"]

    done = run(command)

    assert (done.returncode, done.stdout) == (0, run_tfm(command).out), done.stderr
    assert done.stdout.count("\n") == 40


def test_text_is_tokenized(run: Run, tiny_model: Path) -> None:
    encoded = run(["tokenize", "encode", "--model", str(tiny_model)], LINES)
    decoded = run(["tokenize", "decode", "--model", str(tiny_model)], encoded.stdout)

    assert (encoded.returncode, decoded.returncode) == (0, 0), encoded.stderr + decoded.stderr
    assert decoded.stdout == LINES


def test_text_is_checked(run: Run, tiny_model: Path, tiny_corpus: TinyCorpus) -> None:
    corpus = ["-s", tiny_corpus.path("test.en"), "-t", tiny_corpus.path("test.de")]

    done = run(["check", *corpus, "--model", str(tiny_model)])

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["train --output new", "export MODEL --to ctranslate2 -o new"])
def test_what_needs_torch_tells_how_to_install_it(run: Run, tiny_model: Path, command: str) -> None:
    done = run([str(tiny_model) if word == "MODEL" else word for word in command.split()])

    assert (done.returncode, done.stdout) == (5, ""), done.stderr
    assert "error: `torch` cannot be imported: No module named" in done.stderr
    assert done.stderr.endswith("hint: install it with `pip install torch`\n")


def test_gpu_and_fallback_need_torch(run: Run, tiny_model: Path) -> None:
    command = ["translate", "--model", str(tiny_model)]

    gpu = run([*command, "--device", "cuda"], LINES)
    fallback = run(command, LINES, **{library.LIBRARY: library.NONE})

    assert (gpu.returncode, gpu.stdout) == (5, "")
    assert (fallback.returncode, fallback.stdout) == (5, "")
    assert "neither the native CPU engine (TFM_NATIVE_LIBRARY is `none`) nor PyTorch" in (
        fallback.stderr
    )
    assert "hint: " in fallback.stderr


def _imported(arguments: list[str], stdin: str) -> set[str]:
    """The modules that a command imports where PyTorch is installed, as `-X importtime` tells."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tfm_cli", *arguments],
        input=stdin, capture_output=True, text=True, env=_with_library(), timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^import time: .*\| +([\w.]+)$", done.stderr, flags=re.MULTILINE))


@pytest.mark.parametrize("command", ["translate", "evaluate", "score", "tokenize", "check", "info"])
def test_no_torch_is_imported_where_it_is_installed(
    command: str, tiny_model: Path, tiny_corpus: TinyCorpus
) -> None:
    model = ["--model", str(tiny_model)]
    source, target = tiny_corpus.path("test.en"), tiny_corpus.path("test.de")
    arguments = {
        "translate": [*model, "--device", "cpu"],
        "evaluate": [target, *model, "--source", source, "--device", "cpu"],
        "score": ["-s", source, "-t", target, *model, "--device", "cpu"],
        "tokenize": ["encode", *model],
        "check": ["-s", source, "-t", target, *model],
        "info": [str(tiny_model)],
    }

    result = _imported([command, *arguments[command]], LINES)

    assert "tfm_cli.cli" in result
    assert "torch" not in result
    assert command not in ("translate", "info") or "numpy" not in result
