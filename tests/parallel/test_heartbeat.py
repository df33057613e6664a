import time
from typing import Any

import pytest

from tests.parallel.notes import Notes
from tfm_cli.parallel.heartbeat import Heartbeat, ProgressState


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def hearts(*states: ProgressState, timeout_seconds: float = 10.0) -> list[Heartbeat]:
    notes: Any = Notes()
    return [
        Heartbeat(notes, rank, len(states), each, timeout_seconds)
        for rank, each in enumerate(states)
    ]


def test_each_rank_is_checked_by_another() -> None:
    assert [each.next_rank for each in hearts(*[ProgressState()] * 3)] == [1, 2, 0]


def test_silent_rank_is_late_after_the_timeout(clock: Clock) -> None:
    first, second = hearts(ProgressState(), ProgressState())
    said = []

    for _ in range(31):
        clock.now += 0.5
        if clock.now <= 105:
            second.beat()
        said.append(first.beat())

    assert said[:30] == [""] * 30
    assert said[30] == "rank 1 has sent no heartbeat for 10 s"


def test_silent_rank_is_named_before_one_that_waits_for_it(clock: Clock) -> None:
    states = [ProgressState() for _ in range(3)]
    for state in states:
        state.set_activity("in update 7", has_deadline=True)
    first, silent, last = hearts(*states)
    for heart in (first, silent, last):
        heart.beat()

    said = []
    for _ in range(30):
        clock.now += 0.5
        said += [last.beat(), first.beat()]

    result = [words for words in said if words]
    assert result[0] == "rank 1 has sent no heartbeat for 10 s"
    assert "rank 0 has made no progress for 10 s" in result  # should the other say nothing


def test_stalled_rank_is_late_only_in_a_step_with_a_deadline(clock: Clock) -> None:
    state = ProgressState()
    first, second = hearts(ProgressState(), state)

    def said(seconds: float) -> str:
        result = ""
        for _ in range(int(2 * seconds)):
            clock.now += 0.5
            second.beat()
            result = result or first.beat()
        return result

    state.set_activity("at the checkpoint after update 7", has_deadline=False)
    unbounded = said(60)
    state.set_activity("in update 8", has_deadline=True)
    soon = said(9)
    state.is_waiting = True  # for the others: then not it is late
    waiting = said(60)
    state.is_waiting = False
    late = said(12)

    assert (unbounded, soon, waiting) == ("", "", "")
    assert late == "rank 1 has made no progress for 10 s"


def test_finished_rank_may_be_silent(clock: Clock) -> None:
    first, second = hearts(ProgressState(), ProgressState())
    second.beat()
    second.finish()
    said = []

    for _ in range(60):
        clock.now += 0.5
        said.append(first.beat())

    assert set(said) == {""}


def test_rank_that_was_suspended_itself_starts_its_check_over(clock: Clock) -> None:
    first, second = hearts(ProgressState(), ProgressState())
    second.beat()
    first.beat()

    clock.now += 3600  # both were stopped, and this one wakes up first

    assert first.beat() == ""


def test_ranks_without_a_heartbeat_are_named(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = hearts(*[ProgressState()] * 3)
    for each in (first, second, third):
        each.beat()

    def third_goes_on(seconds: float) -> None:
        clock.now += seconds
        third.beat()

    monkeypatch.setattr(time, "sleep", third_goes_on)

    assert first.silent_ranks() == "rank 1"


def test_only_other_rank_is_always_named(clock: Clock) -> None:
    first, _ = hearts(ProgressState(), ProgressState())

    assert first.silent_ranks() == "rank 1"
