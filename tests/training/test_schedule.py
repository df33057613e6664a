import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.config.presets import PRESETS
from tfm_cli.config.settings import RunConfig, TrainingConfig
from tfm_cli.errors import ConfigError
from tfm_cli.training.schedule import Schedule, check_has_end, plan_end, schedule_of
from tfm_cli.training.state import TrainState

widths = st.integers(2, 4096)
warmups = st.integers(1, 20_000)


def paper_rate(update: int, *, width: int, warmup: int) -> float:
    """Vaswani et al. 2017, equation 3."""
    return float(width**-0.5 * min(update**-0.5, update * warmup**-1.5))


@settings(deadline=None)
@given(width=widths, warmup=warmups, update=st.integers(1, 300_000))
def test_rate_equals_the_papers_formula_everywhere(width: int, warmup: int, update: int) -> None:
    result = Schedule(peak=width**-0.5 * warmup**-0.5, warmup=warmup).rate(update)

    # Powers and roots in double, in another order.
    assert result == pytest.approx(paper_rate(update, width=width, warmup=warmup), rel=1e-12)


@settings(deadline=None)
@given(warmup=warmups)
def test_the_peak_is_at_the_end_of_warmup_and_nowhere_else(warmup: int) -> None:
    assert Schedule(peak=0.3, warmup=warmup).rate(warmup) == 0.3
    assert Schedule(peak=0.3, warmup=warmup).rate(warmup + 1) < 0.3
    assert warmup == 1 or Schedule(peak=0.3, warmup=warmup).rate(warmup - 1) < 0.3


@settings(deadline=None)
@given(warmup=st.integers(100, 20_000))
def test_the_rate_is_continuous_where_rise_meets_fall(warmup: int) -> None:
    before, at, after = (
        Schedule(peak=1.0, warmup=warmup).rate(warmup + step) for step in (-1, 0, 1)
    )

    # The rise is 1 / warm-up an update, the fall begins with half of that.
    assert at - before == pytest.approx(1 / warmup, rel=1e-9)
    assert at - after == pytest.approx(0.5 / warmup, rel=0.01)


def test_the_rate_rises_then_falls() -> None:
    rates = [Schedule(peak=1.0, warmup=50).rate(update) for update in range(1, 400)]

    assert rates[:50] == sorted(rates[:50])
    assert rates[49:] == sorted(rates[49:], reverse=True)
    assert rates[0] == pytest.approx(1 / 50)
    assert rates[199] == pytest.approx(1 / 2)  # four times the warm-up: half the peak


@pytest.mark.parametrize(("preset", "width"), [("base", 512), ("big", 1024)])
def test_presets_of_the_paper_peak_at_the_papers_rate(preset: str, width: int) -> None:
    peak = PRESETS[preset]["training"]["learn_rate"]

    assert isinstance(peak, float)
    result = Schedule(peak=peak, warmup=TrainingConfig().lr_warmup).rate(4000)
    assert result == pytest.approx(width**-0.5 * 4000**-0.5, rel=1e-12)


# --- decays with an end -------------------------------------------------------------------------

DECAYS = ["linear", "cosine", "warmup-stable-decay"]


def rates(name: str, *, peak: float = 1.0, warmup: int, total: int, **more: Any) -> list[float]:
    """Return the rates of updates 1 to `total`."""
    config = TrainingConfig(
        schedule=name, learn_rate=peak, lr_warmup=warmup, max_updates=total, **more
    )
    schedule = schedule_of(config, TrainState())
    return [schedule.rate(update) for update in range(1, total + 1)]


def cosine_by_half_angle(done: float) -> float:
    """Return (1 + cos(pi x)) / 2 as cos(pi x / 2)**2."""
    return math.cos(math.pi * done / 2) ** 2


SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": cosine_by_half_angle,
    "warmup-stable-decay": lambda done: 1 - math.sqrt(done),
}


@pytest.mark.parametrize("name", DECAYS)
@settings(deadline=None, max_examples=30)
@given(warmup=st.integers(1, 40), more=st.integers(2, 400), ratio=st.floats(0.01, 0.99))
def test_decay_equals_its_formula_everywhere(
    name: str, warmup: int, more: int, ratio: float
) -> None:
    total = warmup + more
    start = warmup
    if name == "warmup-stable-decay":
        start = max(warmup, total - round(ratio * total))

    result = rates(name, peak=0.3, warmup=warmup, total=total, decay_ratio=ratio)

    num_decayed = total - start
    expected = [0.3 * update / warmup for update in range(1, warmup + 1)]
    expected += [0.3] * (start - warmup)
    # After the last update, the rate would be 0.
    expected += [0.3 * SHAPES[name](n / (num_decayed + 1)) for n in range(1, num_decayed + 1)]
    assert result == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize(("warmup", "total"), [(1, 2), (1, 1000), (50, 400), (399, 400)])
def test_rate_rises_to_the_peak_and_falls_to_a_little_more_than_0(
    name: str, warmup: int, total: int
) -> None:
    result = rates(name, warmup=warmup, total=total)

    assert result[:warmup] == sorted(result[:warmup])
    assert result[warmup - 1] == max(result) == 1.0
    assert result[warmup - 1 :] == sorted(result[warmup - 1 :], reverse=True)
    assert result[-1] > 0
    if total - warmup > 300:
        assert result[-1] < 0.01


