import pytest
import torch

from tfm_cli.errors import ConfigError
from tfm_cli.parallel import Parallel

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
        assert alone.shared(b"text") == b"text"
    assert (alone.rank, alone.world, alone.is_main) == (0, 1, True)


def test_numbers_without_an_address_are_not_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(monkeypatch, RANK="1", WORLD_SIZE="4").world == 1


def test_launcher_says_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    second = started(monkeypatch, RANK="1", WORLD_SIZE="4", LOCAL_RANK="0", **LAUNCHED)

    assert (second.rank, second.world, second.is_main) == (1, 4, False)


@pytest.mark.parametrize(
    ("rank", "world"), [("4", "4"), ("-1", "2"), ("0", "0"), ("x", "2"), ("0", "")]
)
def test_numbers_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, rank: str, world: str
) -> None:
    told = f"says `RANK={rank}`, `WORLD_SIZE={world}` and `LOCAL_RANK=0`, which do not fit"
    with pytest.raises(ConfigError, match=told):
        started(monkeypatch, RANK=rank, WORLD_SIZE=world, LOCAL_RANK="0", **LAUNCHED)


@pytest.mark.parametrize(
    ("gpus", "world", "name", "device"),
    [
        (2, 4, "auto", "cuda:1"), (2, 4, "cuda", "cuda:1"), (8, 4, "auto", "cuda:3"),
        (8, 4, "cuda:5", "cuda:5"), (8, 4, "cpu", "cpu"), (8, 1, "auto", "auto"),
        (0, 4, "auto", "auto"), (0, 4, "cuda", "cuda"),
    ],
)  # fmt: skip
def test_each_process_of_a_machine_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, gpus: int, world: int, name: str, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    assert Parallel(3 if world > 1 else 0, world, 3).device(name) == device
