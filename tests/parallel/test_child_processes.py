import os
import threading

import pytest

from tfm_cli.errors import Interrupted
from tfm_cli.parallel.child_processes import SuspensionMonitor


def test_signal_amid_the_start_leaves_a_watch_that_can_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(thread: threading.Thread) -> None:
        raise Interrupted("terminated", signal_number=15)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    watch = SuspensionMonitor("a process")

    with pytest.raises(Interrupted):
        watch.add(os.getpid())

    watch.close()
