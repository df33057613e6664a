"""`tfm train --summary json`, compared with the files of the run and with sacreBLEU's facts."""

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result, RunTfm, TinyCorpus
from tests.runs import SMALL_RUN, checkpoints, metrics, write_part
from tfm_cli.errors import OutOfTime
from tfm_cli.training import loop

NAMES = {
    "model", "complete", "reason", "updates", "epochs", "target_tokens", "seconds", "best_update",
    "scores", "sha256", "tfm_version",
}  # fmt: skip


@pytest.fixture
def text(tiny_corpus: TinyCorpus, tmp_path: Path) -> list[str]:
    return write_part(tiny_corpus, tmp_path, pairs=20, valid=2)


def command(text: list[str], output: Path, *more: str) -> list[str]:
    flags = ["-o", str(output), "--valid-freq", "3", "--save-freq", "2", "--summary", "json"]
    return ["train", *text, *SMALL_RUN, *flags, *more]


def summary(result: Result) -> dict[str, Any]:
    """Return the only thing on standard output."""
    (line, rest) = result.out.split("\n")
    assert rest == ""
    found: dict[str, Any] = json.loads(line)
    assert set(found) == NAMES
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_summary_has_the_facts_of_the_run_each_time(
    text: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    result = run_tfm(command(text, output, "--max-updates", "5", "-q"))
    found = summary(result)

    again = run_tfm(command(text, output, "--max-updates", "5"))

    state = json.loads((checkpoints(output)[-1] / "state.json").read_bytes())["state"]
    best = [line for line in metrics(output) if line.get("best")][-1]
    tokenizers = list(output.glob("*.model"))
    assert result.code == again.code == 0, result.err + again.err
    assert found["complete"] is True
    assert found["reason"] == "5 updates made (--max-updates)"
    assert (found["model"], found["updates"]) == (str(output), 5)
    assert found["epochs"] == metrics(output)[-1]["epoch"]
    assert found["target_tokens"] == state["target_tokens"]
    assert found["seconds"] == pytest.approx(state["train_seconds"])
    assert found["best_update"] == best["update"]
    assert {name: each["value"] for name, each in found["scores"].items()} == {
        name: best[name] for name in ("bleu", "chrf", "loss")
    }
    signatures = best["signatures"]
    assert found["scores"]["bleu"]["signature"] == signatures["BLEU"]
    assert found["scores"]["chrf"]["signature"] == signatures["chrF2"]
    assert found["scores"]["loss"]["signature"] is None
    assert tokenizers
    assert found["sha256"] == {
        path.name: sha256(path) for path in (*tokenizers, output / "model.safetensors")
    }
    assert summary(again) == found


def test_summary_of_a_run_that_a_signal_stopped(
    text: list[str], run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.update  # type: ignore[attr-defined]

    def signalling(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(loop, "update", signalling)
    result = run_tfm(command(text, tmp_path / "model", "--max-updates", "5"))

    found = summary(result)
    assert result.code == 143
    assert (found["complete"], found["reason"]) == (False, "SIGTERM was received")
    assert (found["updates"], found["best_update"], found["scores"]) == (1, None, {})
    assert list(found["sha256"]) == [path.name for path in (tmp_path / "model").glob("*.model")]


def test_summary_of_a_command_that_had_no_time(
    text: list[str], run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise OutOfTime("stopped before the first update: 1s passed (--max-time)")

    monkeypatch.setattr("tfm_cli.cli.train._train", late)
    result = run_tfm(command(text, tmp_path / "model", "--max-time", "1s"))

    found = summary(result)
    assert result.code == 0, result.err
    assert found["complete"] is False
    assert found["reason"] == "stopped before the first update: 1s passed (--max-time)"
    assert found["updates"] is None
    assert found["sha256"] == {}


def test_summary_of_a_run_that_has_not_replaced_another_one_yet(
    text: list[str], run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    run_tfm(command(text, output, "--max-updates", "3"))

    def late(*_: Any, **__: Any) -> None:
        raise OutOfTime("stopped before the first update: 1s passed (--max-time)")

    with monkeypatch.context() as inside:
        inside.setattr("tfm_cli.cli.train._train", late)
        early = summary(run_tfm(command(text, output, "--overwrite")))
    replaced = summary(run_tfm(command(text, output, "--overwrite", "--max-updates", "3")))

    assert (early["updates"], early["scores"], early["sha256"]) == (None, {}, {})
    assert replaced["updates"] == 3
    assert replaced["scores"]


def test_errors_have_no_summary(text: list[str], run_tfm: RunTfm, tmp_path: Path) -> None:
    result = run_tfm(command([*text[:1], "missing", *text[2:]], tmp_path / "model"))

    assert result.code == 3
    assert result.out == ""
