"""Rendezvous: processes find each other by the address in the environment and share a store."""

import os
import secrets
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from tfm_cli.parallel.failure import RankLostError, RankTimeoutError
from tfm_cli.parallel.launcher import launcher_holds_store

_POLL_SECONDS = 0.02
_LAUNCHER_SECONDS = 20.0


def connect(rank: int, world_size: int, *, timeout_seconds: float) -> Any:
    """Initialize the process group, and return a store that only its processes use.

    Raises:
        RankTimeoutError: some ranks did not join in time.
        RankLostError: a rank or the launcher has ended.
    """
    import torch.distributed as dist

    timeout = timedelta(seconds=timeout_seconds)
    deadline = time.monotonic() + timeout_seconds
    # A launcher opens its store before it starts its processes: if there is none, it is gone.
    first_timeout = (
        timedelta(seconds=min(timeout_seconds, _LAUNCHER_SECONDS))
        if launcher_holds_store()
        else timeout
    )

    def late(ranks: Iterable[int]) -> RankTimeoutError:
        names = " and ".join(f"rank {each}" for each in sorted(ranks))
        return RankTimeoutError(
            rank, world_size, f"{names} did not join within {timeout_seconds:g} s"
        )

    try:
        # TCPStore is documented, but missing from the names that PyTorch exports.
        common = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=rank == 0 and not launcher_holds_store(),
            timeout=first_timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        if launcher_holds_store():
            raise RankLostError(rank, world_size, "the launcher") from error
        raise late({0}) from error
    common.set_timeout(timeout)
    try:
        name = _agree_on_name(common, rank, world_size, deadline, late)
        store = dist.distributed_c10d.PrefixStore(name, common)
        gloo = dist.distributed_c10d.PrefixStore("gloo", store)
        dist.init_process_group(
            "gloo", store=gloo, rank=rank, world_size=world_size, timeout=timeout
        )
    except RuntimeError as error:
        raise (
            late({0}) if time.monotonic() > deadline else RankLostError(rank, world_size)
        ) from error
    return store


def _agree_on_name(
    store: Any,
    rank: int,
    world_size: int,
    deadline: float,
    late: Callable[[Iterable[int]], RankTimeoutError],
) -> str:
    """Return a prefix for the keys of these processes that no earlier ones have used.

    A launcher keeps its store when it restarts processes, so the keys of the earlier ones, such as
    their exit code, can still be read. Each rank therefore publishes a new random number, and
    an answer of rank 0 counts only if it repeats this number.
    """
    if rank > 0:
        number = secrets.token_hex(8)
        store.set(f"tfm/hello/{rank}", number)
        while time.monotonic() < deadline:
            answer = _value(store, f"tfm/welcome/{rank}")
            if answer.startswith(number):
                name = answer.removeprefix(number)
                store.set(f"tfm/here/{rank}", name)
                return name
            time.sleep(_POLL_SECONDS)
        raise late({0})
    name = secrets.token_hex(8)
    missing = set(range(1, world_size))
    while missing and time.monotonic() < deadline:
        for each in missing:
            store.set(f"tfm/welcome/{each}", _value(store, f"tfm/hello/{each}") + name)
        missing = {each for each in missing if _value(store, f"tfm/here/{each}") != name}
        time.sleep(_POLL_SECONDS)
    if missing:
        raise late(missing)
    return name


def _value(store: Any, key: str) -> str:
    return str(store.get(key).decode()) if store.check([key]) else ""
