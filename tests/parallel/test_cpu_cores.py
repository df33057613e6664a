import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfm_cli.parallel.cpu_cores import available_cores


@pytest.fixture(autouse=True)
def _eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


def test_every_processor_that_may_be_used_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == 8


def test_threads_of_a_core_count_once(tmp_path: Path) -> None:
    for processor in range(8):
        place = f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
        write(tmp_path, place, f"{processor % 4},{processor % 4 + 4}\n")

    assert available_cores(tmp_path) == 4


def test_system_that_does_not_tell_has_what_python_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, cores in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)

        assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("300000 100000", 3), ("150000 100000", 2), ("10000 100000", 1), ("", 8)],
)
def test_quota_of_the_control_group_is_a_limit(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", quota)

    assert available_cores(tmp_path) == cores


def test_quota_of_a_group_around_it_is_a_limit(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "200000 100000\n")
    write(tmp_path, "sys/fs/cgroup/a/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "500000 100000\n")

    assert available_cores(tmp_path) == 2


@pytest.mark.parametrize(("quota", "cores"), [("400000\n", 4), ("-1\n", 8)])
def test_quota_of_the_first_version_is_a_limit(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path, "proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/outside/only\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota)
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")

    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(("value", "cores"), [("3", 3), ("2,1", 2), ("99", 8), ("x", 8), ("0", 1)])
def test_threads_that_the_environment_allows_are_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, cores: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)

    assert available_cores(tmp_path) == cores
    assert available_cores(tmp_path, heeds_openmp=False) == 8


def test_this_machine_has_a_core() -> None:
    assert available_cores() >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the threads of a process")
def test_numpy_is_imported_without_threads_of_its_own() -> None:
    code = (
        "import os; from tfm_cli.parallel.cpu_cores import import_numpy; import_numpy(); "
        "import numpy; "
        "print(len(os.listdir('/proc/self/task')), os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["1", "None"]
