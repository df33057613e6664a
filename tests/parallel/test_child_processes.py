import os
import threading

import pytest

from tfm_cli.errors import Interrupted
from tfm_cli.parallel.child_processes import SuspensionMonitor


def test_monitor_can_be_closed_after_a_signal_during_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(thread: threading.Thread) -> None:
        raise Interrupted("terminated", signal_number=15)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    watch = SuspensionMonitor("a process")

    with pytest.raises(Interrupted):
        watch.add(os.getpid())

    watch.close()
