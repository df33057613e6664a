"""Each library that this processor can run, not the best alone, finds what the reference finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.engine import library
from tfm_cli.native.library import declare

ROOT = Path(__file__).parents[2]


def others() -> list[Path]:
    """The libraries beside the one that is used, of which this processor has the instructions."""
    import ctypes

    best = library().path
    paths = [path for path in sorted(best.parent.glob("libtfm_*.so")) if path != best]
    return [path for path in paths if declare(ctypes.CDLL(str(path))).tfm_runs_here()]


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", range(2))
def test_libraries_for_older_processors_pass_the_tests(place: int) -> None:
    paths = others()
    if place >= len(paths):
        pytest.skip(f"runs where there are {place + 2} libraries that this processor can run")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n0",
         "tests/native/test_equality.py", "tests/native/test_independence.py",
         "tests/native/test_abi.py", "-m", "not torture"],
        cwd=ROOT, env=os.environ | {"TFM_NATIVE_LIBRARY": str(paths[place])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
