import time
from typing import Any

import pytest

from tests.parallel.notes import Notes
from tfm_cli.parallel.heartbeat import Heart, Whereabouts


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def hearts(*places: Whereabouts, patience: float = 10.0) -> list[Heart]:
    notes: Any = Notes()
    return [Heart(notes, rank, len(places), each, patience) for rank, each in enumerate(places)]


def test_each_process_is_listened_to_by_another() -> None:
    assert [each.next_rank for each in hearts(*[Whereabouts()] * 3)] == [1, 2, 0]


def test_silent_process_is_late_when_patience_ends(clock: Clock) -> None:
    first, second = hearts(Whereabouts(), Whereabouts())
    said = []

    for _ in range(31):
        clock.now += 0.5
        if clock.now <= 105:
            second.beat()
        said.append(first.beat())

    assert said[:30] == [""] * 30
    assert said[30] == "rank 1 was not heard of for 10 s"


def test_silent_process_is_named_before_one_that_waits_for_it(clock: Clock) -> None:
    places = [Whereabouts() for _ in range(3)]
    for place in places:
        place.at("in update 7", is_bounded=True)
    first, silent, last = hearts(*places)
    for heart in (first, silent, last):
        heart.beat()

    said = []
    for _ in range(30):
        clock.now += 0.5
        said += [last.beat(), first.beat()]

    found = [words for words in said if words]
    assert found[0] == "rank 1 was not heard of for 10 s"
    assert "rank 0 got no further for 10 s" in found  # should the other say nothing


def test_process_that_gets_no_further_is_late_only_where_it_has_so_long(clock: Clock) -> None:
    place = Whereabouts()
    first, second = hearts(Whereabouts(), place)

    def said(seconds: float) -> str:
        found = ""
        for _ in range(int(2 * seconds)):
            clock.now += 0.5
            second.beat()
            found = found or first.beat()
        return found

    place.at("at the checkpoint after update 7", is_bounded=False)
    unbounded = said(60)
    place.at("in update 8", is_bounded=True)
    soon = said(9)
    place.waits = True  # for the others: then not it is late
    waiting = said(60)
    place.waits = False
    late = said(12)

    assert (unbounded, soon, waiting) == ("", "", "")
    assert late == "rank 1 got no further for 10 s"


def test_process_that_has_done_its_part_may_be_silent(clock: Clock) -> None:
    first, second = hearts(Whereabouts(), Whereabouts())
    second.beat()
    second.rest()
    said = []

    for _ in range(60):
        clock.now += 0.5
        said.append(first.beat())

    assert set(said) == {""}


def test_process_that_was_stopped_itself_begins_to_listen_anew(clock: Clock) -> None:
    first, second = hearts(Whereabouts(), Whereabouts())
    second.beat()
    first.beat()

    clock.now += 3600  # both were stopped, and this one wakes up first

    assert first.beat() == ""


def test_those_that_ceased_to_beat_are_named(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = hearts(*[Whereabouts()] * 3)
    for each in (first, second, third):
        each.beat()

    def third_goes_on(seconds: float) -> None:
        clock.now += seconds
        third.beat()

    monkeypatch.setattr(time, "sleep", third_goes_on)

    assert first.silent() == "rank 1"


def test_only_other_process_is_named_whatever_it_said(clock: Clock) -> None:
    first, _ = hearts(Whereabouts(), Whereabouts())

    assert first.silent() == "rank 1"
