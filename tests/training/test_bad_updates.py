"""R14: what is no finite number never reaches the weights. R19: a run that diverges is ended."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Result, TinyCorpus, invoke
from tests.runs import SMALL_RUN, checkpoints, left_behind, metrics, write_part
from tests.tiers import representative
from tfm_cli.files import faults as failpoint
from tfm_cli.training import loop
from tfm_cli.training.schedule import Schedule

UPDATES = 12
OFTEN = ["--valid-freq", "5", "--save-freq", "4", "--disp-freq", "3"]
RETRY = ("--set", "training.bad_updates=retry")


@pytest.fixture(scope="module")
def text(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_part(tiny_corpus, tmp_path_factory.mktemp("text"), pairs=55)


@pytest.fixture(autouse=True)
def _no_faults_are_left(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield
    monkeypatch.delenv(failpoint.VARIABLE, raising=False)
    failpoint.reset_faults()


@pytest.fixture
def learn(text: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`learn(output, *flags, spoiled=…)`: a run in which some attempts at updates have no gradient.

    `spoiled` counts attempts from 1, in this process.
    """

    def run(
        output: Path, *flags: str, spoiled: tuple[int, ...] = (), updates: int = UPDATES
    ) -> Result:
        faults = ",".join(f"gradient:{attempt}=nan" for attempt in spoiled)
        monkeypatch.setenv(failpoint.VARIABLE, faults)
        failpoint.reset_faults()
        settings = ["-o", str(output), "--max-updates", str(updates)]
        return invoke(["train", *text, *SMALL_RUN, *OFTEN, *settings, *flags])

    return run


def tensors(output: Path, update: int) -> dict[str, torch.Tensor]:
    """Weights, moments and step counts of a checkpoint."""
    path = output / "checkpoints" / f"update-{update:08d}"
    return {
        f"{name}/{key}": tensor
        for name in ("model.safetensors", "optimizer.safetensors")
        for key, tensor in load_file(path / name).items()
    }


def refused(output: Path) -> list[tuple[int, bool]]:
    """The number of each refused update, and whether it was made once more."""
    lines = [line for line in metrics(output) if line["event"] == "skipped"]
    assert [line["skipped"] for line in lines] == list(range(1, len(lines) + 1))
    return [(line["update"], line["retried"]) for line in lines]


def state(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoints(output)[-1] / "state.json").read_bytes())
    return dict(found["state"])


def test_r14_update_without_a_finite_gradient_moves_no_weight_and_the_run_goes_on(
    learn: Any, tmp_path: Path
) -> None:
    learn(tmp_path / "before", updates=2)

    result = learn(tmp_path / "m", spoiled=(3, 4), updates=4)

    assert result.code == 0, result.err
    one, other = tensors(tmp_path / "before", 2), tensors(tmp_path / "m", 4)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert refused(tmp_path / "m") == [(3, False), (4, False)]
    assert state(tmp_path / "m")["nonfinite_attempts"] == 2
    message = r"warning: update 3: skipped, as the loss is \d\.\d+ and the gradient norm nan; "
    assert re.search(message + r"\d+ training pairs: (\d+, ){5}…; 1 skipped so far\n", result.err)
    assert "; 2 skipped so far\n" in result.err
    assert "; 2 updates skipped or retried; trained " in result.err
    assert learn(tmp_path / "m", updates=6).code == 0
    after = tensors(tmp_path / "m", 6)
    assert all(after[name] == one[name] + 2 for name in one if name.endswith("/step"))
    # Progress is that of the updates that were made.
    (line,) = (one for one in metrics(tmp_path / "m") if one["update"] == 6 and "ppl" in one)
    assert 2 < line["loss"] < 5


@pytest.mark.slow
@representative(
    ("flags", "spoiled", "broken_after", "spoiled_then", "actual"),
    [
        # Left out: updates 3, 4 and 9.
        ((), (3, 4, 9), 3, (1, 6), [(3, False), (4, False), (9, False)]),
        ((), (3, 4, 9), 8, (1,), [(3, False), (4, False), (9, False)]),
        # Attempts 4 and 5 are at update 4, which is made at last; 10 and 11 at update 9.
        (RETRY, (4, 10, 11), 6, (3, 4), [(4, True), (9, True), (9, False)]),
        (RETRY, (4, 10, 11), 9, (), [(4, True), (9, True), (9, False)]),
    ],
)  # fmt: skip
def test_r14_going_on_after_refused_updates_equals_never_having_stopped(
    flags: tuple[str, ...],
    spoiled: tuple[int, ...],
    broken_after: int,
    spoiled_then: tuple[int, ...],
    actual: list[tuple[int, bool]],
    learn: Any,
    tmp_path: Path,
) -> None:
    whole = learn(tmp_path / "whole", *flags, spoiled=spoiled)
    begun = learn(tmp_path / "parts", *flags, spoiled=spoiled, updates=broken_after)

    gone_on = learn(tmp_path / "parts", *flags, spoiled=spoiled_then)

    assert [result.code for result in (whole, begun, gone_on)] == [0, 0, 0], gone_on.err
    assert refused(tmp_path / "whole") == actual
    assert left_behind(tmp_path / "parts") == left_behind(tmp_path / "whole")


