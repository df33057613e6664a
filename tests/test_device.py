import ctypes
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tfm_cli import device as module
from tfm_cli.device import Device, decoding_precision, resolve_device
from tfm_cli.errors import ConfigError, ResourceError


def pretend(
    patch: pytest.MonkeyPatch, *, gpus: int = 0, mps: bool = False, build: str = "cuda"
) -> None:
    """Let the machine have GPUs, and PyTorch be built for them or not."""
    patch.setattr(module, "driver_gpus", lambda: gpus)
    patch.setattr(module, "torch_build", lambda: build)
    patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    patch.setattr(torch.cuda, "device_count", lambda: gpus)
    patch.setattr(module, "has_mps", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "mps", "expected"), [(0, False, "cpu"), (2, True, "cuda"), (0, True, "mps")]
)
def test_auto_takes_the_best_there_is(
    gpus: int, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, gpus=gpus, mps=mps)

    assert resolve_device("auto") == Device(expected)


def test_device_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=2, mps=True)

    assert resolve_device("cpu") == Device("cpu")
    assert resolve_device("cuda:1") == Device("cuda", 1)
    assert resolve_device("mps") == Device("mps")


@pytest.mark.parametrize(
    "name", ["gpu", "", "cuda:-1", "meta", "xpu", "cpu,cuda", "cpu:0", "mps:1", "cuda:"]
)
def test_name_of_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown device `{name}`, expected auto, cpu, cuda"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("name", "gpus", "seen"),
    [("cuda", 0, "cpu"), ("cuda:1", 1, "cpu, cuda:0"), ("mps", 1, "cpu, cuda:0")],
)
def test_device_that_the_machine_lacks_is_refused_with_what_it_has(
    name: str, gpus: int, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, gpus=gpus)

    with pytest.raises(ResourceError) as caught:
        resolve_device(name)

    assert str(caught.value) == f"there is no device `{name}`; this machine has {seen}"
    assert "--device auto" in str(caught.value.hint)


# --- precision of translating --------------------------------------------------------------------

CPU, GPU = Device("cpu"), Device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "device", "fast", "expected"),
    [
        ("auto", CPU, True, "fp32"),
        ("auto", CPU, False, "fp32"),
        ("auto", GPU, True, "bf16"),
        ("auto", GPU, False, "fp32"),
        ("fp32", CPU, True, "fp32"),
        ("fp32", GPU, True, "fp32"),
        ("bf16", CPU, True, "bf16"),
        ("bf16", GPU, True, "bf16"),
        ("fp16", GPU, True, "fp16"),
        ("fp16", GPU, False, "fp16"),
        ("int8", CPU, True, "int8"),
        ("int8", CPU, False, "int8"),
    ],
)
def test_precision_of_translating(
    name: str, device: Device, fast: bool, expected: str,
    monkeypatch: pytest.MonkeyPatch, log_messages: list[str],
) -> None:  # fmt: skip
    capability = (8, 0) if fast else (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    assert decoding_precision(name, device) == expected
    assert log_messages == []


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_gpu_takes_bf16_where_it_has_units_for_it(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    assert decoding_precision("auto", GPU) == expected


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    with pytest.raises(ConfigError) as caught:
        decoding_precision("bf16", GPU)

    expected = "`--precision bf16` is for GPUs of compute capability 8.0 or more"
    assert str(caught.value) == f"{expected}, `cuda:0` has 7.5"
    assert "fp32 there" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["int4", "", "FP32", "int8 "])
def test_name_of_no_precision_of_translating_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decoding_precision(name, CPU)

    expected = "expected one of auto, fp32, bf16, fp16, int8"
    assert str(caught.value) == f"unknown precision `{name}`, {expected}"


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_int8_is_refused_where_there_is_no_such_arithmetic(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, gpus=1, mps=True)

    with pytest.raises(ConfigError) as caught:
        decoding_precision("int8", resolve_device(device))

    assert str(caught.value) == f"`--precision int8` is for CPUs, not for `{device}`"
    assert caught.value.hint == "use bf16 or fp16 there, or `--device cpu`"


def test_fp16_is_refused_on_cpus() -> None:
    with pytest.raises(ConfigError) as caught:
        decoding_precision("fp16", CPU)

    assert str(caught.value) == "`--precision fp16` is for GPUs; CPUs compute it far slower"
    assert caught.value.hint == "use int8, or bf16 on a processor that has it"


# --- without PyTorch -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "reason"),
    [("", "PyTorch is not installed"), ("cpu", "PyTorch is a build without CUDA")],
)
def test_gpu_that_pytorch_cannot_use_is_told_once_and_the_cpu_serves(
    build: str, reason: str, monkeypatch: pytest.MonkeyPatch, log_messages: list[str]
) -> None:
    pretend(monkeypatch, gpus=1, build=build)
    monkeypatch.setattr(module, "_logged", set())

    assert [resolve_device("auto"), resolve_device("auto")] == [Device("cpu")] * 2
    assert log_messages == [f"this machine has a GPU, but {reason}: computing on the CPU"]


@pytest.mark.parametrize(
    ("build", "lacks"),
    [("", "PyTorch, which is not installed"), ("cpu", "a PyTorch built with CUDA")],
)
def test_gpu_that_was_named_needs_a_pytorch_for_it(
    build: str, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, gpus=2, build=build)

    with pytest.raises(ResourceError) as caught:
        resolve_device("cuda:1")

    assert str(caught.value) == f"the device `cuda:1` needs {lacks}"
    assert caught.value.hint == "install it with `pip install torch`"


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("cuda: Optional[str] = '12.6'\nhip: Optional[str] = None\n", "cuda"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", "hip"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", "cpu"),
        ("cuda = '11.8'\n", "cuda"),
        ("", "cpu"),
    ],
)
def test_what_pytorch_was_built_for_is_read_from_its_version(
    text: str, build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text(text, encoding="utf-8")
    spec = importlib.machinery.ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    assert module.torch_build() == build


def test_missing_pytorch_is_no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert module.torch_build() == ""


def driver(path: str, *, gpus: int = 3, status: int = 0) -> Any:
    """Return what stands for CUDA's driver."""

    def count_devices(count: Any) -> int:
        count._obj.value = gpus
        return 0

    return SimpleNamespace(cuInit=lambda flags: status, cuDeviceGetCount=count_devices)


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 3), ("0,1,2", 3), ("", 0), ("-1", 0), (" -1,0", 0)]
)
def test_driver_is_not_asked_where_it_may_show_no_gpu(
    visible: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", driver)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert module.driver_gpus() == count


@pytest.mark.parametrize(
    "library", [lambda path: driver(path, status=100), lambda path: SimpleNamespace()]
)
def test_driver_that_does_not_work_shows_no_gpu(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", library)

    assert module.driver_gpus() == 0


def test_machine_without_the_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> object:
        raise OSError(path)

    monkeypatch.setattr(ctypes, "CDLL", missing)

    assert module.driver_gpus() == 0


def test_cpu_is_found_without_importing_pytorch() -> None:
    program = (
        "import sys\n"
        "from tfm_cli.device import decoding_precision, resolve_device\n"
        "assert decoding_precision('auto', resolve_device('auto')) == 'fp32'\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    environment = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ":".join(sys.path)}

    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
