"""What a process says that dies of a fault inside the engine."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tfm_cli.native import library

pytestmark = pytest.mark.skipif(not library.available(), reason="the native engine is not built")

GOLDEN = Path(__file__).parents[1] / "golden" / "model_v2"
DEFECT = 70
PROGRAM = f"""
import ctypes, threading, time
from pathlib import Path
from tfm_cli.native.model import NativeModel
from tfm_cli.native.search import NativeSearch, Segments
from tfm_cli.config.settings import SearchConfig

def fault():
    ctypes.string_at(0)

def search(count, check):
    search = NativeSearch([model], SearchConfig(beam_size=64), check=check)
    while True:
        search(Segments(sources=[[5, 6, 7] * 10] * count, limits=[200] * count))

model = NativeModel.load(Path({str(GOLDEN)!r}))
"""


def run(lines: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM + lines],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_fault_inside_is_told_with_the_model_and_the_batch() -> None:
    code, stderr = run("search(256, fault)")  # long enough: `check` is called after 50 ms

    assert code == DEFECT
    assert stderr.startswith(f"error: {library.load().path.name} crashed")
    assert f"model: {GOLDEN}" in stderr
    assert "batch: 256 segments" in stderr
    assert "Fatal" not in stderr  # what Python would say


def test_fault_of_a_thread_without_a_note_is_none_of_the_engine() -> None:
    # A search of a few milliseconds ends while Python reports the fault, which must be done once.
    code, stderr = run(
        "threading.Thread(target=search, args=[8, lambda: None], daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "fault()"
    )

    assert code == -signal.SIGSEGV
    assert "crashed" not in stderr
    assert stderr.count("Fatal Python error: Segmentation fault") == 1


def test_handlers_are_those_of_before_once_a_search_is_over() -> None:
    code, stderr = run(
        "NativeSearch([model], SearchConfig())(Segments(sources=[[5, 6]], limits=[9]))\nfault()"
    )

    assert code == -signal.SIGSEGV
    assert "crashed" not in stderr
    assert "Fatal Python error: Segmentation fault" in stderr
