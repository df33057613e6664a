"""Devices and precisions, by name, as far as possible without PyTorch.

A machine without a GPU translates without PyTorch, whose import takes seconds.
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
from typing import NamedTuple

from tfm_cli.errors import INSTALL_TORCH, ConfigError, ResourceError

logger = logging.getLogger(__name__)


class Precision(NamedTuple):
    """A precision of matrix products."""

    name: str
    dtype: str  # PyTorch's name
    devices: tuple[str, ...]  # types of devices that support it
    trains: bool  # True if training may use it


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", "float32", ("cpu", "cuda", "mps"), trains=True),
        Precision("bf16", "bfloat16", ("cpu", "cuda", "mps"), trains=True),
        Precision("fp16", "float16", ("cuda", "mps"), trains=False),
        Precision("int8", "int8", ("cpu",), trains=False),
    )
}
DECODING_PRECISIONS = ("auto", *PRECISIONS)
TRAINING_PRECISIONS = ("auto", *(each.name for each in PRECISIONS.values() if each.trains))

_logged: set[str] = set()  # reasons that have been logged
_DRIVERS = {"win32": "nvcuda.dll"}  # CUDA's driver by system; otherwise libcuda.so.1
_MIN_BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Device:
    """A device; its string is its name, such as `cpu`, `cuda`, `cuda:1` or `mps`."""

    type: str
    index: int | None = None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


CPU = Device("cpu")


def resolve_device(name: str) -> Device:
    """Return the device `cpu`, `cuda`, `cuda:N`, `mps` or `auto` (cuda, or else mps, or else cpu).

    Raises:
        ConfigError: it is not the name of a device.
        ResourceError: the machine has no such device, or no PyTorch for it.
    """
    if name == "auto":
        if num_gpus():
            return Device("cuda")
        if has_mps():
            return Device("mps")
        _warn_of_idle_gpus()
        return CPU
    match = re.fullmatch(r"(cpu|mps|cuda)(?::([0-9]{1,4}))?", name)
    if match is None or (match[2] is not None and match[1] != "cuda"):
        raise ConfigError(f"unknown device `{name}`, expected auto, cpu, cuda, cuda:N or mps")
    device = Device(match[1], None if match[2] is None else int(match[2]))
    if device == CPU:
        return device
    count = num_gpus()
    exists = has_mps() if device.type == "mps" else (device.index or 0) < count
    if not exists:
        names = ["cpu", *(f"cuda:{i}" for i in range(count))]
        hint = "use `--device auto` for the best available device"
        build = torch_build()
        if device.type == "cuda" and build != "cuda" and driver_gpus() > (device.index or 0):
            missing = "a PyTorch built with CUDA" if build else "PyTorch, which is not installed"
            raise ResourceError(f"the device `{name}` needs {missing}", hint=INSTALL_TORCH)
        message = f"there is no device `{name}`; this machine has {', '.join(names)}"
        raise ResourceError(message, hint=hint)
    return device


def decoding_precision(name: str, device: Device) -> str:
    """Return the precision of translation: `fp32`, `bf16`, `fp16` or `int8`.

    `auto` is fp32 on every CPU, so that a model gives the same translations on all of them, and
    bf16 on GPUs that have it.

    Raises:
        ConfigError: the name is unknown, or the device lacks that precision.
    """
    if name not in DECODING_PRECISIONS:
        expected = ", ".join(DECODING_PRECISIONS)
        raise ConfigError(f"unknown precision `{name}`, expected one of {expected}")
    if name == "auto":
        has_bf16 = device.type == "cuda" and gpu_capability(device) >= _MIN_BF16_CAPABILITY
        return "bf16" if has_bf16 else "fp32"
    if device.type not in PRECISIONS[name].devices:
        if device.type == "cpu":
            hint = "use int8, or bf16 on a processor that has it"
            message = f"`--precision {name}` is for GPUs; CPUs compute it far slower"
        else:
            hint = "use bf16 or fp16 there, or `--device cpu`"
            message = f"`--precision {name}` is for CPUs, not for `{device}`"
        raise ConfigError(message, hint=hint)
    if name == "bf16":
        check_gpu_bf16(device, "fp16 or fp32")
    return name


def check_gpu_bf16(device: Device, others: str) -> None:
    """Raise a ConfigError if a GPU has no bf16.

    Args:
        device: any device; only GPUs are checked.
        others: precisions that the hint suggests.
    """
    if device.type != "cuda" or (capability := gpu_capability(device)) >= _MIN_BF16_CAPABILITY:
        return
    major, minor = capability
    raise ConfigError(
        f"`--precision bf16` is for GPUs of compute capability 8.0 or more, `{device}` has "
        f"{major}.{minor}",
        hint=f"use {others} there",
    )


def gpu_capability(device: Device) -> tuple[int, int]:
    """Return the compute capability of a GPU, as PyTorch reports it."""
    import torch

    return torch.cuda.get_device_capability(str(device))


def num_gpus() -> int:
    """Return the number of GPUs that PyTorch can use, importing it only if there may be one."""
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
    """Return the build of the installed PyTorch: `cuda`, `hip` or `cpu`; empty without PyTorch.

    Its file `version.py` is read, not executed.
    """
    spec = None
    with contextlib.suppress(ImportError, ValueError):  # ValueError: `sys.modules` has None for it
        spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return ""
    text = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    for kind in ("cuda", "hip"):
        if re.search(rf"^{kind}\b[^=\n]*=\s*['\"]", text, re.MULTILINE):
            return kind
    return "cpu"


def driver_gpus() -> int:
    """Return the number of GPUs that CUDA's driver reports, subject to CUDA_VISIBLE_DEVICES.

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


def _warn_of_idle_gpus() -> None:
    """Warn once if there is a GPU that the installed PyTorch cannot use."""
    build = torch_build()
    if build == "hip" or not driver_gpus():
        return
    reasons = {"": "PyTorch is not installed", "cpu": "PyTorch is a build without CUDA"}
    reason = reasons.get(build, "PyTorch cannot use it")
    if reason not in _logged:
        _logged.add(reason)
        logger.warning("this machine has a GPU, but %s: computing on the CPU", reason)
