"""Commands in processes of their own, forked off so that what they import is there already."""

import importlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from tests.conftest import Result
from tfm_cli.files.faults import reset_faults

# Every forked process would spend seconds to import these again.
for _name in (
    "numpy.random",
    "sacrebleu.metrics",
    "tfm_cli.training.run",
    "torch._dynamo",  # imported by every optimizer
    "torch.distributed.fsdp",
    "typer._adapters",  # imported by the command line, where a flag has several values
):
    importlib.import_module(_name)

PATIENCE = 120.0  # seconds, for a machine that has much else to do
Prepare = Callable[[], object]  # called in the process, before the command


def start(
    directory: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    prepare: Prepare = lambda: None,
) -> int:
    """Begin a command whose words go to `out` and `err` in a directory; returns its process."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in ("out", "err"):
        (directory / kind).write_bytes(b"")
    with warnings.catch_warnings():  # newer versions of Python warn of threads
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = _run(directory, list(arguments), environment or {}, prepare)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int, directory: Path, *, patience: float = PATIENCE) -> Result:
    """What became of it; the code is negative for a signal that ended it."""
    until = time.monotonic() + patience
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("still at work: " + (directory / "err").read_text())
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(found[1])
    out, err = ((directory / kind).read_text(encoding="utf-8") for kind in ("out", "err"))
    return Result(code, out, err)


def run(
    directory: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    prepare: Prepare = lambda: None,
) -> Result:
    """What becomes of a command."""
    return ended(start(directory, arguments, environment, prepare=prepare), directory)


def wait_for(condition: Callable[[], bool], *, patience: float = PATIENCE) -> None:
    """Wait until something holds."""
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def _run(
    directory: Path, arguments: list[str], environment: Mapping[str, str], prepare: Prepare
) -> int:
    from tfm_cli.cli import main

    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(directory / kind, os.O_WRONLY | os.O_TRUNC), number)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 - ends with it
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 - ends with it
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    torch.set_num_threads(1)
    os.environ.update(environment)
    reset_faults()
    sys.argv = ["tfm", *arguments]
    try:
        prepare()
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
