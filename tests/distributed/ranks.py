"""Processes with the environment of torchrun, forked to start at once."""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.forked import PATIENCE  # which imports what each of the processes needs

Prepare = Callable[[int], object]  # called in each process with its rank, before the command


@dataclass(frozen=True)
class Ended:
    """The exit code and the output of a process."""

    code: int  # as a shell has it: 128 + n for signal n
    out: str
    err: str


def codes(done: list[Ended]) -> list[int]:
    return [each.code for each in done]


def errors(done: list[Ended]) -> list[str]:
    """Return the error lines of all processes."""
    lines = [line for each in done for line in each.err.split("\n")]
    return [line for line in lines if line.startswith("error: ")]


@dataclass
class Ranks:
    """Running processes."""

    pids: list[int]
    directory: Path
    codes: dict[int, int] = field(default_factory=dict)  # of those that have ended, as in `Ended`

    def error_output(self, rank: int) -> str:
        """Return what a process has written to standard error so far."""
        return (self.directory / f"{rank}.err").read_text(encoding="utf-8")

    def wait_for(self, text: str, rank: int = 0) -> None:
        """Wait until a process has written a text to standard error."""
        until = time.monotonic() + PATIENCE
        while text not in self.error_output(rank):
            assert time.monotonic() < until, self.error_output(rank)
            time.sleep(0.02)

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one of them."""
        os.kill(self.pids[rank], number)

    def wait_for_end(self, expected: int) -> None:
        """Wait until a process has ended."""
        until = time.monotonic() + PATIENCE
        while expected not in self.codes:
            for rank, pid in enumerate(self.pids):
                if rank not in self.codes and (actual := os.waitpid(pid, os.WNOHANG))[0]:
                    code = os.waitstatus_to_exitcode(actual[1])
                    self.codes[rank] = 128 - code if code < 0 else code
            if time.monotonic() > until:
                for rank, pid in enumerate(self.pids):
                    if rank not in self.codes:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
                words = [self.error_output(rank) for rank in range(len(self.pids))]
                raise AssertionError(f"still at work: all but {self.codes}: {words}")
            time.sleep(0.01)

    def ended(self) -> list[Ended]:
        """Wait for all processes, and return the result of each, by rank."""
        for rank in range(len(self.pids)):
            self.wait_for_end(rank)
        return [
            Ended(
                self.codes[rank],
                (self.directory / f"{rank}.out").read_text(encoding="utf-8"),
                self.error_output(rank),
            )
            for rank in range(len(self.pids))
        ]


def start(
    directory: Path,
    command: Sequence[str] | Callable[[int], Sequence[str]],
    *,
    world: int = 2,
    prepare: Prepare = lambda rank: None,
) -> Ranks:
    """Start processes that run a command together, or each its own one.

    Args:
        directory: gets what they write to their streams.
        command: what follows `tfm`.
        world: how many processes.
        prepare: called in each of them before, as to patch something.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(world):
        for kind in ("out", "err"):
            (directory / f"{rank}.{kind}").write_bytes(b"")
        with warnings.catch_warnings():  # newer versions of Python warn of threads
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 99
            try:
                environment = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank}
                os.environ.update({name: str(value) for name, value in environment.items()})
                os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
                arguments = command(rank) if callable(command) else command
                code = _run(directory, rank, list(arguments), prepare)
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    return Ranks(pids, directory)


def run(
    directory: Path,
    command: Sequence[str] | Callable[[int], Sequence[str]],
    *,
    world: int = 2,
    prepare: Prepare = lambda rank: None,
) -> list[Ended]:
    """Run a command on several processes, and return their results; see `start`."""
    return start(directory, command, world=world, prepare=prepare).ended()


def _run(directory: Path, rank: int, arguments: list[str], prepare: Prepare) -> int:
    from tfm_cli.cli import main

    with _redirected(directory, rank):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        torch.set_num_threads(1)
        sys.argv = ["tfm", *arguments]
        try:
            prepare(rank)
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@contextlib.contextmanager
def _redirected(directory: Path, rank: int) -> Iterator[None]:
    for number, kind in ((1, "out"), (2, "err")):
        file = os.open(directory / f"{rank}.{kind}", os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, number)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 - ends with it
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 - ends with it
    yield
    sys.stdout.flush()
    sys.stderr.flush()
