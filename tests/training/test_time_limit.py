import os
import signal
import time

import pytest

from tfm_cli.errors import OutOfTime
from tfm_cli.training.time_limit import GRACE_SECONDS, TimeLimit


def test_work_is_cut_off_when_time_and_grace_are_over() -> None:
    now = 100.0
    limit = TimeLimit("1m", began=40.5, clock=lambda: now)

    limit.check()
    now = 100.5 + GRACE_SECONDS - 0.1
    limit.check()
    now += 0.1
    with pytest.raises(OutOfTime, match=r"^1m passed \(--max-time\)$"):
        limit.check()


def test_without_a_limit_nothing_is_ever_cut_off() -> None:
    limit = TimeLimit("", began=0, clock=lambda: 1e12)

    with limit.alarm():
        limit.check()


def test_limit_of_ages_is_none() -> None:
    limit = TimeLimit("99999999999999999999h", began=time.monotonic())

    with limit.alarm():
        limit.check()


def test_alarm_ends_a_wait_that_nothing_else_would_end() -> None:
    read_end, write_end = os.pipe()
    limit = TimeLimit("1s", began=time.monotonic() - 1 - GRACE_SECONDS + 0.2)

    began = time.monotonic()
    with pytest.raises(OutOfTime, match="before the first update: 1s passed"), limit.alarm():
        os.read(read_end, 1)
    os.close(read_end)
    os.close(write_end)

    assert time.monotonic() - began < 5


def test_alarm_that_was_disarmed_does_not_ring() -> None:
    limit = TimeLimit("1s", began=time.monotonic() - 1 - GRACE_SECONDS + 0.1)

    with limit.alarm():
        limit.disarm()
        time.sleep(0.3)


def test_alarm_of_somebody_else_rings_in_its_time() -> None:
    rung: list[float] = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    before = signal.setitimer(signal.ITIMER_REAL, 0.4)
    began = time.monotonic()
    try:
        with TimeLimit("1h").alarm():
            time.sleep(0.1)
        time.sleep(0.5)
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, before[0])

    assert [0.3 < at - began < 0.8 for at in rung] == [True]
