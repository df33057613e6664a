import signal
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.parallel.notes import Notes
from tfm_cli.errors import ConfigError, DataError, Interrupted, ReportedElsewhere
from tfm_cli.parallel import Parallel, heartbeat
from tfm_cli.parallel.failure import FailureMonitor, RankLostError, is_lost_connection


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("no such file"), 3), (Interrupted("stopped", signal_number=15), 143),
        (KeyboardInterrupt(), 130), (ValueError("a bug"), 70), (BrokenPipeError(), 0),
    ],
)  # fmt: skip
def test_first_failure_is_reported_and_the_others_exit_with_its_code(
    error: BaseException, code: int
) -> None:
    store = Notes()
    first, second = FailureMonitor(store, 0, 2), FailureMonitor(store, 1, 2)

    said = first.publish(error)
    silent = second.publish(RankLostError(1, 2))
    first.wait_until_acknowledged()
    second.close()

    assert said is error
    assert isinstance(silent, ReportedElsewhere)
    assert silent.exit_code == code


def test_reason_that_all_ranks_share_is_left_to_rank_0_however_late_it_is() -> None:
    store = Notes()
    first, second = FailureMonitor(store, 0, 2), FailureMonitor(store, 1, 2)
    stopped = Interrupted("stopped after update 7", signal_number=15)
    elsewhere = ReportedElsewhere("stopped", exit_code=143)

    silent = second.publish(elsewhere)
    second.close()
    said = first.publish(stopped)

    assert silent is elsewhere
    assert said is stopped


def test_error_of_another_rank_than_0_names_it() -> None:
    second = FailureMonitor(Notes(), 1, 2)

    said = second.publish(DataError("x.en: does not exist", hint="make it"))

    assert str(said) == "rank 1 of 2: x.en: does not exist"
    assert getattr(said, "hint", "") == "make it"


def test_silent_exit_is_reported_by_another_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.01)
    alone = FailureMonitor(Notes(), 2, 3)

    said = alone.publish(RankLostError(2, 3, "rank 0"))

    assert str(said) == "rank 2 of 3: rank 0 exited before the work was done"


def test_without_the_store_each_rank_reports_its_own_error() -> None:
    class Gone(Notes):
        def check(self, names: list[str]) -> bool:
            raise RuntimeError("connection reset")

        def add(self, name: str, amount: int) -> int:
            raise RuntimeError("connection reset")

    error = DataError("torn")

    assert FailureMonitor(Gone(), 0, 2).publish(error) is error


def test_signal_of_the_launcher_is_ignored_after_a_failure() -> None:
    FailureMonitor(Notes(), 0, 2).publish(ConfigError("wrong"))

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[/x/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed"), 1),
        (RuntimeError("NCCL error in: x.cpp:1, remote process exited"), 1),
        (RuntimeError("shapes do not match"), 0),
        (ValueError("/gloo/"), 0),
    ],
)
def test_lost_connection_is_distinguished_from_other_errors(error: Exception, is_lost: int) -> None:
    assert is_lost_connection(error) == bool(is_lost)


def test_error_of_one_rank_ends_all(tmp_path: Path) -> None:
    def fail(rank: int) -> None:
        parallel = Parallel.from_environment()
        try:
            with parallel.connected():
                if rank == 1:
                    raise DataError("torn")
                parallel.broadcast_bytes(b"") if rank == 0 else None
                parallel.all_gather_bytes(b"")
        except DataError as error:
            raise SystemExit(1 if str(error) == "rank 1 of 3: torn" else 2) from error
        except ReportedElsewhere as error:
            raise SystemExit(10 + error.exit_code) from error

    done = ranks.run(tmp_path, [], world_size=3, prepare=fail)

    assert [each.code for each in done] == [13, 1, 13], done
