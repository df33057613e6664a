"""The number of worker processes by request, device and machine."""

import os
import sys

import pytest

from tfm_cli.errors import ConfigError, ResourceError
from tfm_cli.translation import worker_pool as module
from tfm_cli.translation.worker_pool import num_workers


@pytest.mark.parametrize(
    ("asked", "device", "count"),
    [
        (0, "cpu", 6), (0, "cuda", 1), (0, "mps", 1), (1, "cpu", 1), (1, "cuda", 1),
        (3, "cpu", 3), (40, "cpu", 40),
    ],
)  # fmt: skip
def test_number_of_workers_follows_the_machine_unless_requested(
    monkeypatch: pytest.MonkeyPatch, asked: int, device: str, count: int
) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 6)

    assert num_workers(asked, device=device) == count


def test_default_number_of_workers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 128)

    assert num_workers(0, device="cpu") == 16


def test_workers_on_another_device_are_refused() -> None:
    message = "^`--workers 2` is for a CPU, and the device is cuda$"

    with pytest.raises(ConfigError, match=message) as caught:
        num_workers(2, device="cuda")

    assert caught.value.hint == "leave it out, or use `--device cpu`"


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_system_that_cannot_share_a_model_has_one_process(
    monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    if platform == "win32":
        monkeypatch.delattr(os, "fork")

    assert num_workers(0, device="cpu") == 1
    assert num_workers(1, device="cpu") == 1
    message = "^`--workers 2`: this system cannot share a model among processes$"
    with pytest.raises(ResourceError, match=message) as caught:
        num_workers(2, device="cpu")
    assert caught.value.hint == "leave it out"
