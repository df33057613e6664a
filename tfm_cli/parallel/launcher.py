"""The launcher, torchrun, that started this process, and what it keeps over several starts."""

import logging
import os
import signal
import threading
import time
from typing import Any

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_SAVE_SECONDS = 4.0  # for the end that a signal asks for, once nobody is left to ask for it


def is_launched() -> bool:
    """Whether torchrun started this process, and not a script or a scheduler by other means."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def holds_store() -> bool:
    """Whether the launcher holds the store, and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def watch_launcher() -> None:
    """End this process when its launcher was killed: as SIGTERM does, and by force soon after.

    Nobody else would. Of any other end a launcher tells its processes.
    """
    if not is_launched():
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_LOOK_SECONDS)
        logger.warning("the launcher is gone")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SAVE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def store_of_all_starts(store: Any) -> Any:
    """The store without the name of this start in front, which torchrun gives each of them."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return store
