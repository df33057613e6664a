"""Several processes at one work, as torchrun starts them; one alone is a world of 1.

The only file that imports `torch.distributed`. What processes tell each other goes through gloo, so
no files are shared, and the end of one is known to the others at once.
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from tfm_cli.errors import ConfigError, ResourceError

_START = timedelta(minutes=10)  # until all processes are there
_PATIENCE = timedelta(hours=12)  # for a window on a slow machine; whoever ends is noticed at once
_MOST_WAITING = 2  # messages that a process may be ahead of who receives them


class Parallel:
    """This process among all; a class because it holds connections and what is not yet sent.

    Args:
        rank: of this process, from 0.
        world: how many there are.
        local_rank: of this process on its machine, from 0.
    """

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.world = world
        self._local_rank = local_rank
        self._group: Any = None  # of torch.distributed
        self._waiting: deque[list[Any]] = deque()

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    @staticmethod
    def from_environment() -> "Parallel":
        """What a launcher says in RANK, WORLD_SIZE and LOCAL_RANK.

        Raises:
            ConfigError: they are no numbers, or do not fit.
        """
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return Parallel()
        rank, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
        local_rank = os.environ.get("LOCAL_RANK", "0")
        try:
            facts = Parallel(int(rank), int(world), int(local_rank))
        except ValueError:
            facts = Parallel(0, 0)
        if not 0 <= facts.rank < facts.world:
            told = f"`RANK={rank}`, `WORLD_SIZE={world}` and `LOCAL_RANK={local_rank}`"
            hint = "unset them, or start several processes by `torchrun`"
            raise ConfigError(f"the environment says {told}, which do not fit", hint=hint)
        return facts

    def device(self, name: str) -> str:
        """The device of this process, where each has its own and no one was named."""
        if self.world > 1 and name in ("auto", "cuda"):
            import torch

            if torch.cuda.is_available():
                return f"cuda:{self._local_rank % torch.cuda.device_count()}"
        return name

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Inside, the processes can talk; all must come to the end, or all fail."""
        if self.world == 1:
            yield
            return
        import torch.distributed as processes

        with self._told():
            processes.init_process_group("gloo", timeout=_START)
            self._group = processes.new_group(backend="gloo", timeout=_PATIENCE)
        try:
            yield
            with self._told():
                while self._waiting:
                    self._wait()
                processes.barrier(self._group)
        finally:
            with contextlib.suppress(RuntimeError):
                processes.destroy_process_group()

    def send(self, message: bytes) -> None:
        """Send some bytes, at least one, to rank 0; without waiting, unless it is far behind."""
        import torch
        import torch.distributed as processes

        content = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        with self._told(0):
            while len(self._waiting) >= _MOST_WAITING:
                self._wait()
            parts = [
                processes.isend(each, 0, group=self._group)
                for each in (torch.tensor([len(content)]), content)
            ]
            self._waiting.append(parts)

    def receive(self, rank: int) -> bytes:
        """The next message of another process."""
        import torch
        import torch.distributed as processes

        size = torch.zeros(1, dtype=torch.int64)
        with self._told(rank):
            processes.recv(size, rank, group=self._group)
            content = torch.empty(int(size), dtype=torch.uint8)
            processes.recv(content, rank, group=self._group)
        return content.numpy().tobytes()

    def shared(self, message: bytes) -> bytes:
        """The message of rank 0, on all of them."""
        if self.world == 1:
            return message
        import torch
        import torch.distributed as processes

        size = torch.tensor([len(message)])
        with self._told(0):
            processes.broadcast(size, 0, group=self._group)
            content = torch.zeros(int(size), dtype=torch.uint8)
            if self.is_main:
                content = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            processes.broadcast(content, 0, group=self._group)
        return content.numpy().tobytes()

    def _wait(self) -> None:
        for part in self._waiting.popleft():
            part.wait()

    @contextlib.contextmanager
    def _told(self, rank: int | None = None) -> Iterator[None]:
        """A lost connection becomes a ResourceError."""
        try:
            yield
        except RuntimeError as error:
            other = "another process" if rank is None or rank == self.rank else f"rank {rank}"
            told = f"rank {self.rank} of {self.world}: {other} ended before the work was done"
            raise ResourceError(told, hint="see what it said, and start the same again") from error
