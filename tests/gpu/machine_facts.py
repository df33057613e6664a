"""The section `machine`: what everything is measured on."""

import os
import platform
import subprocess
from pathlib import Path

import torch

import tfm_cli
from tests.bench.machine import package_version, processor
from tests.gpu.section import Job
from tfm_cli.device import resolve_device

ROOT = Path(__file__).resolve().parents[2]


def report(job: Job) -> None:
    """Write the facts, and multiply two small matrices on the device.

    Raises:
        TfmError: there is no such device.
    """
    resolve_device(job.device)
    device = torch.device(job.device)

    def fact(name: str, value: str) -> None:
        job.add(fact=name, value=value)

    if job.is_gpu:
        properties = torch.cuda.get_device_properties(device)
        fact("device", properties.name)
        fact("memory", f"{properties.total_memory / (1 << 30):.1f} GiB")
        fact("compute capability", f"{properties.major}.{properties.minor}")
        fact("multiprocessors", str(properties.multi_processor_count))
        fact("driver", _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"))
        fact("TF32 in products of fp32", str(torch.backends.cuda.matmul.allow_tf32))
    fact("CUDA of PyTorch", torch.version.cuda or "none")
    fact("PyTorch", torch.__version__)
    fact("transformers", package_version("transformers"))
    fact("Python", platform.python_version())
    fact("CPU", f"{processor()}, {os.cpu_count()} threads")
    fact("tfm", tfm_cli.__version__)
    commit = _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40")
    fact("commit", commit)
    square = torch.ones(64, 64, device=device)
    total = float((square @ square).sum())
    job.add(fact="a product on the device is right", value=f"{total:.0f}", holds=total == 64**3)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().split("\n")[0] or "unknown"
