import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.distributed import ranks
from tests.tiers import representative
from tfm_cli.errors import ResourceError
from tfm_cli.parallel import Parallel, rendezvous


def test_keys_of_earlier_processes_in_the_store_of_the_launcher_are_not_read(
    tmp_path: Path,
) -> None:
    """torchrun keeps its store when it restarts the processes."""
    store = dist.TCPStore(  # type: ignore[attr-defined]  # not among the names it lists
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )

    def meet(start: int) -> ranks.Prepare:
        def prepare(rank: int) -> None:
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
            os.environ["MASTER_PORT"] = str(store.port)
            parallel = Parallel.from_environment()
            with parallel.connected():
                known = parallel.has_flag("begun")
                messages = parallel.all_gather_bytes(f"{start}.{rank}".encode())
                parallel.set_flag("begun")
                if start == 1:  # all of them note that all is over
                    raise ResourceError("memory ran out")
            assert known == (start > 1)
            assert messages == [f"{start}.{each}".encode() for each in range(2)]
            raise SystemExit(0)

        return prepare

    first = ranks.run(tmp_path, [], prepare=meet(1))
    second = ranks.run(tmp_path, [], prepare=meet(2))
    third = ranks.run(tmp_path, [], prepare=meet(3))

    assert [each.code for each in second] == [each.code for each in third] == [0, 0], second
    assert [each.code for each in first] == [99, 99]  # an error that nobody turns into a code


@pytest.mark.slow
@representative("missing", [0, 1])
def test_rank_that_does_not_join_is_named(missing: int, tmp_path: Path) -> None:
    def meet(rank: int) -> None:
        if rank == missing:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(ResourceError) as refused, \
             Parallel.from_environment().connected(timeout_seconds=1):  # fmt: skip
            pass
        assert str(refused.value) == f"rank {rank} of 2: rank {missing} did not join within 1 s"
        raise SystemExit(0)

    done = ranks.run(tmp_path, [], prepare=meet)

    assert done[1 - missing].code == 0, done


@pytest.mark.slow
def test_rendezvous_does_not_wait_for_a_launcher_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(rendezvous, "_LAUNCHER_SECONDS", 0.5)

    def meet(rank: int) -> None:
        with Parallel.from_environment().connected():
            pass

    done = ranks.run(tmp_path, [], prepare=meet)

    assert [each.code for each in done] == [99, 99]
