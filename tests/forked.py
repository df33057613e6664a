"""Commands in forked processes, which start at once since all imports are done before."""

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

PATIENCE = 120.0  # seconds, for a busy machine
Prepare = Callable[[], object]  # called in the process, before the command


def start(
    directory: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    prepare: Prepare = lambda: None,
    prefix: str = "",
) -> int:
    """Start a command in a forked process and return its PID.

    Args:
        directory: is created; receives the output in the files `out` and `err`.
        arguments: of `tfm`.
        environment: variables to set.
        prepare: called in the process before the command, for example to patch something.
        prefix: of the names of the two files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    streams = directory / f"{prefix}out", directory / f"{prefix}err"
    for path in streams:
        path.write_bytes(b"")
    with warnings.catch_warnings():  # newer versions of Python warn of threads
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = _run(streams, list(arguments), environment or {}, prepare)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int, directory: Path, *, patience: float = PATIENCE) -> Result:
    """Wait for a process, and return its result; the code is negative for a signal."""
    until = time.monotonic() + patience
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("still running: " + (directory / "err").read_text())
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
    """Run a command in a forked process, and return its result; see `start`."""
    return ended(start(directory, arguments, environment, prepare=prepare), directory)


def wait_for(condition: Callable[[], bool], *, patience: float = PATIENCE) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def _run(
    streams: tuple[Path, Path],
    arguments: list[str],
    environment: Mapping[str, str],
    prepare: Prepare,
) -> int:
    from tfm_cli.cli import main

    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_TRUNC), number)
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
