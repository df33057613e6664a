"""Traps for what tfm never does: run code out of a file, or open a connection.

Python tells an audit hook of both, whoever asks for it and however. The hook notes what was done,
and refuses it. It can also be put into a process that a test starts: see `environment`.
"""

import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

found: list[str] = []
_is_set = False

# An event, and the modules through which it comes about without a file or a network of others.
_CODE = {
    # A pickle that names a class or a function; one without is data.
    "pickle.find_class": ("torch._inductor", "torch._dynamo", "multiprocessing", "concurrent"),
    # Python's own files of compiled modules, and those that pytest made of plugins.
    "marshal.load": ("_pytest.assertion.rewrite",),
    "marshal.loads": (
        "importlib",
        "_frozen_importlib_external",
        "zipimport",
        "_pytest.assertion.rewrite",
    ),
}
# What processes that were forked off tell the one that started them: there is no file in between.
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
    """The names of the modules that are at work, the nearest first."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame.f_globals.get("__name__", "") or frame.f_code.co_filename
        frame = frame.f_back


def _is_here(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a connection stays on this machine."""
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
    if os.environ.get("TFM_TRAPS"):  # in a process of its own: nobody may overlook it
        os.write(2, f"trap: {message}\n".encode())
        os._exit(99)
    raise RuntimeError(f"trap: {message}")


def set_traps() -> None:
    """Set them in this process, for as long as it lives."""
    global _is_set
    if not _is_set:
        _is_set = True
        sys.addaudithook(_trap)


def environment(directory: str) -> dict[str, str]:
    """The environment in which any Python sets the traps as it starts.

    Args:
        directory: in which a file is written that Python imports then.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH120, PTH100 - as text
    with open(os.path.join(directory, "sitecustomize.py"), "w") as file:  # noqa: PTH123, PTH118 - as text
        file.write("from tests.traps import set_traps\nset_traps()\n")
    return {**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{root}", "TFM_TRAPS": "1"}
