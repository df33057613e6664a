"""The engine built with sanitizers: no fault of memory, no undefined behavior, no leak."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tfm_cli.native
from tests.native.engine import library

pytestmark = [pytest.mark.torture, pytest.mark.timeout(7200)]

ROOT = Path(__file__).parents[2]
SOURCE = Path(tfm_cli.native.__file__).parent


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which Python loads such a library, for this processor."""
    lacking = [name for name in ("cmake", "g++") if shutil.which(name) is None]
    if lacking:
        pytest.skip(f"runs where there is {' and '.join(lacking)}")
    place = tmp_path_factory.mktemp("sanitized")
    instruction_set = library().instruction_set
    subprocess.run(
        ["cmake", "-S", SOURCE, "-B", place, "-DCMAKE_CXX_COMPILER=g++",
         "-DTFM_SANITIZE=address,undefined", f"-DTFM_INSTRUCTION_SETS={instruction_set}",
         "-DCMAKE_CXX_FLAGS_RELEASE=-O1"],
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(["cmake", "--build", place], check=True, capture_output=True)
    runtimes = [
        subprocess.run(
            ["g++", f"-print-file-name=lib{name}.so"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    return {
        "TFM_NATIVE_LIBRARY": str(place / f"libtfm_{instruction_set}.so"),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=os.environ | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_wrong_calls_read_and_write_nothing_that_is_not_theirs(
    seed: int, sanitized: dict[str, str]
) -> None:
    done = run(["tests.native.abi_fuzz", "3000", str(seed)], sanitized)

    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.parametrize("file", [
    "test_equality.py", "test_independence.py", "test_memory.py", "test_abi.py",
    "test_trained_model.py",
])  # fmt: skip
def test_tests_pass_with_sanitizers(file: str, sanitized: dict[str, str]) -> None:
    # Sanitizers take memory of their own, and must be loaded before the program begins.
    excluded = [
        "take_no_more_memory", "give_their_memory_back", "wrong_is_refused", "have_no_memory",
    ]  # fmt: skip
    done = run(
        ["pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly",
         f"tests/native/{file}", "-m", "not torture",
         "-k", " and ".join(f"not {name}" for name in excluded)],
        sanitized,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]


def test_nothing_leaks(sanitized: dict[str, str]) -> None:
    leaks = sanitized | {
        "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
        "PYTHONMALLOC": "malloc",
    }

    done = run(["tests.native.abi_fuzz", "1000", "7"], leaks)

    if "LeakSanitizer has encountered a fatal error" in done.stderr:
        pytest.skip("runs where LeakSanitizer may trace the process (ptrace)")
    assert done.returncode == 0, done.stderr[-6000:]
