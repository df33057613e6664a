import hashlib
import os
import signal
import time

import pytest

from tfm_cli.errors import OutOfTime
from tfm_cli.training import interruption as interruption_module
from tfm_cli.training.events import Stopped
from tfm_cli.training.interruption import interruption, record_signals, validation_check
from tfm_cli.training.state import TrainState
from tfm_cli.training.time_limit import TimeLimit


def test_no_reason_is_none() -> None:
    why = interruption(TrainState(), lambda: 0, max_time="", began=0, clock=lambda: 1e9)

    assert why() is None


@pytest.mark.parametrize("best", [None, 3.0])
def test_time_that_is_up_stops_after_an_update_at_least(best: float | None) -> None:
    state, now = TrainState(update=7, best_score=best), 100.0
    why = interruption(state, lambda: 0, max_time="1m", began=40.5, clock=lambda: now)

    before = why()
    now = 100.5
    without_update = why()
    state.update = 8
    stop = why()

    assert before is None
    assert without_update is None
    assert stop is not None
    assert stop.reason == "1m passed (--max-time)"
    assert not stop.is_complete
    assert stop.validate_first == (best is None)  # there should be some model


class Steps:
    """A run of updates of equal length that are followed by the question whether to stop."""

    def __init__(self, seconds: float, *, validation: float, best: float | None = 3.0) -> None:
        self.state, self.now = TrainState(best_score=best), 1010.0  # after ten seconds of reading
        self._seconds = seconds
        self._why = interruption(
            self.state, lambda: 0, max_time="2m", began=1000.0, clock=lambda: self.now,
            saving_seconds=lambda: 2.0, validation_seconds=lambda: validation,
        )  # fmt: skip

    def stop(self) -> Stopped:
        """Make updates until there is a reason to stop, and return it."""
        while not (stop := self._why()):
            self.state.update += 1
            self.now += self._seconds
        return stop


@pytest.mark.parametrize("seconds", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("validation", [0.5, 10.0, 40.0])
def test_last_validation_and_checkpoint_end_within_the_limit_and_not_long_before(
    seconds: float, validation: float
) -> None:
    steps = Steps(seconds, validation=validation)

    stop = steps.stop()

    assert stop.validate_first
    end = steps.now + validation + 2.0
    assert end <= 1120.0 + 1e-6
    assert end > 1120.0 - 2 * seconds - 0.2 * validation - 1e-6


@pytest.mark.parametrize(("validation", "best"), [(0.0, 3.0), (56.0, 3.0), (56.0, None)])
def test_validation_that_takes_most_of_the_time_is_not_waited_for(
    validation: float, best: float | None
) -> None:
    steps = Steps(1.0, validation=validation, best=best)

    stop = steps.stop()

    assert steps.now == 1118.0
    assert stop.validate_first == (best is None)  # there should be some model


@pytest.mark.parametrize("number", [0, signal.SIGTERM])
def test_validation_ends_at_a_signal_and_when_time_is_up(number: int) -> None:
    now = 0.0
    limit = TimeLimit("1m", began=0.0, clock=lambda: now)
    check = validation_check(limit, lambda: number)

    if number:
        with pytest.raises(OutOfTime, match="SIGTERM was received"):
            check()
    else:
        check()
    now = 65.0
    with pytest.raises(OutOfTime, match="1m passed"):
        check()


def test_signal_stops_at_once_without_judging() -> None:
    why = interruption(TrainState(), lambda: signal.SIGTERM, max_time="1s", began=0)

    stop = why()

    assert stop is not None
    assert stop.reason == "SIGTERM was received"
    assert not stop.is_complete
    assert not stop.validate_first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_is_remembered_and_the_second_is_left_to_the_system(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    with record_signals() as signalled:
        none_yet = signalled()
        signal.raise_signal(number)
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        result = signalled()

    assert none_yet == 0
    assert result == number
    assert handlers == (signal.SIG_DFL, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signal_that_is_ignored_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)

    with record_signals() as signalled:
        signal.raise_signal(number)
        result = signalled()
        handler = signal.getsignal(number)
    signal.signal(number, before)

    assert result == 0
    assert handler == signal.SIG_IGN


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("world_size", [1, 2])
def test_dropped_connection_is_told_twice_and_a_later_signal_ends(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption_module, "_SAME_SECONDS", 0.5)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with record_signals(world_size) as signalled:
                os.write(theirs, b"ready")
                while not signalled():
                    time.sleep(0.01)
                os.write(theirs, b"first")
                for _ in range(600):
                    time.sleep(0.1)
        finally:
            os._exit(99)

    os.read(ours, 5)
    os.kill(pid, signal.SIGHUP)
    os.read(ours, 5)
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.6)
    after_two = os.waitpid(pid, os.WNOHANG)[0]
    os.kill(pid, signal.SIGHUP)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(ours)
    os.close(theirs)

    assert after_two == 0
    assert code in (-signal.SIGHUP, 128 + signal.SIGHUP)  # a shell calls both 129


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_under_a_launcher_the_same_signal_comes_twice_and_a_later_one_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(interruption_module, "_SAME_SECONDS", 0.5)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with record_signals() as signalled:
                os.write(theirs, b"ready")
                while not signalled():
                    time.sleep(0.01)
                os.write(theirs, b"first")
                time.sleep(60)
        finally:
            os._exit(99)

    os.read(ours, 5)
    os.kill(pid, signal.SIGTERM)
    os.read(ours, 5)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.6)
    after_two = os.waitpid(pid, os.WNOHANG)[0]
    os.kill(pid, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(ours)
    os.close(theirs)

    assert after_two == 0
    assert code == 128 + signal.SIGTERM


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_second_signal_ends_a_process_that_waits_for_others_outside_of_python() -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with record_signals(world_size=2):
                os.write(theirs, b"ready")
                # For minutes, and no handler of a signal is heard.
                hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)
        finally:
            os._exit(99)

    os.read(ours, 5)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.1)
    after_one = os.waitpid(pid, os.WNOHANG)[0]
    os.kill(pid, signal.SIGINT)
    until = time.monotonic() + 30
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(ours)
    os.close(theirs)

    assert after_one == 0
    assert os.waitstatus_to_exitcode(ended[1]) == 128 + signal.SIGINT


def test_under_a_launcher_what_comes_after_the_end_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    with record_signals():
        pass
    untouched = {each: signal.getsignal(each) for each in before}
    with record_signals():
        signal.raise_signal(signal.SIGTERM)
    after = {each: signal.getsignal(each) for each in before}
    for each, handler in before.items():
        signal.signal(each, handler)

    assert untouched == before
    assert set(after.values()) == {signal.SIG_IGN}
