"""PyTorch on a device: the precision of matrix products, memory, determinism, threads."""

import contextlib
import logging
import os
from collections.abc import Iterator

import torch

from tfm_cli.device import PRECISIONS, TRAINING_PRECISIONS, Device, check_gpu_bf16
from tfm_cli.errors import ConfigError

logger = logging.getLogger(__name__)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the matrix products in training.

    `auto` is bf16 on devices, CPUs included, that multiply matrices faster in it, else fp32.

    Raises:
        ConfigError: the name is unknown, or the device lacks that precision.
    """
    if name not in TRAINING_PRECISIONS:
        expected = ", ".join(TRAINING_PRECISIONS)
        raise ConfigError(f"unknown precision `{name}`, expected one of {expected}")
    if name == "bf16":
        _check_bf16(device, "fp32")
    if name == "auto":
        name = "bf16" if _fast_bf16(device) else "fp32"
    return precision_dtype(name)


def validation_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the matrix products in validation, for the training precision `name`.

    `auto` is fp32 on every CPU, so that scores do not depend on the type of processor. Otherwise
    validation uses the precision of training.
    """
    if name == "auto" and device.type == "cpu":
        return torch.float32
    return resolve_precision(name, device)


def precision_name(dtype: torch.dtype) -> str:
    """Return the name of the precision that uses a dtype."""
    (name,) = (name for name in PRECISIONS if precision_dtype(name) == dtype)
    return name


def precision_dtype(name: str) -> torch.dtype:
    """Return the dtype that a precision uses."""
    dtype: torch.dtype = getattr(torch, PRECISIONS[name].dtype)
    return dtype


def _check_bf16(device: torch.device, others: str) -> None:
    check_gpu_bf16(Device(device.type, device.index), others)
    warn_of_slow_bf16(device)


def warn_of_slow_bf16(device: torch.device) -> None:
    """Log a warning if the processor has no instructions for bf16."""
    if device.type == "cpu" and not _fast_bf16(device):
        logger.warning(
            "this processor has no bf16 instructions: PyTorch emulates them, far slower than fp32"
        )


# Values of oneDNN's ONEDNN_MAX_CPU_ISA that disable bf16 on any processor.
_ISA_WITHOUT_BF16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip


def _fast_bf16(device: torch.device) -> bool:
    """Return True if the device multiplies matrices faster in bf16 than in fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        isa = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
        if isa.upper() in _ISA_WITHOUT_BF16:
            return False
        # torch 2.11 lacks `get_capabilities`, so no CPU counts as fast there.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


@contextlib.contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute matrix products in `dtype` inside this context; weights keep their dtype."""
    if dtype == torch.float32:
        yield
        return
    with torch.autocast(device.type, dtype=dtype):
        yield


def ran_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that there was not enough memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # On a CPU, PyTorch raises a plain RuntimeError with one of these messages.
    words = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)


def set_deterministic(is_deterministic: bool) -> None:
    """Select deterministic algorithms, or the fastest ones if `is_deterministic` is False.

    cuBLAS reads the environment variable when it is first used, so call this before any GPU
    computation.
    """
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # This package never reads uninitialized memory, and filling it takes time.
        # PyTorch creates this attribute dynamically, so type checkers do not find it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(is_deterministic)


def set_cpu_threads(count: int) -> None:
    """Set the number of PyTorch's intra-op threads; 0 keeps its default."""
    if count:
        torch.set_num_threads(count)
