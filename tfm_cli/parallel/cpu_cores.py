"""The number of CPU cores that this process may use."""

import contextlib
import math
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tfm_cli.errors import ResourceError

BLAS_THREADS = "OPENBLAS_NUM_THREADS"  # read by numpy's OpenBLAS during its import
_NUMPY_BYTES = 96 << 20  # address space that importing numpy takes, 82 MiB measured
_SYSTEM = Path("/")  # the parent of `proc` and `sys`


def available_cores(root: Path = _SYSTEM, *, heeds_openmp: bool = True) -> int:
    """Return the number of cores that this process may use, at least 1.

    Hardware threads of one core count once. The result is the minimum over the CPU affinity, the
    CPU quota of the control group (such as a container) and OMP_NUM_THREADS.

    Args:
        root: the parent of `proc` and `sys`.
        heeds_openmp: apply the limit of OMP_NUM_THREADS, which torchrun sets to 1.
    """
    limits = [_num_cores(root), *_quotas(root)]
    if heeds_openmp:
        with contextlib.suppress(ValueError):
            limits.append(int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]))
    return max(1, min(limits))


def import_numpy() -> None:
    """Import numpy without the threads that its OpenBLAS would start, one for each core.

    This program multiplies no matrices with numpy. The variable is restored at the end, since
    PyTorch may come with an OpenBLAS of its own, as on ARM, which should use all threads.

    Raises:
        ResourceError: there is no memory for numpy. Without this check, OpenBLAS would exit or
            crash the process.
    """
    if "numpy" in sys.modules:
        return
    try:
        mmap.mmap(-1, _NUMPY_BYTES).close()
    except OSError as error:
        raise ResourceError(f"out of memory: `numpy` cannot be imported: {error}") from error
    before = os.environ.get(BLAS_THREADS)
    os.environ[BLAS_THREADS] = "1"
    import numpy as np  # noqa: F401 - it reads the variable now

    if before is None:
        del os.environ[BLAS_THREADS]
    else:
        os.environ[BLAS_THREADS] = before


def _num_cores(root: Path) -> int:
    """Return the number of cores in the CPU affinity of this process."""
    if not hasattr(os, "sched_getaffinity"):  # only Linux has it
        return os.cpu_count() or 1
    cores = set()
    for processor in os.sched_getaffinity(0):
        path = root / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
        cores.add(_read_text(path) or str(processor))
    return len(cores)


def _quotas(root: Path) -> Iterator[int]:
    """Yield the CPU quotas, in cores, of the control group of this process and its parents."""
    for line in _read_text(root / "proc/self/cgroup").split("\n"):
        _, _, names_and_path = line.partition(":")
        names, _, path = names_and_path.partition(":")
        if names and "cpu" not in names.split(","):
            continue
        # Inside a container the path may be one that only the host can resolve.
        top = root / "sys/fs/cgroup" / ("cpu" if names else "")
        group = top / path.strip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(top):
                break
            if names:  # version 1
                quota, period = (
                    _read_text(directory / f"cpu.cfs_{name}_us") for name in ("quota", "period")
                )
            else:
                quota, _, period = _read_text(directory / "cpu.max").partition(" ")
            with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", "-1" or no file
                if int(quota) > 0:
                    yield math.ceil(int(quota) / int(period))


def _read_text(path: Path) -> str:
    """Return the stripped content of a small file; empty if it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return ""
