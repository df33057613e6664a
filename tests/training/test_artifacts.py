"""The artifacts of runs whose validations return given scores."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import RunTfm, TinyCorpus
from tests.runs import SMALL_RUN, checkpoints, left_behind, metrics, write_part
from tfm_cli.model_directory.weights import WeightsFacts, load_model, weights_facts
from tfm_cli.training import checkpoint
from tfm_cli.training.validation import Validation

Command = Callable[..., list[str]]


@pytest.fixture
def command(tiny_corpus: TinyCorpus, tmp_path: Path) -> Command:
    text = write_part(tiny_corpus, tmp_path, pairs=20, valid=2)

    def make(output: Path, updates: int, *more: str) -> list[str]:
        flags = ["-o", str(output), "--max-updates", str(updates), "--valid-freq", "3"]
        flags += ["--save-freq", "2", "--disp-freq", "4", "--set", "validation.metrics=bleu"]
        return ["train", *text, *SMALL_RUN, *flags, *more]

    return make


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`judge(1, 3, 2)` sets the scores of the next validations."""
    verdicts: Iterator[float] = iter(())

    def validate(*_: Any) -> Validation:
        return Validation({"bleu": next(verdicts)}, ())

    def expect(*scores: float) -> None:
        nonlocal verdicts
        verdicts = iter(scores)

    monkeypatch.setattr("tfm_cli.training.run.validate", validate)
    return expect


def kept(output: Path) -> WeightsFacts:
    facts = weights_facts(output)
    assert facts is not None
    return facts


def test_best_weights_are_saved_and_logged(
    command: Command, judge: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
) -> None:
    judge(10, 30, 20, 25)
    output = tmp_path / "model"

    result = run_tfm(command(output, 10))

    assert result.code == 0, result.err
    assert kept(output) == WeightsFacts(6, {"bleu": 30})
    assert "| these weights | after update 6," in (output / "README.md").read_text("utf-8")
    assert "; best bleu 30.00 at update 6; trained " in result.err
    assert f"; model in `{output}`" in result.err
    assert [line["update"] for line in metrics(output) if line.get("best")] == [3, 6]


def test_kept_weights_are_the_average(
    command: Command, judge: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
) -> None:
    judge(1, 2)
    output = tmp_path / "model"

    run_tfm(command(output, 6))

    saved = checkpoint.read(checkpoints(output)[-1])
    result = load_model(output, torch.device("cpu")).transformer.state_dict()
    assert all(torch.equal(result[name], saved.average[name]) for name in result)
    assert not all(torch.equal(result[name], saved.weights[name]) for name in result)


def test_best_weights_off_schedule_are_kept_until_the_run_is_resumed(
    command: Command, judge: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    judge(10, 30, 20, 12)
    run_tfm(command(whole, 11))

    judge(10, 30, 99)
    first = run_tfm(command(parts, 8))
    after_first = kept(parts)
    again = run_tfm(command(parts, 8))
    after_again = kept(parts)
    judge(20, 12)
    last = run_tfm(command(parts, 11))

    assert "best bleu 99.00 at update 8" in first.err
    assert "best bleu 99.00 at update 8" in again.err
    assert after_first == after_again == WeightsFacts(8, {"bleu": 99})
    assert "best bleu 30.00 at update 6" in last.err
    assert left_behind(parts) == left_behind(whole)
    assert "after update 6," in (parts / "README.md").read_text("utf-8")


def test_best_weights_off_schedule_stay_where_they_beat_what_follows(
    command: Command, judge: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    judge(10, 20)
    run_tfm(command(output, 4))

    judge(30, 25)
    run_tfm(command(output, 7))

    assert kept(output) == WeightsFacts(6, {"bleu": 30})
    assert [line["update"] for line in metrics(output) if line["event"] == "valid"] == [3, 6, 7]


def test_patience_survives_a_break(
    command: Command, judge: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    judge(9, 8, 7)
    run_tfm(command(output, 7, "--early-stopping", "3"))

    judge(6, 5, 99)
    result = run_tfm(command(output, 100, "--early-stopping", "3"))

    assert "stopped after update 12: 3 validations without a better bleu" in result.err
    state = json.loads((checkpoints(output)[-1] / "state.json").read_bytes())["state"]
    assert (state["best_score"], state["best_update"], state["stalled"]) == (9, 3, 3)


def test_more_patience_lets_a_stopped_run_resume(
    command: Command, judge: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    judge(9, 8)
    stopped = run_tfm(command(output, 100, "--early-stopping", "1"))

    judge(10, 9, 8, 7)
    result = run_tfm(command(output, 100, "--early-stopping", "3"))

    assert "stopped after update 6: 1 validation without" in stopped.err
    assert "stopped after update 18: 3 validations" in result.err
    assert "best bleu 10.00 at update 9" in result.err


def test_newest_weights_are_saved_without_validation(
    tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    text = write_part(tiny_corpus, tmp_path, pairs=20, valid=0)
    output = tmp_path / "model"
    flags = ["-o", str(output), "--max-updates", "5", "--save-freq", "2"]

    result = run_tfm(["train", *text, *SMALL_RUN, *flags])

    assert result.code == 0, result.err
    assert kept(output) == WeightsFacts(5, {})
    model = re.escape(f"model in `{output}`")
    assert re.search(rf"\(--max-updates\); trained \d+s; {model}", result.err)
    saved = checkpoint.read(checkpoints(output)[-1])
    actual: Any = load_model(output, torch.device("cpu")).transformer.state_dict()
    assert all(torch.equal(actual[name], saved.average[name]) for name in actual)


def test_signatures_are_logged_once(
    tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    text = write_part(tiny_corpus, tmp_path, pairs=20, valid=2)
    flags = ["-o", str(tmp_path / "model"), "--max-updates", "2", "--valid-freq", "1"]

    result = run_tfm(["train", *text, *SMALL_RUN, *flags])

    assert result.err.count("BLEU signature: nrefs:1|") == 1
    assert result.err.count("chrF2 signature: nrefs:1|") == 1
