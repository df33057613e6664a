"""The process group that torchrun starts; a single process is a group of one.

Ranks exchange messages by gloo instead of shared files, so all notice at once when one exits.
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tfm_cli.device import num_gpus
from tfm_cli.errors import ConfigError
from tfm_cli.parallel.heartbeat import DEFAULT_TIMEOUT_SECONDS, ProgressState
from tfm_cli.parallel.launcher import store_across_restarts, watch_launcher

if TYPE_CHECKING:
    import torch

# The timeout of gloo itself: long enough for a window of lines on a slow machine. The failure
# monitor reports a late rank much earlier.
_GLOO_TIMEOUT = timedelta(hours=12)
_MAX_UNSENT = 2  # messages that a sender may be ahead of the receiver


class Parallel:
    """A rank of a process group, with its connections and its unsent messages.

    Args:
        rank: the rank of this process, from 0.
        world_size: the number of processes.
        local_rank: the rank of this process on its machine, from 0.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._group: Any = None  # of torch.distributed
        self._gradient_group: Any = None  # for gradients and weights only
        self._unsent: deque[list[Any]] = deque()
        self._state = ProgressState()
        self._flags: Any = None  # a store
        self._timeout = timedelta(seconds=DEFAULT_TIMEOUT_SECONDS)

    @property
    def is_main(self) -> bool:
        """Return True on rank 0, which alone logs and writes files."""
        return self.rank == 0

    @staticmethod
    def from_environment() -> "Parallel":
        """Read RANK, WORLD_SIZE and LOCAL_RANK, which a launcher sets.

        Raises:
            ConfigError: they are not numbers, or contradict each other.
        """
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return Parallel()
        rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        local_rank = os.environ.get("LOCAL_RANK", "0")
        try:
            parallel = Parallel(int(rank), int(world_size), int(local_rank))
        except ValueError:
            parallel = Parallel(0, 0)
        if not 0 <= parallel.rank < parallel.world_size:
            raise ConfigError(
                f"invalid environment: `RANK={rank}`, `WORLD_SIZE={world_size}` and "
                f"`LOCAL_RANK={local_rank}`",
                hint="unset them, or start several processes by `torchrun`",
            )
        return parallel

    def device(self, name: str) -> str:
        """Return the name of this rank's device: a GPU of its own unless the user named one."""
        if self.world_size > 1 and name in ("auto", "cuda") and (count := num_gpus()):
            return f"cuda:{self.local_rank % count}"
        return name

    @contextlib.contextmanager
    def connected(self, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Iterator[None]:
        """Connect the ranks inside the block; all must reach its end, or all fail.

        If one fails, it reports the error, and the others raise ReportedElsewhere with its exit
        code.

        Args:
            timeout_seconds: time after which a rank is late that has not joined, has sent no
                heartbeat (as when it is suspended), or has not ended a step with a deadline.

        Raises:
            ResourceError: a rank exited without a message. A late rank is reported by another
                thread, which ends this process.
        """
        watch_launcher()
        if self.world_size == 1:
            yield
            return
        import torch.distributed as dist

        from tfm_cli.parallel.failure import (
            FailureMonitor,
            RankLostError,
            ignore_termination,
            is_lost_connection,
        )
        from tfm_cli.parallel.rendezvous import connect

        self._timeout = timedelta(seconds=timeout_seconds)
        store = connect(self.rank, self.world_size, timeout_seconds=timeout_seconds)
        with self._waiting():
            self._group = dist.new_group(backend="gloo", timeout=_GLOO_TIMEOUT)
        self._flags = store_across_restarts(store)
        monitor = FailureMonitor(store, self.rank, self.world_size, self._state, timeout_seconds)
        has_failed = False
        try:
            yield
            with self._waiting():
                while self._unsent:
                    self._wait_for_oldest()
                monitor.close()
                dist.barrier(self._group)
            ignore_termination()
        except BaseException as error:
            has_failed = True
            lost = RankLostError(self.rank, self.world_size) if is_lost_connection(error) else error
            published = monitor.publish(lost)
            if published is error:
                raise
            raise published from error
        finally:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
            if has_failed and self.is_main:
                monitor.wait_until_acknowledged()
            monitor.close()

    def set_activity(self, activity: str, *, has_deadline: bool = False) -> None:
        """Record the current activity, shown in errors about this rank.

        Args:
            activity: follows `rank 1 of 2, `, such as `in update 7`.
            has_deadline: this rank is late if the activity takes longer than the timeout.
        """
        self._state.set_activity(activity, has_deadline=has_deadline)

    def record_progress(self) -> None:
        """Record a step of the current activity."""
        self._state.num_steps += 1

    def set_flag(self, name: str) -> None:
        """Set a flag, which persists when the launcher restarts the processes after a failure."""
        if self._flags is not None:
            self._flags.set(f"tfm/{name}", "1")

    def has_flag(self, name: str) -> bool:
        """Return True if a process has set the flag, before or after a restart."""
        return self._flags is not None and bool(self._flags.check([f"tfm/{name}"]))

    def gradient_group(self, device: "torch.device") -> Any:
        """Return the process group for gradients on a device; None for a single process.

        Raises:
            ConfigError: processes would have to share a GPU, or the device is an Apple GPU.
        """
        if self.world_size == 1 or self._gradient_group is not None:
            return self._gradient_group
        import torch
        import torch.distributed as dist

        if device.type == "cuda":
            if device.index != self.local_rank:
                count = torch.cuda.device_count()
                raise ConfigError(
                    f"{device}: local rank {self.local_rank} needs a GPU of its own; "
                    f"this machine has {count}",
                    hint="start one process for each GPU, without `--device`, or use "
                    "`--device cpu`",
                )
            torch.cuda.set_device(device)
        elif device.type != "cpu":
            raise ConfigError(
                f"{device}: training on several processes is not supported there",
                hint="use `--device cpu`",
            )
        with self._waiting():
            # Late ranks were waited for in the first group.
            self._gradient_group = (
                dist.new_group(backend="nccl", timeout=self._timeout)
                if device.type == "cuda"
                else dist.new_group(backend="gloo", timeout=_GLOO_TIMEOUT)
            )
        return self._gradient_group

    def send(self, message: bytes) -> None:
        """Send a non-empty message to rank 0; block only if rank 0 is far behind."""
        import torch
        import torch.distributed as dist

        content = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        with self._waiting(0):
            while len(self._unsent) >= _MAX_UNSENT:
                self._wait_for_oldest()
            parts = [
                dist.isend(each, 0, group=self._group)
                for each in (torch.tensor([len(content)]), content)
            ]
            self._unsent.append(parts)

    def receive(self, rank: int) -> bytes:
        """Return the next message of another rank."""
        import torch
        import torch.distributed as dist

        size = torch.zeros(1, dtype=torch.int64)
        with self._waiting(rank):
            dist.recv(size, rank, group=self._group)
            content = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(content, rank, group=self._group)
        return content.numpy().tobytes()

    def broadcast_bytes(self, message: bytes) -> bytes:
        """Return the message of rank 0 on all ranks."""
        if self.world_size == 1:
            return message
        import torch
        import torch.distributed as dist

        size = torch.tensor([len(message)])
        with self._waiting(0):
            dist.broadcast(size, 0, group=self._group)
            content = torch.zeros(int(size), dtype=torch.uint8)
            if self.is_main:
                content = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            dist.broadcast(content, 0, group=self._group)
        return content.numpy().tobytes()

    def broadcast(self, tensor: "torch.Tensor") -> None:
        """Overwrite a CPU tensor with its values on rank 0."""
        if self.world_size > 1:
            import torch.distributed as dist

            with self._waiting(0):
                dist.broadcast(tensor, 0, group=self._group)

    def all_gather_bytes(self, message: bytes) -> list[bytes]:
        """Return the messages of all ranks, by rank, on all ranks."""
        if self.world_size == 1:
            return [message]
        import torch
        import torch.distributed as dist

        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        with self._waiting():
            dist.all_gather(lengths, torch.tensor([len(message)]), group=self._group)
            longest = max(int(length) for length in lengths)
            own = torch.zeros(longest, dtype=torch.uint8)
            if message:
                own[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            contents = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
            dist.all_gather(contents, own, group=self._group)
        return [
            content[: int(length)].numpy().tobytes()
            for content, length in zip(contents, lengths, strict=True)
        ]

    def all_sum(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each number over all ranks, in double precision."""
        return self._all_reduce(values, float, "SUM")

    def all_max(self, values: Sequence[int]) -> list[int]:
        """Return the maximum of each number over all ranks."""
        return self._all_reduce(values, int, "MAX")

    def _all_reduce(self, values: Sequence[Any], kind: type[Any], operation: str) -> list[Any]:
        if self.world_size == 1 or not values:
            return [kind(value) for value in values]
        import torch
        import torch.distributed as dist

        dtype = torch.float64 if kind is float else torch.int64
        numbers = torch.tensor([kind(value) for value in values], dtype=dtype)
        with self._waiting():
            dist.all_reduce(numbers, getattr(dist.ReduceOp, operation), group=self._group)
        return [kind(number) for number in numbers.tolist()]

    def _wait_for_oldest(self) -> None:
        for part in self._unsent.popleft():
            part.wait()

    @contextlib.contextmanager
    def _waiting(self, rank: int | None = None) -> Iterator[None]:
        """Record that this rank waits for another; convert a lost connection to a RankLostError."""
        self._state.is_waiting = True
        try:
            yield
            self._state.is_waiting = False
            self._state.num_steps += 1
        except RuntimeError as error:
            from tfm_cli.parallel.failure import RankLostError

            if rank is None or rank == self.rank:
                raise RankLostError(self.rank, self.world_size) from error
            raise RankLostError(self.rank, self.world_size, f"rank {rank}") from error
