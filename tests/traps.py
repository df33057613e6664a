"""An audit hook that refuses what tfm never does: run code from a file, or open a connection.

Python reports both to audit hooks, regardless of the caller. The hook records the event and raises
an error. It can also be installed in a process that a test starts: see `environment`.
"""

import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

found: list[str] = []
_is_set = False

# Events, with the modules that may cause them without a foreign file or network.
_CODE = {
    # A pickle that names a class or a function; other pickles are data.
    "pickle.find_class": ("torch._inductor", "torch._dynamo", "multiprocessing", "concurrent"),
    # Compiled modules of Python, and those that pytest makes of plugins.
    "marshal.load": ("_pytest.assertion.rewrite",),
    "marshal.loads": (
        "importlib",
        "_frozen_importlib_external",
        "zipimport",
        "_pytest.assertion.rewrite",
    ),
}
# Results that forked workers send to their parent process, without a file.
_OWN = ("pickle.find_class", "tfm_cli.translation.worker_pool")
_NETWORK = {
    "socket.connect": ("huggingface_hub", "httpx", "torch.distributed"),
    "socket.sendto": (),
    "socket.bind": ("torch.distributed", "multiprocessing"),
    "socket.getaddrinfo": ("huggingface_hub", "httpx", "torch.distributed"),
    "socket.gethostbyname": (),
}
_ALLOWED = _CODE | _NETWORK


def _callers() -> Iterator[str]:
    """Yield the names of the modules on the call stack, innermost first."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame.f_globals.get("__name__", "") or frame.f_code.co_filename
        frame = frame.f_back


def _is_here(event: str, arguments: tuple[Any, ...]) -> bool:
    """Return True if a connection stays on this machine."""
    if event in ("socket.connect", "socket.bind", "socket.sendto"):
        address = arguments[1]
        return not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost")
    if event == "socket.getaddrinfo":
        return arguments[0] in ("127.0.0.1", "::1", "localhost", None)
    return False


def _trap(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _ALLOWED:
        return
    callers = list(_callers())
    ours = next((name for name in callers if name.split(".")[0] == "tfm_cli"), None)
    if ours is None or _is_here(event, arguments) or (event, callers[0]) == _OWN:
        return
    if any(name.startswith(_ALLOWED[event]) for name in callers if _ALLOWED[event]):
        return
    message = f"{event} {arguments!r:.100} by {callers[0]} for {ours}"
    found.append(message)
    if os.environ.get("TFM_TRAPS"):  # in a process of its own, whose test would not see the list
        os.write(2, f"trap: {message}\n".encode())
        os._exit(99)
    raise RuntimeError(f"trap: {message}")


def set_traps() -> None:
    """Install the hook in this process, until it ends."""
    global _is_set
    if not _is_set:
        _is_set = True
        sys.addaudithook(_trap)


def environment(directory: str) -> dict[str, str]:
    """Return an environment in which Python installs the hook when it starts.

    Args:
        directory: receives a file that Python then imports.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH120, PTH100 - as text
    with open(os.path.join(directory, "sitecustomize.py"), "w") as file:  # noqa: PTH123, PTH118 - as text
        file.write("from tests.traps import set_traps\nset_traps()\n")
    return {**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{root}", "TFM_TRAPS": "1"}