def test_halfway_through_the_decay_the_rates_are_those_of_the_papers() -> None:
    # The decay has 99 updates, and would be at 0 in the 100th.
    assert rates("linear", warmup=1, total=100)[50] == pytest.approx(0.5)
    assert rates("cosine", warmup=1, total=100)[50] == pytest.approx(0.5)
    stable = rates("warmup-stable-decay", warmup=1, total=100, decay_ratio=0.5)
    assert stable[:50] == [1.0] * 50
    assert stable[75] == pytest.approx(1 - math.sqrt(26 / 51))


@pytest.mark.parametrize("name", ["inverse-sqrt", *DECAYS])
def test_run_that_ends_in_the_warmup_has_no_decay(name: str) -> None:
    assert rates(name, warmup=50, total=20) == [update / 50 for update in range(1, 21)]


@pytest.mark.parametrize("name", DECAYS)
def test_updates_after_the_planned_end_keep_the_last_rate(name: str) -> None:
    schedule = Schedule(name=name, peak=1.0, warmup=2, decay_start=4, last_update=9)

    assert schedule.rate(9) == schedule.rate(10) == schedule.rate(100) > 0


# --- the end ------------------------------------------------------------------------------------


def run_config(**training: Any) -> RunConfig:
    return RunConfig(training=TrainingConfig(**training))


def planned(state: TrainState, config: RunConfig, *, epochs: float = 0.0, batches: int = 1) -> int:
    plan_end(state, config, updates_per_epoch=50, epochs=epochs, batches=batches)
    return schedule_of(config.training, state).last_update


def test_end_by_epochs_is_the_end_of_their_updates() -> None:
    config = run_config(schedule="cosine", max_updates=0, max_epochs=3, lr_warmup=5)
    state = TrainState()

    assert planned(state, config) == 150
    assert (state.last_update, state.decay_start) == (150, 0)


@pytest.mark.parametrize(("updates", "expected"), [(149, 149), (151, 150)])
def test_end_is_by_updates_or_by_epochs_whichever_is_first(updates: int, expected: int) -> None:
    config = run_config(schedule="linear", max_updates=updates, max_epochs=3, lr_warmup=5)

    assert planned(TrainState(), config) == expected


def test_planned_end_stays_until_what_it_depends_on_changes() -> None:
    config = run_config(schedule="linear", max_updates=0, max_epochs=3, lr_warmup=5)
    state = TrainState()
    planned(state, config)
    state.update, state.batches_per_update = 60, 1

    # A resumed run has the recorded end, though the estimate of its updates is another.
    assert planned(state, config, epochs=1.5) == 150
    # Half as many updates an epoch, with twice as many batches: half of the epochs are left.
    assert planned(state, config, epochs=1.5, batches=2) == 60 + 75
    state.batches_per_update = 2
    assert planned(state, config, epochs=1.7, batches=2) == 60 + 75
    more = dataclasses.replace(config, training=dataclasses.replace(config.training, max_epochs=4))
    assert planned(state, more, epochs=1.5, batches=2) == 60 + 125


def test_end_by_epochs_is_planned_anew_with_batches_of_another_size() -> None:
    config = run_config(schedule="linear", max_updates=0, max_epochs=4, lr_warmup=5)
    state = TrainState(batch_tokens=100)

    assert planned(state, config) == 200
    state.update, state.batch_tokens = 40, 200
    plan_end(state, config, updates_per_epoch=25, epochs=0.8, batches=1)

    assert schedule_of(config.training, state).last_update == 40 + 80  # 3.2 epochs of 25


def test_end_by_time_gives_way_to_other_settings_for_good() -> None:
    config = run_config(schedule="warmup-stable-decay", max_updates=0, lr_warmup=5)
    state = TrainState()
    planned(state, config)
    state.update, state.decay_start, state.last_update = 60, 50, 70

    assert planned(state, config) == 70
    more = run_config(schedule="warmup-stable-decay", max_updates=100, lr_warmup=5)
    assert planned(state, more) == 100
    assert schedule_of(more.training, state).decay_start == 80


def test_default_schedule_plans_nothing() -> None:
    state = TrainState()

    plan_end(state, run_config(max_epochs=3), updates_per_epoch=50, epochs=0.0, batches=1)

    assert state == TrainState()


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("linear", "`--max-updates` or `--max-epochs`"),
        ("cosine", "`--max-updates` or `--max-epochs`"),
        ("warmup-stable-decay", "`--max-updates`, `--max-epochs` or `--max-time`"),
    ],
)
def test_decay_without_an_end_is_refused(name: str, flags: str) -> None:
    endless = TrainingConfig(schedule=name, max_updates=0)

    with pytest.raises(ConfigError, match="until the end of the run, and no end is given") as error:
        check_has_end(endless, TrainState())

    assert error.value.hint == f"give it with {flags}"
    check_has_end(TrainingConfig(schedule=name, max_updates=0, max_epochs=1), TrainState())
    check_has_end(TrainingConfig(schedule=name), TrainState())


def test_time_limit_is_an_end_for_warmup_stable_decay_only() -> None:
    limited: dict[str, Any] = {"max_updates": 0, "max_time": "20m"}

    check_has_end(TrainingConfig(schedule="warmup-stable-decay", **limited), TrainState())
    # In a resumed run whose decay has begun, the end is known.
    endless = TrainingConfig(schedule="warmup-stable-decay", max_updates=0)
    state = TrainState()
    planned(state, RunConfig(training=endless))
    with pytest.raises(ConfigError):
        check_has_end(endless, state)
    state.last_update = 9
    check_has_end(endless, state)
    check_has_end(TrainingConfig(max_updates=0), TrainState())
    with pytest.raises(ConfigError):
        check_has_end(TrainingConfig(schedule="linear", **limited), TrainState())
