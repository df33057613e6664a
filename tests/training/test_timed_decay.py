"""A decay that ends by the time limit, on a clock that the tests move."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tests.runs import SMALL_RUN, checkpoints, left_behind, metrics, write_part
from tfm_cli.config.loading import resolve
from tfm_cli.config.settings import RunConfig, TrainingConfig, ValidationConfig
from tfm_cli.parallel import Parallel
from tfm_cli.training.schedule import plan_end, schedule_of
from tfm_cli.training.state import TrainState
from tfm_cli.training.time_limit import TimeLimit
from tfm_cli.training.timed_decay import TimedDecay
from tfm_cli.training.update import update as make_update

LIMIT = 1200.0


class Simulation:
    """A run on a clock: updates, validations every 500 updates, and the last validation."""

    def __init__(
        self,
        seconds: Any,
        *,
        validation: float = 0.0,
        state: TrainState | None = None,
        limit: float = LIMIT,
        warmup: int = 100,
        ratio: float = 0.2,
        parallel: Parallel | None = None,
    ) -> None:
        self.now = 5.0  # after reading
        self.state = state or TrainState()
        self.config = RunConfig(
            training=TrainingConfig(
                schedule="warmup-stable-decay", max_updates=0, max_time=f"{limit}s",
                lr_warmup=warmup, decay_ratio=ratio,
            ),
            validation=ValidationConfig(freq=500),
        )  # fmt: skip
        plan_end(self.state, self.config, updates_per_epoch=9, epochs=0.0, batches=1)
        self._seconds = seconds
        self._validation = validation
        self.limit = TimeLimit(f"{limit}s", began=0.0, clock=lambda: self.now)
        self.limit.saving_seconds = 1.0
        self._decay = TimedDecay(
            self.state, self.config, self.limit, parallel=parallel or Parallel(),
            validation_seconds=lambda: validation, clock=lambda: self.now,
        )  # fmt: skip

    def run(self, *, validates: bool = True) -> None:
        """Make updates until the end of the decay or of the time."""
        state, first = self.state, self.state.update
        while state.last_update == 0 or state.update < state.last_update:
            self._decay.plan()
            if self.now >= self.limit.deadline:
                return
            state.update += 1
            compiles = 20.0 if state.update == first + 1 else 0.0
            self.now += self._seconds(state.update) + compiles
            if state.update % 500 == 0:
                self._validate()
        if validates and state.update % 500:
            self._validate()
        self.now += 1.0  # the last checkpoint

    def _validate(self) -> None:
        if self._validation:
            self.now += self._validation
            self.state.validation_seconds = self._validation
            self.state.validated_update = self.state.update


@pytest.mark.parametrize("seconds", [0.03, 0.2, 2.0])
@pytest.mark.parametrize("validation", [0.0, 3.0, 40.0])
@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5])
def test_decay_is_its_part_of_the_run_and_ends_just_before_the_limit(
    seconds: float, validation: float, ratio: float
) -> None:
    run = Simulation(lambda _: seconds, validation=validation, ratio=ratio)

    run.run()

    state = run.state
    assert state.update == state.last_update
    assert run.now <= LIMIT
    # 5 % of the decay's time, a tenth of each validation in it, and an update or a validation.
    spare = 0.055 * ratio * LIMIT + 2 * seconds + 2 * validation
    assert run.now > LIMIT - spare - 0.1 * validation * (state.update / 500 * ratio + 1)
    length = state.last_update - state.decay_start
    assert length == pytest.approx(ratio * state.last_update, rel=0.08, abs=2)
    schedule = schedule_of(run.config.training, state)
    rates = [schedule.rate(update) for update in range(1, state.last_update + 1)]
    assert rates[99 : state.decay_start] == [rates[99]] * (state.decay_start - 99)
    assert rates[state.decay_start] < rates[99]


def test_validation_that_is_too_long_to_be_made_at_the_end_leaves_the_decay_its_time() -> None:
    run = Simulation(lambda _: 5.0, validation=0.7 * LIMIT, warmup=10)

    run.run(validates=False)

    length = run.state.last_update - run.state.decay_start
    assert run.state.update == run.state.last_update < 500
    assert length == pytest.approx(0.2 * run.state.last_update, rel=0.08, abs=2)


def test_decay_for_which_there_is_no_time_does_not_begin() -> None:
    state = TrainState(update=499, validated_update=490)
    run = Simulation(lambda _: 2.0, validation=0.4 * LIMIT, limit=LIMIT, state=state)
    run.now = LIMIT * 0.9

    run.run(validates=False)

    assert (run.state.decay_start, run.state.last_update) == (0, 0)


def test_updates_that_become_slower_leave_time_for_the_decay() -> None:
    run = Simulation(lambda update: 0.1 if update < 4000 else 0.2)

    run.run()

    assert run.state.update == run.state.last_update
    assert LIMIT - 80 < run.now <= LIMIT


def test_decay_keeps_its_end_whatever_its_updates_take() -> None:
    run = Simulation(lambda update: 0.1)
    run.run()
    slow = Simulation(lambda update: 0.1 if update <= run.state.decay_start else 1.0)

    slow.run()

    assert slow.now >= LIMIT
    assert slow.state.last_update == run.state.last_update > slow.state.update


def test_run_that_was_stopped_in_its_decay_ends_it_and_one_that_was_stopped_before_plans_anew() -> (
    None
):
    first = Simulation(lambda _: 0.1)
    first.run()
    end, start = first.state.last_update, first.state.decay_start
    decaying = TrainState(
        update=start + 5, decay_start=start, last_update=end, plan_crc=first.state.plan_crc
    )
    Simulation(lambda _: 0.1, state=decaying).run()
    stable = TrainState(update=start - 5)
    run = Simulation(lambda _: 0.1, state=stable)
    run.run()

    assert (decaying.update, decaying.decay_start) == (end, start)
    assert stable.last_update == stable.update > 1.5 * end  # another 20 minutes
    assert run.now <= LIMIT


def test_resumed_run_whose_decay_would_take_longer_than_the_command_begins_it_at_once() -> None:
    state = TrainState(update=100_000)
    run = Simulation(lambda _: 0.1, state=state)

    run.run()

    assert 100_010 <= state.decay_start <= 100_020
    assert state.update == state.last_update
    assert LIMIT - 70 < run.now <= LIMIT


@pytest.mark.parametrize("limit", [5.0, 30.0, 40.0])
def test_little_time_ends_without_a_decay_or_within_the_limit(limit: float) -> None:
    run = Simulation(lambda _: 0.5, limit=limit, warmup=4)

    run.run()

    assert run.now <= max(limit + 0.5, 5 + 20 + 0.5)  # the first update takes its time
    assert (run.state.last_update > 0) == (limit > 26)


def test_warmup_is_never_cut() -> None:
    run = Simulation(lambda _: 1.0, warmup=5000)

    run.run()

    assert run.state.last_update == 0
    assert run.now >= LIMIT


class Ranks(Parallel):
    """Rank 1 of two, which hears what rank 0 has decided."""

    def __init__(self, decided: int) -> None:
        super().__init__(rank=1, world_size=2)
        self.decided, self.given = decided, [0]

    def all_max(self, values: Any) -> list[int]:
        self.given = list(values)
        return [self.decided]


def test_rank_0_decides_for_all() -> None:
    parallel = Ranks(0)
    run = Simulation(lambda _: 0.5, parallel=parallel)
    run.run()
    before = run.state.last_update
    parallel.decided = 7

    run._decay.plan()

    assert before == 0
    assert parallel.given == [0]  # though its own time is over
    assert run.state.last_update == run.state.update + 7


# --- whole runs ---------------------------------------------------------------------------------

DECAY = ["--schedule", "warmup-stable-decay", "--max-time", "1h", "--lr-warmup", "3"]
OFTEN = ["--valid-freq", "5", "--save-freq", "4", "--disp-freq", "1"]


@pytest.fixture(scope="module")
def text(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_part(tiny_corpus, tmp_path_factory.mktemp("text"), pairs=55, valid=2)


def begin_decay_after(update: int, patch: pytest.MonkeyPatch) -> None:
    """Let the decay begin after an update, as the clock decides it otherwise, with 8 updates."""

    def num_updates(self: TimedDecay) -> int:
        return 8 if self._state.update == update else 0

    patch.setattr(TimedDecay, "_num_updates", num_updates)


def kill_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process end before an update, as if it were killed."""

    def watched(*arguments: Any, **named: Any) -> Any:
        if arguments[3].number == number:
            raise RuntimeError("killed")
        return make_update(*arguments, **named)

    patch.setattr("tfm_cli.training.loop.update", watched)


