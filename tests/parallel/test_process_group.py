from pathlib import Path

import pytest
import torch

from tests.distributed import ranks
from tfm_cli.errors import ConfigError
from tfm_cli.parallel import Parallel, process_group

LAUNCHED = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def started(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Parallel:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Parallel.from_environment()


def test_one_process_alone_needs_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = started(monkeypatch)

    with alone.connected():
        assert alone.broadcast_bytes(b"text") == b"text"
        assert alone.all_gather_bytes(b"text") == [b"text"]
        assert alone.all_sum([0.5, 2]) == [0.5, 2.0]
        assert alone.all_max([True, 15]) == [1, 15]
        assert alone.gradient_group(torch.device("cpu")) is None
    assert (alone.rank, alone.world_size, alone.is_main) == (0, 1, True)


def test_rank_without_an_address_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(monkeypatch, RANK="1", WORLD_SIZE="4").world_size == 1


def test_launcher_sets_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    second = started(monkeypatch, RANK="1", WORLD_SIZE="4", LOCAL_RANK="0", **LAUNCHED)

    assert (second.rank, second.world_size, second.is_main) == (1, 4, False)


@pytest.mark.parametrize(
    ("rank", "world_size"), [("4", "4"), ("-1", "2"), ("0", "0"), ("x", "2"), ("0", "")]
)
def test_contradicting_numbers_are_refused(
    monkeypatch: pytest.MonkeyPatch, rank: str, world_size: str
) -> None:
    message = f"invalid environment: `RANK={rank}`, `WORLD_SIZE={world_size}` and `LOCAL_RANK=0`"
    with pytest.raises(ConfigError, match=message):
        started(monkeypatch, RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK="0", **LAUNCHED)


@pytest.mark.parametrize(
    ("gpus", "world_size", "name", "device"),
    [
        (2, 4, "auto", "cuda:1"), (2, 4, "cuda", "cuda:1"), (8, 4, "auto", "cuda:3"),
        (8, 4, "cuda:5", "cuda:5"), (8, 4, "cpu", "cpu"), (8, 1, "auto", "auto"),
        (0, 4, "auto", "auto"), (0, 4, "cuda", "cuda"),
    ],
)  # fmt: skip
def test_each_process_of_a_machine_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, gpus: int, world_size: int, name: str, device: str
) -> None:
    monkeypatch.setattr(process_group, "num_gpus", lambda: gpus)

    assert Parallel(3 if world_size > 1 else 0, world_size, 3).device(name) == device


def test_collective_operations_have_equal_results_on_all_ranks(tmp_path: Path) -> None:
    def talk(rank: int) -> None:
        parallel = Parallel.from_environment()
        with parallel.connected():
            messages = parallel.all_gather_bytes(b"x" * rank)  # of any length, none as well
            sums = parallel.all_sum([0.1, 10.0**rank])
            largest = parallel.all_max([-rank, rank, rank == 1])
            nothing = parallel.all_sum([])
            tensor = torch.full((2, 3), float(rank + 7))
            parallel.broadcast(tensor)
            shared = parallel.broadcast_bytes(f"of {rank}".encode())
        assert messages == [b"", b"x", b"xx"]
        assert sums == [0.1 + 0.1 + 0.1, 111.0]
        assert largest == [0, 2, 1]
        assert nothing == []
        assert tensor.tolist() == [[7.0] * 3] * 2
        assert shared == b"of 0"
        raise SystemExit(0)

    done = ranks.run(tmp_path, [], world_size=3, prepare=talk)

    assert [each.code for each in done] == [0] * 3, done


def test_gpu_that_two_processes_would_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    second = Parallel(1, 2, 1)

    with pytest.raises(ConfigError, match="cuda:0: local rank 1 needs a GPU of its own; "
                       "this machine has 1") as refused:  # fmt: skip
        second.gradient_group(torch.device("cuda:0"))

    assert str(refused.value.hint).startswith("start one process for each GPU, without `--device`")


def test_device_that_processes_cannot_share_work_on_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="mps: training on several processes is not supported there"
    ) as refused:
        Parallel(0, 2, 0).gradient_group(torch.device("mps"))

    assert refused.value.hint == "use `--device cpu`"
