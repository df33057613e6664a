"""The initial decision on the tokenizer of BLEU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

from tests.conftest import RunTfm
from tests.runs import SMALL_RUN, checkpoints, left_behind, metrics
from tfm_cli.model_directory.config_file import load_config

SOURCES = ["one", "two", "three", "four five", "one two three"]
TARGETS = {
    "char": [
        "一つです。",
        "二つです。",
        "三つです。",
        "四つと五つです。",
        "一つと二つと三つです。",
    ],
    "zh": ["一个。", "两个。", "三个。", "四个和五个。", "一个、两个和三个。"],
    "13a": ["eins", "zwei", "drei", "vier fünf", "eins zwei drei"],
}

Command = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    def make(output: Path, updates: int, *more: str, script: str = "char") -> list[str]:
        for name, lines in (("s", SOURCES), ("t", TARGETS[script])):
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
        source, target = str(tmp_path / "s"), str(tmp_path / "t")
        return [
            "train", "-s", source, "-t", target, "-vs", source, "-vt", target, *SMALL_RUN,
            "-o", str(output), "--max-updates", str(updates), "--valid-freq", "2",
            "--save-freq", "2", *more,
        ]  # fmt: skip

    return make


def tokenize_of(output: Path) -> str:
    return load_config(output).settings.validation.tokenize


def rewrite_config(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the settings of the sections in `config.json`, as an older version wrote them."""
    path = output / "config.json"
    header = json.loads(path.read_bytes())
    del header["sha256"]
    header["format_version"] = 2
    change(header["settings"])
    path.write_text(json.dumps(header), "utf-8")


@pytest.mark.parametrize("script", TARGETS)
def test_tokenizer_of_bleu_is_decided_by_the_script_and_told_once(
    script: str, command: Command, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"

    result = run_tfm(command(output, 4, script=script))

    assert result.code == 0, result.err
    assert tokenize_of(output) == script
    assert result.err.count("BLEU's tokenizer: ") == (script != "13a")
    assert f"|tok:{script}|" in result.err
    assert f"|tok:{script}|" in (output / "README.md").read_text("utf-8").replace("\\", "")


def test_scores_are_those_of_sacrebleu_with_that_tokenizer(
    command: Command, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output, source = tmp_path / "model", tmp_path / "s"
    run_tfm(command(output, 60, "--set", "validation.metrics=bleu", "--valid-freq", "60"))

    translated = run_tfm(
        ["translate", "-m", str(output), "--greedy", "--device", "cpu"],
        source.read_text("utf-8"),
    )

    hypotheses = translated.out.split("\n")[:-1]
    expected = sacrebleu.corpus_bleu(hypotheses, [TARGETS["char"]], tokenize="char").score
    (actual,) = (line for line in metrics(output) if line["event"] == "valid")
    assert actual["bleu"] == pytest.approx(expected, abs=1e-9)
    assert expected > 0


def test_resumed_run_keeps_the_tokenizer(command: Command, run_tfm: RunTfm, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_tfm(command(whole, 4))

    run_tfm(command(parts, 2))
    resumed = run_tfm(command(parts, 4))
    other = run_tfm(command(parts, 6, "--set", "validation.tokenize=zh"))

    assert resumed.code == 0, resumed.err
    assert "BLEU's tokenizer" not in resumed.err
    assert "|tok:char|" in resumed.err
    assert left_behind(parts) == left_behind(whole)
    assert other.code == 2
    assert "validation.tokenize: `char` → `zh`" in other.err


def test_run_of_an_older_version_is_resumed_as_it_was(
    command: Command, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    run_tfm(command(output, 2, "--set", "validation.tokenize=13a"))
    rewrite_config(output, lambda settings: settings["validation"].pop("tokenize"))
    state = checkpoints(output)[-1] / "state.json"
    assert '"best_others"' in state.read_text("utf-8")

    resumed = run_tfm(command(output, 4))

    assert resumed.code == 0, resumed.err
    assert "|tok:13a|" in resumed.err
    assert tokenize_of(output) == "13a"


def test_tokenizer_that_was_asked_for_is_taken(
    command: Command, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"

    result = run_tfm(command(output, 2, "--set", "validation.tokenize=intl"))

    assert "|tok:intl|" in result.err
    assert "BLEU's tokenizer" not in result.err
    assert tokenize_of(output) == "intl"


@pytest.mark.parametrize("name", ["ja-mecab", "flores200"])
def test_tokenizer_that_lacks_something_ends_the_run_before_any_work(
    name: str, command: Command, run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "MeCab", None)
    output = tmp_path / "model"

    result = run_tfm(command(output, 2, "--set", f"validation.tokenize={name}"))

    assert result.code == 5
    assert f"the tokenizer `{name}` needs " in result.err
    assert not (output / "config.json").exists()


def test_tokenizer_of_a_resumed_run_that_lacks_something_is_told_at_once(
    command: Command, run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    run_tfm(command(output, 2))
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    rewrite_config(output, lambda settings: settings["validation"].update(tokenize="flores200"))

    result = run_tfm(command(output, 4))

    assert result.code == 5
    assert "the tokenizer `flores200` needs the file " in result.err
    assert "resuming after" not in result.err


def test_first_of_equal_models_is_not_kept_where_the_next_metric_is_better(
    command: Command, run_tfm: RunTfm, tmp_path: Path
) -> None:
    """BLEU is 0 at every validation here, and the loss falls."""
    output = tmp_path / "model"
    settings = ["--set", 'validation.metrics=["bleu", "loss"]', "--set", "validation.tokenize=13a"]

    result = run_tfm(command(output, 8, *settings, "--early-stopping", "2"))

    valid = [line for line in metrics(output) if line["event"] == "valid"]
    assert result.code == 0, result.err
    assert {line["bleu"] for line in valid} == {0}
    assert [line["update"] for line in valid if line.get("best")] == [2, 4, 6, 8]
