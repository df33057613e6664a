"""Without PyTorch `tfm` translates, evaluates, tokenizes, checks; the rest says what it lacks."""

import json
from pathlib import Path

import pytest

from tests.conftest import TinyCorpus
from tests.system import without_torch
from tests.translation.native_translator import needs_native
from tfm_cli.native.library import NONE


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    without_torch.link_packages(folder)
    assert not (folder / "torch").exists()
    return folder


@needs_native
def test_translating_works(packages: Path, tiny_model: Path, tiny_corpus: TinyCorpus) -> None:
    command = ["translate", "-q", "-m", str(tiny_model), "--workers", "2", "--max-tokens", "100"]
    text = "".join(f"{line}\n" for line in tiny_corpus.lines("test.en"))

    done = without_torch.run(packages, [*command, "--alignment", "hard", "-f", "json"], text)

    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line)["translation"] for line in done.stdout.split("\n")[:-1]]
    assert sum(map(str.__eq__, found, tiny_corpus.lines("test.de"))) > 36  # of 40


@needs_native
def test_evaluating_works(packages: Path, tiny_model: Path, tiny_corpus: TinyCorpus) -> None:
    command = ["evaluate", tiny_corpus.path("test.de"), "--model", str(tiny_model)]

    done = without_torch.run(packages, [*command, "--source", tiny_corpus.path("test.en")])

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"] > 95


def test_tokenizing_and_checking_work(
    packages: Path, tiny_model: Path, tiny_corpus: TinyCorpus
) -> None:
    sides = ["-s", tiny_corpus.path("test.en"), "-t", tiny_corpus.path("test.de")]

    encoded = without_torch.run(
        packages, ["tokenize", "encode", "-m", str(tiny_model)], "one two\n", engine=NONE
    )
    checked = without_torch.run(packages, ["check", *sides, "-m", str(tiny_model)], engine=NONE)

    assert (encoded.returncode, encoded.stdout) == (0, "▁one ▁two\n"), encoded.stderr
    assert checked.returncode == 0, checked.stderr


@needs_native
def test_shortlists_work(
    packages: Path, tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    sides = ["-s", tiny_corpus.path("test.en"), "-t", tiny_corpus.path("test.de")]
    table = str(tmp_path / "table")

    made = without_torch.run(packages, ["shortlist", "-m", str(tiny_model), *sides, "-o", table])
    used = without_torch.run(
        packages, ["translate", "-m", str(tiny_model), "--shortlist-file", table], "one two\n"
    )

    assert made.returncode == 0, made.stderr
    assert used.stdout == "eins zwei\n", used.stderr


@pytest.mark.parametrize("command", ["train", "export model --to ctranslate2"])
def test_what_needs_pytorch_says_how_to_get_it(
    packages: Path, tiny_model: Path, tmp_path: Path, command: str
) -> None:
    arguments = command.replace("model", str(tiny_model)).split()

    done = without_torch.run(packages, [*arguments, "-o", str(tmp_path / "out")], engine=NONE)

    assert (done.returncode, done.stdout) == (5, ""), done.stderr
    assert "`torch` cannot be imported" in done.stderr
    assert done.stderr.endswith("hint: install it with `pip install torch`\n")


def test_without_engine_and_pytorch_nothing_translates(packages: Path, tiny_model: Path) -> None:
    done = without_torch.run(packages, ["translate", "-m", str(tiny_model)], "one\n", engine=NONE)

    assert (done.returncode, done.stdout) == (5, "")
    assert "there is neither the native CPU engine (" in done.stderr
    assert ") nor PyTorch\n" in done.stderr
