"""Faults happen when they are due, and only then."""

import errno
import signal
from collections.abc import Iterator

import pytest

from tfm_cli.errors import ConfigError
from tfm_cli.files.faults import VARIABLE, parse_faults, reach, reset_faults


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    reset_faults()
    yield
    reset_faults()


def ask(text: str, patch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in {VARIABLE: text, **environment}.items():
        patch.setenv(name, value)
    reset_faults()


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    assert [reach("write") for _ in range(5)] == [""] * 5


def test_points_are_counted_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    ask("write:2=short", monkeypatch)

    assert [reach("sync"), reach("write"), reach("sync")] == [""] * 3
    assert [reach("write"), reach("write")] == ["short", ""]


def test_plus_repeats_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    ask("write:2+=nan", monkeypatch)

    assert [reach("write") for _ in range(4)] == ["", "nan", "nan", "nan"]


@pytest.mark.parametrize("name", ["enospc", "edquot", "eio", "efbig"])
def test_errors_have_the_number_of_the_system(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(f"write:1={name}", monkeypatch)

    with pytest.raises(OSError, match=r"\[Errno") as raised:
        reach("write")

    assert raised.value.errno == getattr(errno, name.upper())


def test_lack_of_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ask("micro_batch:1=memory", monkeypatch)

    with pytest.raises(MemoryError, match="can't allocate memory"):
        reach("micro_batch")


@pytest.mark.parametrize("name", ["kill", "stop", "term"])
def test_signals_are_sent_to_this_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda process, number: sent.append(number))
    ask(f"update:1={name}", monkeypatch)

    reach("update")

    assert sent == [getattr(signal, f"SIG{name.upper()}")]


def test_faults_can_be_limited_to_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    ask("update:1@1=nan,update:1@0=short", monkeypatch, RANK="1")

    assert reach("update") == "nan"


def test_restarted_process_has_no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    ask("update:1=nan", monkeypatch, TORCHELASTIC_RESTART_COUNT="1")

    assert reach("update") == ""


@pytest.mark.parametrize("text", ["write", "write:0=kill", "write:1=burn", "write:1", ":1=kill"])
def test_misspelled_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected POINT:N=ACTION, got"):
        parse_faults(text)
