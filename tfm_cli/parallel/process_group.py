"""Several processes at one work, as torchrun starts them; one alone is a world of 1.

What processes tell each other goes through gloo, so no files are shared, and the end of one is
known to the others at once.
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tfm_cli.device import num_gpus
from tfm_cli.errors import ConfigError
from tfm_cli.parallel.failure import (
    DEFAULT_PATIENCE,
    Ending,
    LostError,
    is_lost_connection,
    leave_signals_alone,
)
from tfm_cli.parallel.heartbeat import Whereabouts
from tfm_cli.parallel.launcher import store_of_all_starts, watch_launcher

if TYPE_CHECKING:
    import torch

_PATIENCE = timedelta(hours=12)  # for a window on a slow machine; who is late is noticed before
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
        self.local_rank = local_rank
        self._group: Any = None  # of torch.distributed
        self._gradient_group: Any = None  # … on which nothing but gradients and weights travel
        self._waiting: deque[list[Any]] = deque()
        self._here = Whereabouts()
        self._notes: Any = None  # a store
        self._patience = timedelta(seconds=DEFAULT_PATIENCE)

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
        if self.world > 1 and name in ("auto", "cuda") and (count := num_gpus()):
            return f"cuda:{self.local_rank % count}"
        return name

    @contextlib.contextmanager
    def connected(self, *, patience: float = DEFAULT_PATIENCE) -> Iterator[None]:
        """Inside, the processes can talk; all must come to the end, or all fail.

        Where one fails, it says why, and the others raise ToldElsewhere with its exit code.

        Args:
            patience: seconds until a process is late: one that does not come, that is silent, such
                as a stopped one, or that takes as long for what `at` says is bounded.

        Raises:
            ResourceError: a process ended without a word. One that is late is told, and ends this
                process, from another thread.
        """
        watch_launcher()
        if self.world == 1:
            yield
            return
        import torch.distributed as processes

        from tfm_cli.parallel.rendezvous import met

        self._patience = timedelta(seconds=patience)
        store = met(self.rank, self.world, patience=patience)
        with self._told():
            self._group = processes.new_group(backend="gloo", timeout=_PATIENCE)
        self._notes = store_of_all_starts(store)
        ending = Ending(store, self.rank, self.world, self._here, patience)
        failed = False
        try:
            yield
            with self._told():
                while self._waiting:
                    self._wait()
                ending.close()
                processes.barrier(self._group)
            leave_signals_alone()
        except BaseException as error:
            failed = True
            lost = LostError(self.rank, self.world) if is_lost_connection(error) else error
            shown = ending.early(lost)
            if shown is error:
                raise
            raise shown from error
        finally:
            with contextlib.suppress(RuntimeError):
                processes.destroy_process_group()
            if failed and self.is_main:
                ending.wait_until_heard()
            ending.close()

    def at(self, where: str, *, is_bounded: bool = False) -> None:
        """Say what this process does now, such as `in update 7`, for what the others say of it.

        Args:
            where: fits behind `rank 1 of 2, `.
            is_bounded: whether one that takes longer than the patience of the others is late.
        """
        self._here.at(where, is_bounded=is_bounded)

    def moved(self) -> None:
        """Say that what this process does goes on."""
        self._here.steps += 1

    def note(self, fact: str) -> None:
        """Let those that the launcher starts instead of these, after a failure, know of a fact."""
        if self._notes is not None:
            self._notes.set(f"tfm/{fact}", "1")

    def has_noted(self, fact: str) -> bool:
        """Whether a process that was started before this one, or with it, noted a fact."""
        return self._notes is not None and bool(self._notes.check([f"tfm/{fact}"]))

    def gradient_group(self, device: "torch.device") -> Any:
        """The processes as `torch.distributed` knows them, for tensors on a device; None if alone.

        Raises:
            ConfigError: the processes of a machine would have to share a GPU, or have Apple's.
        """
        if self.world == 1 or self._gradient_group is not None:
            return self._gradient_group
        import torch
        import torch.distributed as processes

        if device.type == "cuda":
            if device.index != self.local_rank:
                count = torch.cuda.device_count()
                raise ConfigError(
                    f"{device}: process {self.local_rank} of its machine, counted from 0, needs a "
                    f"GPU of its own; there are {count}",
                    hint="start one process for each GPU, without `--device`, or use "
                    "`--device cpu`",
                )
            torch.cuda.set_device(device)
        elif device.type != "cpu":
            raise ConfigError(
                f"{device}: several processes cannot train there", hint="use `--device cpu`"
            )
        with self._told():
            # Whoever is late was waited for on the other group already.
            self._gradient_group = (
                processes.new_group(backend="nccl", timeout=self._patience)
                if device.type == "cuda"
                else processes.new_group(backend="gloo", timeout=_PATIENCE)
            )
        return self._gradient_group

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

    def broadcast(self, tensor: "torch.Tensor") -> None:
        """Give a tensor, in the memory of a CPU, the values that it has on rank 0."""
        if self.world > 1:
            import torch.distributed as processes

            with self._told(0):
                processes.broadcast(tensor, 0, group=self._group)

    def gathered(self, message: bytes) -> list[bytes]:
        """The messages of all processes, by rank, on all of them."""
        if self.world == 1:
            return [message]
        import torch
        import torch.distributed as processes

        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with self._told():
            processes.all_gather(lengths, torch.tensor([len(message)]), group=self._group)
            longest = max(int(length) for length in lengths)
            own = torch.zeros(longest, dtype=torch.uint8)
            if message:
                own[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            contents = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
            processes.all_gather(contents, own, group=self._group)
        return [
            content[: int(length)].numpy().tobytes()
            for content, length in zip(contents, lengths, strict=True)
        ]

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in double."""
        return self._reduced(values, float, "SUM")

    def highest(self, values: Sequence[int]) -> list[int]:
        """The largest of each number that any process has."""
        return self._reduced(values, int, "MAX")

    def _reduced(self, values: Sequence[Any], kind: type[Any], operation: str) -> list[Any]:
        if self.world == 1 or not values:
            return [kind(value) for value in values]
        import torch
        import torch.distributed as processes

        dtype = torch.float64 if kind is float else torch.int64
        numbers = torch.tensor([kind(value) for value in values], dtype=dtype)
        with self._told():
            processes.all_reduce(numbers, getattr(processes.ReduceOp, operation), group=self._group)
        return [kind(number) for number in numbers.tolist()]

    def _wait(self) -> None:
        for part in self._waiting.popleft():
            part.wait()

    @contextlib.contextmanager
    def _told(self, rank: int | None = None) -> Iterator[None]:
        """Inside, the others are waited for; a lost connection becomes a ResourceError."""
        self._here.waits = True
        try:
            yield
            self._here.waits = False
            self._here.steps += 1
        except RuntimeError as error:
            if rank is None or rank == self.rank:
                raise LostError(self.rank, self.world) from error
            raise LostError(self.rank, self.world, f"rank {rank}") from error
