"""Models with their own normalizer are tried in a child process; old versions are refused."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.conftest import RunTfm
from tests.sentencepiece_bytes import MODEL, charsmap, delimited, trie
from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.tokenizer import model_file as trial
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import TrainerOptions, train_tokenizer

OWN = MODEL + delimited(3, delimited(2, charsmap(trie(ord("b"), text_at=0), texts=b"a\0")))


@pytest.fixture(autouse=True)
def _nothing_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_loaded_in_child", set())


def test_model_with_a_normalizer_of_its_own_is_tried_once_and_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started, run = [], subprocess.run

    def counting(*arguments: Any, **options: Any) -> object:
        started.append(1)
        return run(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", counting)

    for _ in range(2):
        tokenizer = Tokenizer(OWN)

    assert started == [1]
    assert tokenizer.encode_pieces(["b"]) == [["▁a"]]


def test_usual_model_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)

    settings = TokenizerConfig(vocab_size=300, byte_fallback=True)
    Tokenizer(train_tokenizer(["a b c"], settings, seed=1, soft_limit=True))


def test_rules_of_a_file_are_a_normalizer_that_works(tmp_path: Path) -> None:
    (tmp_path / "rules.tsv").write_text("41\t61\n42\t62 62\n", encoding="utf-8")
    settings = TokenizerConfig(vocab_size=300, byte_fallback=True)
    extra = {"normalization_rule_tsv": str(tmp_path / "rules.tsv")}
    model = train_tokenizer(
        ["a b c A B"], settings, seed=1, soft_limit=True, options=TrainerOptions(extra=extra)
    )

    tokenizer = Tokenizer(model)

    assert tokenizer.decode(tokenizer.encode(["AB"])) == ["abb"]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashed when it read it, with signal 11"),
        ("import os; os._exit(3)", "crashed when it read it, with code 3"),
        ("import time; time.sleep(60)", "had not read it after 0.2 seconds"),
    ],
)
def test_model_that_crashes_the_child_is_refused(
    program: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_tfm: RunTfm
) -> None:
    monkeypatch.setattr(trial, "_CHILD_PROGRAM", program)
    monkeypatch.setattr(trial, "_CHILD_TIMEOUT_SECONDS", 0.2 if "sleep" in program else 20)
    (tmp_path / "own.model").write_bytes(OWN)

    result = run_tfm(["tokenize", "encode", "--model", str(tmp_path / "own.model")], "a\n")

    assert (result.code, result.out) == (4, "")
    assert result.err == (
        f"error: {tmp_path / 'own.model'}: is not a SentencePiece model: SentencePiece {message}\n"
    )


def test_child_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")

    with pytest.raises(ResourceError, match="no process can be started: No such file"):
        Tokenizer(OWN)


@pytest.mark.parametrize("version", ["0.2.1", "0.1.99", "0.2", "0.0.0"])
def test_older_sentencepiece_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece, "__version__", version)
    trial.check_version.cache_clear()

    with pytest.raises(
        ResourceError, match=rf"sentencepiece {version} is installed, expected 0\.2\.2"
    ) as caught:
        Tokenizer(MODEL)

    assert caught.value.hint == "pip install 'sentencepiece>=0.2.2'"


@pytest.mark.parametrize("version", ["0.2.2", "0.2.10", "0.3", "1.0.0", "0.2.3rc1"])
def test_newer_sentencepiece_is_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece, "__version__", version)
    trial.check_version.cache_clear()

    trial.check_version()


def test_crafted_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(MODEL + b"\x0b")

    with pytest.raises(
        ModelError, match=r"a\.model: is not a SentencePiece model: it has a field of"
    ):
        Tokenizer.load(tmp_path / "a.model")
