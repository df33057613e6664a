"""Devices and precisions by name; which there are is found out without PyTorch where that can be.

A machine without a GPU needs no PyTorch to translate, and importing it takes seconds.
"""

import contextlib
import ctypes
import importlib.util
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tfm_cli.errors import INSTALL_TORCH, ConfigError, ResourceError

logger = logging.getLogger(__name__)

DECODING_PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")

_told: set[str] = set()  # what was said once already
_DRIVERS = {"win32": "nvcuda.dll"}  # CUDA's driver by system; else libcuda.so.1
_LEAST_BF16 = (8, 0)  # compute capability


@dataclass(frozen=True, slots=True)
class Device:
    """A device by its name, such as `cpu`, `cuda`, `cuda:1` or `mps`."""

    type: str
    index: int | None = None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


CPU = Device("cpu")


def resolve_device(name: str) -> Device:
    """Return the device called `auto` (cuda, else mps, else cpu), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        ConfigError: no device has such a name.
        ResourceError: this machine lacks it, or PyTorch, which computes on it.
    """
    if name == "auto":
        if num_gpus():
            return Device("cuda")
        if has_mps():
            return Device("mps")
        _tell_of_idle_gpus()
        return CPU
    found = re.fullmatch(r"(cpu|mps|cuda)(?::([0-9]{1,4}))?", name)
    if found is None or (found[2] is not None and found[1] != "cuda"):
        raise ConfigError(f"unknown device `{name}`, wanted auto, cpu, cuda, cuda:N or mps")
    device = Device(found[1], None if found[2] is None else int(found[2]))
    if device == CPU:
        return device
    count = num_gpus()
    is_there = has_mps() if device.type == "mps" else (device.index or 0) < count
    if not is_there:
        seen = ["cpu", *(f"cuda:{i}" for i in range(count))]
        hint = "use `--device auto` to take the best there is"
        build = torch_build()
        if device.type == "cuda" and build != "cuda" and driver_gpus() > (device.index or 0):
            lacks = "PyTorch, which is not installed" if not build else "a PyTorch built with CUDA"
            raise ResourceError(f"the device `{name}` needs {lacks}", hint=INSTALL_TORCH)
        told = f"there is no device `{name}`; this machine has {', '.join(seen)}"
        raise ResourceError(told, hint=hint)
    return device


def decoding_precision(name: str, device: Device) -> str:
    """Return `fp32`, `bf16`, `fp16` or `int8` for translating.

    `auto` is fp32 on every CPU, so that a model translates alike on all of them, and bf16 on GPUs
    that have it.

    Raises:
        ConfigError: the name is unknown, or the device lacks that precision.
    """
    if name not in DECODING_PRECISIONS:
        wanted = ", ".join(DECODING_PRECISIONS)
        raise ConfigError(f"unknown precision `{name}`, wanted one of {wanted}")
    if name == "auto":
        has_bf16 = device.type == "cuda" and gpu_capability(device) >= _LEAST_BF16
        return "bf16" if has_bf16 else "fp32"
    if name == "int8" and device.type != "cpu":
        hint = "use bf16 or fp16 there, or `--device cpu`"
        raise ConfigError(f"`--precision int8` is for CPUs, not for `{device}`", hint=hint)
    if name == "fp16" and device.type == "cpu":
        hint = "use int8, or bf16 on a processor that has it"
        raise ConfigError("`--precision fp16` is for GPUs; CPUs compute it far slower", hint=hint)
    if name == "bf16":
        check_gpu_bf16(device, "fp16 or fp32")
    return name


def check_gpu_bf16(device: Device, others: str) -> None:
    """Raise a ConfigError if a GPU has no bf16.

    Args:
        device: any.
        others: precisions that the hint names.
    """
    if device.type != "cuda" or (capability := gpu_capability(device)) >= _LEAST_BF16:
        return
    major, minor = capability
    raise ConfigError(
        f"`--precision bf16` is for GPUs of compute capability 8.0 or more, `{device}` has "
        f"{major}.{minor}",
        hint=f"use {others} there",
    )


def gpu_capability(device: Device) -> tuple[int, int]:
    """Return the compute capability of a GPU that PyTorch uses."""
    import torch

    return torch.cuda.get_device_capability(str(device))


def num_gpus() -> int:
    """Return the number of GPUs that PyTorch can use; it is imported where there may be one."""
    build = torch_build()
    if build != "hip" and not (build == "cuda" and driver_gpus()):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def has_mps() -> bool:
    """Return True if PyTorch can use the GPU of an Apple processor."""
    if sys.platform != "darwin" or os.uname().machine != "arm64" or not torch_build():
        return False
    import torch

    return torch.backends.mps.is_available()


def torch_build() -> str:
    """Return what the installed PyTorch was built for: `cuda`, `hip` or `cpu`; empty for none.

    Its file `version.py` is read, not executed.
    """
    found = None
    with contextlib.suppress(ImportError, ValueError):  # ValueError: None stands in for it
        found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return ""
    text = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    for kind in ("cuda", "hip"):
        if re.search(rf"^{kind}\b[^=\n]*=\s*['\"]", text, re.MULTILINE):
            return kind
    return "cpu"


def driver_gpus() -> int:
    """Return the number of GPUs that CUDA's driver shows; it heeds CUDA_VISIBLE_DEVICES itself.

    Source: CUDA Driver API, `cuInit` and `cuDeviceGetCount`.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in ("", "-1"):
        return 0
    try:
        driver = ctypes.CDLL(_DRIVERS.get(sys.platform, "libcuda.so.1"))
        count = ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def _tell_of_idle_gpus() -> None:
    """Say once, where there is a GPU that the installed PyTorch cannot use, that it stays idle."""
    build = torch_build()
    if build == "hip" or not driver_gpus():
        return
    reasons = {"": "PyTorch is not installed", "cpu": "PyTorch is a build without CUDA"}
    reason = reasons.get(build, "PyTorch cannot use it")
    if reason not in _told:
        _told.add(reason)
        logger.warning("this machine has a GPU, but %s: computing on the CPU", reason)
