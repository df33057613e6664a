"""Going on with a run equals never having stopped, to the bit."""

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TFM, RunTfm, TinyCorpus, invoke
from tests.runs import SMALL_RUN, checkpoints, left_behind, write_part
from tests.tiers import representative
from tfm_cli.training.update import update as make_update

pytestmark = pytest.mark.slow

UPDATES = 14
OFTEN = ["--valid-freq", "5", "--save-freq", "4", "--disp-freq", "3"]


@pytest.fixture(scope="module")
def text(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a corpus that gives three updates an epoch, the third of one batch only."""
    return write_part(tiny_corpus, tmp_path_factory.mktemp("text"), pairs=55)


@pytest.fixture(scope="module")
def unbroken(text: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that never stopped."""
    output = tmp_path_factory.mktemp("unbroken") / "model"
    result = invoke(command(text, output))
    assert result.code == 0, result.err
    return left_behind(output)


def command(text: list[str], output: Path, *more: str, updates: int = UPDATES) -> list[str]:
    flags = ["-o", str(output), "--max-updates", str(updates)]
    return ["train", *text, *SMALL_RUN, *OFTEN, *flags, *more]


def signal_before(update: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    """Let a signal come while an update is made."""

    def watched(*arguments: Any, **named: Any) -> Any:
        if arguments[3].number == update:
            signal.raise_signal(number)
        return make_update(*arguments, **named)

    patch.setattr("tfm_cli.training.loop.update", watched)


def test_test_has_an_epoch_that_ends_in_an_odd_batch(unbroken: dict[str, Any]) -> None:
    epochs = [line["epoch"] for line in unbroken["metrics"] if line["event"] == "train"]

    assert epochs == [1, 2, 3, 4]
    assert unbroken["state"]["epoch"] == 4


@representative("first", [5, 1, 3, 8, 13])
def test_run_in_two_parts_leaves_what_one_run_leaves(
    first: int, text: list[str], unbroken: dict[str, Any], run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    begun = run_tfm(command(text, output, updates=first))
    assert begun.code == 0, begun.err
    assert f"stopped after update {first}: {first} update" in begun.err

    result = run_tfm(command(text, output))

    assert result.code == 0, result.err
    assert f"resuming after update {first} of `{output}`" in result.err
    assert left_behind(output) == unbroken


def test_run_in_many_parts_leaves_what_one_run_leaves(
    text: list[str], unbroken: dict[str, Any], run_tfm: RunTfm, tmp_path: Path
) -> None:
    for updates in (2, 7, 9, 12, UPDATES):
        assert run_tfm(command(text, tmp_path / "model", updates=updates)).code == 0

    assert left_behind(tmp_path / "model") == unbroken


@representative(
    ("number", "update"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 5), (signal.SIGTERM, 7), (signal.SIGINT, 12)],
)
def test_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals,
    update: int,
    text: list[str],
    unbroken: dict[str, Any],
    run_tfm: RunTfm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "model"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signal_before(update, number, patch)
        stopped = run_tfm(command(text, output))
    restored = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    result = run_tfm(command(text, output))

    assert stopped.code == 128 + number
    assert f"stopped after update {update}: {number.name} was received" in stopped.err
    assert "repeat the command to resume" in stopped.err
    assert handlers == restored
    assert result.code == 0, result.err
    assert left_behind(output) == unbroken


def test_time_that_is_up_saves_and_the_same_command_goes_on(
    text: list[str], unbroken: dict[str, Any], run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    stopped = run_tfm(command(text, output, "--max-time", "0.001s"))
    again = run_tfm(command(text, output, "--max-time", "0.001s"))

    result = run_tfm(command(text, output))

    # Whatever the time, each call makes an update, so that it comes to an end.
    for number, call in ((1, stopped), (2, again)):
        assert call.code == 0, call.err
        message = f"stopped after update {number}: 0.001s passed (--max-time)"
        assert message in call.err
        assert f"at update {number}; trained" in call.err  # there is a model to translate with
        assert "repeat the command to resume" in call.err
    assert result.code == 0, result.err
    assert left_behind(output) == unbroken


def test_run_without_validation_text_goes_on_to_the_bit(
    text: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    run_tfm(command(text[:4], tmp_path / "whole"))
    run_tfm(command(text[:4], tmp_path / "parts", updates=6))
    result = run_tfm(command(text[:4], tmp_path / "parts"))

    assert result.code == 0, result.err
    assert left_behind(tmp_path / "parts") == left_behind(tmp_path / "whole")


def test_run_whose_newest_checkpoint_is_torn_goes_on_from_the_one_before(
    text: list[str], unbroken: dict[str, Any], run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    run_tfm(command(text, output, updates=11))
    before, torn = checkpoints(output)
    path = torn / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    result = run_tfm(command(text, output))

    assert (before.name, torn.name) == ("update-00000008", "update-00000011")
    assert f"warning: {path}: is damaged or not a checkpoint: its tensors end at" in result.err
    assert f"resuming after update 8 of `{output}`" in result.err
    assert left_behind(output) == unbroken
    assert torn not in checkpoints(output)


def test_run_that_was_killed_before_its_first_checkpoint_begins_again(
    text: list[str], unbroken: dict[str, Any], run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    run_tfm(command(text, output, updates=5))
    for path in checkpoints(output):
        shutil.rmtree(path)

    result = run_tfm(command(text, output))

    assert f"{output}: the run in it ended before its first checkpoint; starting over" in result.err
    assert left_behind(output) == unbroken


LONGER = ["--save-freq", "6", "--valid-freq", "25"]


@pytest.fixture(scope="module")
def longer(text: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that is long enough for a signal to reach its process in time."""
    output = tmp_path_factory.mktemp("longer") / "model"
    result = invoke(command(text, output, *LONGER, updates=50))
    assert result.code == 0, result.err
    return left_behind(output)


@representative("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_process_that_is_ended_by_a_signal_goes_on_to_the_bit(
    number: signal.Signals,
    text: list[str],
    longer: dict[str, Any],
    run_tfm: RunTfm,
    tmp_path: Path,
) -> None:
    arguments = command(text, tmp_path / "model", *LONGER, updates=50)
    process = subprocess.Popen(
        [*TFM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("update      9"):
            process.send_signal(number)
            break
    out, err = process.communicate()

    result = run_tfm(arguments)

    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert f"warning: {number.name}: saving after this update; a second signal ends it" in err
        assert f"{number.name} was received" in err
        assert "Traceback" not in err
    assert out == ""
    assert "resuming after update" in result.err
    assert left_behind(tmp_path / "model") == longer
