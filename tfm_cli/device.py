"""Where to compute and how precisely."""

import contextlib
from collections.abc import Iterator

import torch

from tfm_cli.errors import ConfigError, ResourceError


def resolve_device(name: str) -> torch.device:
    """The device called `auto` (cuda, else mps, else cpu), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        ConfigError: no device has such a name.
        ResourceError: this machine lacks it; names what it has.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"unknown device `{name}`, wanted auto, cpu, cuda, cuda:N or mps")
    num_gpus = torch.cuda.device_count()
    missing = device.type == "cuda" and (device.index or 0) >= num_gpus
    if missing or (device.type == "mps" and not torch.backends.mps.is_available()):
        seen = ["cpu", *(f"cuda:{i}" for i in range(num_gpus))]
        raise ResourceError(
            f"there is no device `{name}`; this machine has {', '.join(seen)}",
            hint="use `--device auto` to take the best there is",
        )
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic of matrix products: `auto` takes bf16 where the device is faster with it.

    Raises:
        ConfigError: no arithmetic has such a name.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"unknown precision `{name}`, wanted auto, fp32 or bf16")
    if name == "fp32" or (name == "auto" and not _fast_bf16(device)):
        return torch.float32
    return torch.bfloat16


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # torch 2.11 has no such function yet; there, fp32 it is.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


@contextlib.contextmanager
def arithmetic(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Matrix products inside are computed in `dtype`; weights stay as they are."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield


def set_cpu_threads(count: int) -> None:
    """Use this many threads inside an operation; 0 leaves one for each core."""
    if count:
        torch.set_num_threads(count)
