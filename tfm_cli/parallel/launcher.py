"""torchrun, the launcher of this process, and the store that it keeps across restarts."""

import logging
import os
import signal
import threading
import time
from typing import Any

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_SHUTDOWN_SECONDS = 4.0  # for the last checkpoint after SIGTERM, once the launcher is gone


def is_launched() -> bool:
    """Return True if torchrun started this process; False for a script or a scheduler."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launcher_holds_store() -> bool:
    """Return True if the launcher holds the store; False if rank 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def watch_launcher() -> None:
    """End this process if its launcher is killed: by SIGTERM, and by force some seconds later.

    A launcher that is killed cannot signal its processes, so they would continue.
    """
    if not is_launched():
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_POLL_SECONDS)
        logger.warning("the launcher is gone")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SHUTDOWN_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def store_across_restarts(store: Any) -> Any:
    """Return the store without the prefix that torchrun gives each restart."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return store