def test_decay_by_time_is_recorded_and_a_killed_run_resumes_to_the_same_bits(
    text: list[str], tmp_path: Path, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(name: str) -> list[str]:
        return ["train", *text, *SMALL_RUN, *OFTEN, *DECAY, "-o", str(tmp_path / name)]

    with monkeypatch.context() as inside:
        begin_decay_after(6, inside)
        whole = run_tfm(command("whole"))
    codes = []
    # Before the decay, at its first update, and in it, where the clock would begin another one.
    for killed, begins in ((5, 6), (7, 6), (12, 11)):
        with monkeypatch.context() as inside:
            begin_decay_after(begins, inside)
            kill_at(killed, inside)
            codes.append(run_tfm(command("killed")).code)
    with monkeypatch.context() as inside:
        begin_decay_after(13, inside)
        resumed = run_tfm(command("killed"))
    finished = run_tfm(["train", "-o", str(tmp_path / "killed")])
    timed = run_tfm(["train", "-o", str(tmp_path / "killed"), "--max-time", "2h"])

    assert whole.code == 0, whole.err
    assert codes == [70, 70, 70]
    assert resumed.code == 0, resumed.err
    assert "stopped after update 14: 14 updates made (--max-time)" in resumed.err
    assert left_behind(tmp_path / "killed") == left_behind(tmp_path / "whole")
    (line,) = [line for line in metrics(tmp_path / "whole") if line["event"] == "decay"]
    assert (line["update"], line["last_update"]) == (6, 14)
    state = json.loads((checkpoints(tmp_path / "whole")[-1] / "state.json").read_bytes())["state"]
    assert (state["decay_start"], state["last_update"]) == (6, 14)
    rates = {
        line["update"]: line["learn_rate"]
        for line in metrics(tmp_path / "whole")
        if line["event"] == "train"
    }
    expected = [5e-3 * (1 - ((update - 6) / 9) ** 0.5) for update in range(7, 15)]
    assert [rates[update] for update in range(3, 7)] == [5e-3] * 4
    assert [rates[update] for update in range(7, 15)] == pytest.approx(expected)
    for result in (finished, timed):
        assert result.code == 0
        assert "the run is finished" in result.err


def test_decay_by_time_needs_its_time_again_when_the_run_is_resumed_before_it(
    text: list[str], tmp_path: Path, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "run")
    with monkeypatch.context() as inside:
        kill_at(6, inside)
        run_tfm(["train", *text, *SMALL_RUN, *OFTEN, *DECAY, "-o", output])

    result = run_tfm(["train", "-o", output])

    assert result.code == 2
    assert "hint: give it with `--max-updates`, `--max-epochs` or `--max-time`" in result.err


@pytest.mark.parametrize("schedule", ["linear", "cosine", "warmup-stable-decay"])
def test_run_that_was_killed_in_its_decay_resumes_to_the_same_bits(
    schedule: str,
    text: list[str],
    tmp_path: Path,
    run_tfm: RunTfm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = ["--schedule", schedule, "--max-updates", "12", "--decay-ratio", "0.5"]

    def command(name: str) -> list[str]:
        run = ["train", *text, *SMALL_RUN, *OFTEN, "--lr-warmup", "3", *more]
        return [*run, "-o", str(tmp_path / name)]

    whole = run_tfm(command("whole"))
    for killed in (6, 10):
        with monkeypatch.context() as inside:
            kill_at(killed, inside)
            assert run_tfm(command("killed")).code == 70
    resumed = run_tfm(["train", "-o", str(tmp_path / "killed")])
    refused = run_tfm(["train", "-o", str(tmp_path / "killed"), "--max-updates", "20"])
    extended = run_tfm(
        ["train", "-o", str(tmp_path / "killed"), "--max-updates", "20", "--allow-change"]
    )

    assert whole.code == resumed.code == extended.code == 0, whole.err + resumed.err
    assert refused.code == 2
    assert "training.max_updates: 12 → 20" in refused.err
    assert [line for line in metrics(tmp_path / "killed", marks=True) if line["event"] == "changed"]
    before = [line["learn_rate"] for line in metrics(tmp_path / "whole") if "learn_rate" in line]
    after = [line["learn_rate"] for line in metrics(tmp_path / "killed") if "learn_rate" in line]
    assert after[:12] == before
    assert after[-1] < after[11] or schedule == "linear"


def test_epochs_end_the_decay_with_their_last_update(
    text: list[str], tmp_path: Path, run_tfm: RunTfm
) -> None:
    ends = ["--max-updates", "0", "--max-epochs", "3"]
    run = ["train", *text, *SMALL_RUN, *OFTEN, *ends, "--lr-warmup", "3"]
    usual = run_tfm([*run, "-o", str(tmp_path / "usual")])
    decayed = run_tfm([*run, "--schedule", "linear", "-o", str(tmp_path / "decayed")])

    assert usual.code == decayed.code == 0, decayed.err
    updates = [line["update"] for line in metrics(tmp_path / "usual") if "learn_rate" in line]
    rates = [line["learn_rate"] for line in metrics(tmp_path / "decayed") if "learn_rate" in line]
    assert len(rates) == len(updates)
    assert rates[-1] == pytest.approx(5e-3 / (len(rates) - 3 + 1))
    assert "(--max-epochs)" in decayed.err


# --- settings -----------------------------------------------------------------------------------


def ends(**training: Any) -> tuple[int, int]:
    training = {"schedule": "warmup-stable-decay", "max_time": "20m", **training}
    config = resolve(preset="base", flags={"training": training, "data": {"pairs": ("a.tsv",)}})
    return config.training.max_updates, config.training.max_epochs


def test_resumed_run_still_ends_by_time_if_its_preset_is_given_again() -> None:
    flags = {"training": {"schedule": "warmup-stable-decay", "max_time": "20m"}}
    text = {"data": {"pairs": ("a.tsv",)}}
    run = resolve(preset="base", flags={**flags, **text})

    again = resolve(preset="base", flags={**flags, **text}, resumed=run)
    more = resolve(preset="base", flags={"training": {"max_updates": 7}, **text}, resumed=run)

    assert (run.training.max_updates, again.training.max_updates) == (0, 0)
    assert again.training == run.training
    assert more.training.max_updates == 7


def test_time_is_the_end_of_a_decay_unless_another_one_is_given() -> None:
    assert ends() == (0, 0)
    assert ends(max_updates=500) == (500, 0)
    assert ends(max_epochs=2) == (100_000, 2)
    assert ends(schedule="cosine") == (100_000, 0)
    assert ends(max_time=None) == (100_000, 0)


@pytest.mark.parametrize(
    ("given", "name"),
    [("wsd", "warmup-stable-decay"), ("inverse_sqrt", "inverse-sqrt"), ("cosine", "cosine")],
)
def test_flag_accepts_other_spellings(given: str, name: str, run_tfm: RunTfm) -> None:
    result = run_tfm(["train", "--lr-scheduler", given, "--dump-config"])

    assert f'schedule = "{name}"' in result.out
