"""How processes find each other: by the address in the environment, at a store for their notes."""

import os
import secrets
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from tfm_cli.parallel.failure import LateError, LostError
from tfm_cli.parallel.launcher import holds_store

_LOOK_SECONDS = 0.02
_LAUNCHER_SECONDS = 20.0


def met(rank: int, world: int, *, patience: float) -> Any:
    """The store of all processes, fresh, once they are all there and can talk.

    Raises:
        ResourceError: some did not come in time, or ended.
    """
    import torch.distributed as processes

    limit, until = timedelta(seconds=patience), time.monotonic() + patience
    # A launcher opened its store before it started us: who finds none has lost it already.
    first = timedelta(seconds=min(patience, _LAUNCHER_SECONDS)) if holds_store() else limit

    def late(ranks: Iterable[int]) -> LateError:
        who = " and ".join(f"rank {each}" for each in sorted(ranks))
        return LateError(rank, world, f"{who} did not come within {patience:g} s")

    try:
        # It is documented, but not among the names that PyTorch lists.
        common = processes.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=rank == 0 and not holds_store(),
            timeout=first,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        raise (LostError(rank, world, "the launcher") if holds_store() else late({0})) from error
    common.set_timeout(limit)
    try:
        name = _agreed_name(common, rank, world, until, late)
        store = processes.distributed_c10d.PrefixStore(name, common)
        own = processes.distributed_c10d.PrefixStore("gloo", store)
        processes.init_process_group("gloo", store=own, rank=rank, world_size=world, timeout=limit)
    except RuntimeError as error:
        raise (late({0}) if time.monotonic() > until else LostError(rank, world)) from error
    return store


def _agreed_name(
    store: Any, rank: int, world: int, until: float, late: Callable[[Iterable[int]], LateError]
) -> str:
    """A name for the notes of these processes, which no others had before them.

    A launcher keeps its store when it starts processes again: what those before have noted there,
    such as that all is over, is still to be read. So each says a number that is new, and what rank
    0 says with this number is meant for it.
    """
    if rank > 0:
        number = secrets.token_hex(8)
        store.set(f"tfm/hello/{rank}", number)
        while time.monotonic() < until:
            answer = _noted(store, f"tfm/welcome/{rank}")
            if answer.startswith(number):
                name = answer.removeprefix(number)
                store.set(f"tfm/here/{rank}", name)
                return name
            time.sleep(_LOOK_SECONDS)
        raise late({0})
    name = secrets.token_hex(8)
    missing = set(range(1, world))
    while missing and time.monotonic() < until:
        for each in missing:
            store.set(f"tfm/welcome/{each}", _noted(store, f"tfm/hello/{each}") + name)
        missing = {each for each in missing if _noted(store, f"tfm/here/{each}") != name}
        time.sleep(_LOOK_SECONDS)
    if missing:
        raise late(missing)
    return name


def _noted(store: Any, key: str) -> str:
    return str(store.get(key).decode()) if store.check([key]) else ""