@pytest.mark.slow
def test_r14_update_is_made_once_more_at_half_the_rate_which_recovers(
    learn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "RECOVERY_UPDATES", 3)
    once = ["--disp-freq", "1", *RETRY]
    learn(tmp_path / "clean", *once, updates=8)

    result = learn(tmp_path / "m", *once, spoiled=(4,), updates=8)

    assert "warning: update 4: retried at half the learning rate, as the loss is " in result.err
    rates, untroubled = (
        [line["learn_rate"] for line in metrics(output) if line["event"] == "train"]
        for output in (tmp_path / "m", tmp_path / "clean")
    )
    shares = [rate / whole for rate, whole in zip(rates, untroubled, strict=True)]
    assert shares == [1, 1, 1, 0.5, 0.5, 0.5, 1, 1]


@pytest.mark.slow
def test_r14_too_many_refused_updates_in_a_row_end_with_6_and_the_last_good_checkpoint(
    learn: Any, tmp_path: Path
) -> None:
    learn(tmp_path / "clean")

    result = learn(
        tmp_path / "m",
        "--set",
        "training.max_bad_updates=3",
        spoiled=(5, 6, 10, 11, 12),
        updates=14,
    )

    assert result.code == 6
    message = (
        r"error: update 12: the loss is \d\.\d+ and the gradient norm nan, after 2 like it in a "
    )
    assert re.search(message + r"row; the weights were not changed\n", result.err)
    good = tmp_path / "m" / "checkpoints" / "update-00000008"
    assert f"start again; the last good checkpoint is `{good}`\n" in result.err
    assert refused(tmp_path / "m") == [(5, False), (6, False), (10, False), (11, False)]
    # Where the cause is gone, the same command goes on from there.
    assert learn(tmp_path / "m").code == 0
    assert state(tmp_path / "m")["update"] == UPDATES


@pytest.mark.slow
def test_r14_run_that_should_stop_does_at_the_first_refused_update(
    learn: Any, tmp_path: Path
) -> None:
    stop = ("--set", "training.bad_updates=stop")
    learn(tmp_path / "clean", *stop)

    result = learn(tmp_path / "m", *stop, spoiled=(6,))

    assert result.code == 6
    message = (
        r"error: update 6: the loss is \d\.\d+ and the gradient norm nan; the weights were not "
    )
    assert re.search(message + r"changed\n", result.err)
    assert "the last good checkpoint is `" in result.err
    learn(tmp_path / "m", *stop)
    assert left_behind(tmp_path / "m") == left_behind(tmp_path / "clean")


@pytest.mark.slow
@representative("spoiled", [(3, 4, 9), (1,), (12,)])
def test_r14_device_that_is_not_waited_for_leaves_out_the_same_updates(
    spoiled: tuple[int, ...], learn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where refusal is known only when progress, validation or a save is due."""
    learn(tmp_path / "waits", spoiled=spoiled)
    monkeypatch.setattr(loop, "_is_check_free", lambda device: False)

    result = learn(tmp_path / "blind", spoiled=spoiled)

    assert result.code == 0, result.err
    ours, theirs = (left_behind(tmp_path / name) for name in ("blind", "waits"))
    assert sorted(map(str, ours.pop("metrics"))) == sorted(map(str, theirs.pop("metrics")))
    assert ours == theirs


def explode_after(update: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the learning rate be a million times too high from some update on."""

    usual = Schedule.rate

    def rate(self: Schedule, number: int) -> float:
        return usual(self, number) * (1e6 if number > update else 1)

    monkeypatch.setattr(Schedule, "rate", rate)


@pytest.mark.slow
@representative("save_freq", [3, 20])
def test_r19_learning_rate_a_million_times_too_high_ends_with_6_and_the_last_good_checkpoint(
    save_freq: int, learn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode_after(21, monkeypatch)

    result = learn(
        tmp_path / "m", "--save-freq", str(save_freq), "--valid-freq", "99", updates=60
    )  # fmt: skip

    assert result.code == 6
    assert "error: update 4" in result.err
    assert (
        ", and has been more than 4 times that of a uniform guess, 3.18, since update 23\n"
        in result.err
    )
    good = 21 if save_freq == 3 else 20
    path = tmp_path / "m" / "checkpoints" / f"update-{good:08d}"
    assert path in checkpoints(tmp_path / "m")
    assert f"the last good checkpoint is `{path}`\n" in result.err


def test_r19_hopeless_learning_rate_from_the_start_ends_with_6(learn: Any, tmp_path: Path) -> None:
    result = learn(tmp_path / "m", "--lr", "5000", updates=60)

    assert result.code == 6
    assert (
        ", and has been more than 4 times that of a uniform guess, 3.18, since update 2\n"
        in result.err
    )
    assert "; no checkpoint was saved\n" in result.err
    assert "hint: lower `--learn-rate` or lengthen `--lr-warmup`, and start again; " in result.err
