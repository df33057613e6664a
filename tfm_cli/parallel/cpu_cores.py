"""How many cores this process may keep busy."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

BLAS_THREADS = "OPENBLAS_NUM_THREADS"  # of numpy, read as it is imported
_SYSTEM = Path("/")  # where `proc` and `sys` are


def available_cores(root: Path = _SYSTEM, *, heeds_openmp: bool = True) -> int:
    """Cores that this process may use, at least one; the threads of a core count once.

    The least of what its affinity, the CPU quota of its control group (as of a container) and
    OMP_NUM_THREADS leave it.

    Args:
        root: where `proc` and `sys` are.
        heeds_openmp: whether OMP_NUM_THREADS counts, which torchrun sets to 1.
    """
    limits = [_num_cores(root), *_quotas(root)]
    if heeds_openmp:
        with contextlib.suppress(ValueError):
            limits.append(int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]))
    return max(1, min(limits))


def import_numpy() -> None:
    """Import numpy, without the threads that its OpenBLAS would start, one for each core.

    Nothing here multiplies matrices by numpy. PyTorch comes later, and where it has an OpenBLAS of
    its own, as on ARM, that one should not be told to use one thread.
    """
    before = os.environ.get(BLAS_THREADS)
    os.environ[BLAS_THREADS] = "1"
    import numpy as np  # noqa: F401 - it reads the variable now

    if before is None:
        del os.environ[BLAS_THREADS]
    else:
        os.environ[BLAS_THREADS] = before


def _num_cores(root: Path) -> int:
    """Cores among the processors that the system may run this process on."""
    if not hasattr(os, "sched_getaffinity"):  # only Linux tells
        return os.cpu_count() or 1
    cores = set()
    for processor in os.sched_getaffinity(0):
        place = root / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
        cores.add(_text(place) or str(processor))
    return len(cores)


def _quotas(root: Path) -> Iterator[int]:
    """Cores that each control group around this process may use, of those that have a quota."""
    for line in _text(root / "proc/self/cgroup").split("\n"):
        _, _, names_and_path = line.partition(":")
        names, _, path = names_and_path.partition(":")
        if names and "cpu" not in names.split(","):
            continue
        # In a container a group may be told by a path that only the outside sees.
        top = root / "sys/fs/cgroup" / ("cpu" if names else "")
        group = top / path.strip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(top):
                break
            if names:  # version 1
                quota, period = (
                    _text(place / f"cpu.cfs_{name}_us") for name in ("quota", "period")
                )
            else:
                quota, _, period = _text(place / "cpu.max").partition(" ")
            with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", "-1", none at all
                if int(quota) > 0:
                    yield math.ceil(int(quota) / int(period))


def _text(path: Path) -> str:
    """What stands in a small file; nothing where it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return ""
