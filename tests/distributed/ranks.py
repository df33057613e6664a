"""Processes with the environment of torchrun, forked to start at once."""

import functools
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import forked
from tests.forked import PATIENCE

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
                raise AssertionError(f"still running: all but {self.codes}: {words}")
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
    world_size: int = 2,
    prepare: Prepare = lambda rank: None,
) -> Ranks:
    """Start processes that run a command together, or each its own one.

    Args:
        directory: receives the output of each.
        command: the arguments of `tfm`.
        world_size: the number of processes.
        prepare: called in each process with its rank before the command.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(world_size):
        environment = {
            "RANK": f"{rank}", "WORLD_SIZE": f"{world_size}", "LOCAL_RANK": f"{rank}",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}",
        }  # fmt: skip
        pids.append(
            forked.start(
                directory,
                command(rank) if callable(command) else command,
                environment,
                prepare=functools.partial(prepare, rank),
                prefix=f"{rank}.",
            )
        )
    return Ranks(pids, directory)


def run(
    directory: Path,
    command: Sequence[str] | Callable[[int], Sequence[str]],
    *,
    world_size: int = 2,
    prepare: Prepare = lambda rank: None,
) -> list[Ended]:
    """Run a command on several processes, and return their results; see `start`."""
    return start(directory, command, world_size=world_size, prepare=prepare).ended()
