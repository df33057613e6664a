"""Stopped after any update, a run goes on to the same bits and the same words."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result, RunTfm, TinyCorpus, invoke
from tests.runs import SMALL_RUN, left_behind, write_part
from tests.tiers import representative
from tfm_cli.training.update import update as make_update
from tfm_cli.training.validation import mean_nll

pytestmark = pytest.mark.slow

UPDATES = 40
OFTEN = ["--valid-freq", "7", "--save-freq", "9", "--disp-freq", "3", "--early-stopping", "9"]


@dataclass(frozen=True)
class Unbroken:
    """A run of 40 updates that never stopped."""

    text: list[str]
    left: dict[str, Any]
    lines: list[str]

    def command(self, output: Path, *more: str) -> list[str]:
        """Return the arguments of `tfm`."""
        run = ["train", *self.text, *SMALL_RUN, *OFTEN, "--max-updates", str(UPDATES)]
        return [*run, "-o", str(output), *more]


@pytest.fixture(scope="module")
def unbroken(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    directory = tmp_path_factory.mktemp("unbroken")
    run = Unbroken(write_part(tiny_corpus, directory, pairs=55), {}, [])
    result = invoke(run.command(directory / "model"))
    assert result.code == 0, result.err
    return Unbroken(run.text, left_behind(directory / "model"), lines_of(result))


def lines_of(result: Result) -> list[str]:
    """The lines of progress and of validations, without speed and time."""
    lines = [line for line in result.err.split("\n") if line.startswith(("update ", "valid "))]
    return [re.sub(r"(tgt-tok/s|time) +\S+ *", "", line) for line in lines]


def stop_before(update: int, patch: pytest.MonkeyPatch) -> None:
    """Let SIGTERM come while an update is made."""

    def watched(*arguments: Any, **named: Any) -> Any:
        if arguments[3].number == update:
            signal.raise_signal(signal.SIGTERM)
        return make_update(*arguments, **named)

    patch.setattr("tfm_cli.training.loop.update", watched)


def check_stop(update: int, unbroken: Unbroken, output: Path, patch: pytest.MonkeyPatch) -> None:
    with patch.context() as inside:
        stop_before(update, inside)
        stopped = invoke(unbroken.command(output))
    assert stopped.code == 143, stopped.err
    assert f"stopped after update {update}: SIGTERM was received" in stopped.err

    result = invoke(unbroken.command(output))

    assert result.code == 0, result.err
    assert left_behind(output) == unbroken.left
    assert lines_of(stopped) + lines_of(result) == unbroken.lines


def test_unbroken_run_has_all_that_is_hard(unbroken: Unbroken) -> None:
    assert unbroken.left["state"]["update"] == UPDATES
    assert unbroken.left["state"]["epoch"] > 5
    assert len([line for line in unbroken.lines if line.startswith("valid ")]) > 5
    assert len({line["best"] for line in unbroken.left["metrics"] if line["event"] == "valid"}) == 2


@representative("update", [20, *range(1, 20), *range(21, UPDATES)])
def test_r10_stop_after_each_update(
    update: int, unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_stop(update, unbroken, tmp_path / "model", monkeypatch)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_r10_run_with_random_segmentations_resumes(
    kind: str, unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--subword-sampling", "both", "--set", f"tokenizer.model_type={kind}"]
    more += ["--set", "tokenizer.byte_fallback=false", "--max-updates", "15"]
    whole = invoke(unbroken.command(tmp_path / "whole", *more))
    assert whole.code == 0, whole.err

    with monkeypatch.context() as inside:
        stop_before(8, inside)
        stopped = invoke(unbroken.command(tmp_path / "model", *more))
    result = invoke(unbroken.command(tmp_path / "model", *more))

    assert (stopped.code, result.code) == (143, 0), result.err
    assert left_behind(tmp_path / "model") == left_behind(tmp_path / "whole")
    assert lines_of(stopped) + lines_of(result) == lines_of(whole)
    plain = invoke(unbroken.command(tmp_path / "plain", *more, "--subword-sampling", "none"))
    assert plain.code == 0, plain.err
    assert lines_of(plain) != lines_of(whole)


@pytest.mark.torture
def test_r10_stop_after_all_updates_in_turn(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for update in range(1, UPDATES):
        with monkeypatch.context() as inside:
            stop_before(update, inside)
            result = invoke(unbroken.command(tmp_path / "model"))
        assert result.code == 143, result.err
        lines += lines_of(result)

    result = invoke(unbroken.command(tmp_path / "model"))

    assert result.code == 0, result.err
    assert left_behind(tmp_path / "model") == unbroken.left
    assert lines + lines_of(result) == unbroken.lines


@representative("number", [2, 4])
def test_r10_stop_in_the_middle_of_a_validation(
    number: int,
    unbroken: Unbroken,
    run_tfm: RunTfm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return mean_nll(*arguments, **named)

    with monkeypatch.context() as inside:
        inside.setattr("tfm_cli.training.validation.mean_nll", interrupted)
        stopped = run_tfm(unbroken.command(tmp_path / "model"))
    result = run_tfm(unbroken.command(tmp_path / "model"))

    assert stopped.code == 130
    assert result.code == 0, result.err
    assert left_behind(tmp_path / "model") == unbroken.left
    assert lines_of(stopped) + lines_of(result) == unbroken.lines
