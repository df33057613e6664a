import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.distributed.torchrun import gone_after
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.launcher import is_launched, launcher_holds_store, watch_launcher


def child(work: Callable[[], object]) -> int:
    """Fork a process that does some work and then waits; return its PID."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            time.sleep(60)
        finally:
            os._exit(99)
    return pid


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("launched", [True, False])
def test_process_ends_with_the_launcher_but_not_with_a_script(
    launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    ours, theirs = os.pipe()

    def rank() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        watch_launcher()
        os.write(theirs, b"%d\n" % os.getpid())

    launcher = child(lambda: child(rank))
    pid = int(os.read(ours, 20))
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)

    gone = gone_after(pid, 3.0 if launched else 0.5)
    if not gone:
        os.kill(pid, signal.SIGKILL)
    os.close(ours)
    os.close(theirs)

    assert is_launched() == launched
    assert gone == launched


def test_environment_decides_on_the_holder_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    alone = launcher_holds_store()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    assert not alone
    assert launcher_holds_store()


def test_single_process_has_no_flags() -> None:
    alone = Parallel()

    alone.set_flag("begun")

    assert not alone.has_flag("begun")
