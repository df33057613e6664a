"""Sections that end in every way, for the tests of the proof."""

import os
import signal
import subprocess
import sys
import time

from tests.gpu.section import Job


def passes(job: Job) -> None:
    job.add(what="a figure", value=12345.678, holds=True)


def fails(job: Job) -> None:
    job.add(what="before the failure", value=float("nan"))
    raise ValueError("CUDA error: an illegal memory access\nwas encountered")


def does_not_hold(job: Job) -> None:
    job.add(what="equal", holds=False)


def fails_in_a_row(job: Job) -> None:
    with job.attempt(what="first"):
        raise RuntimeError("out of memory\nsome advice")
    job.add(what="second", holds=True)


def lacks_time(job: Job) -> None:
    job.add(what="first", holds=True)
    assert not job.has_time(1e9, what="second")


def is_killed(job: Job) -> None:
    job.add(what="before the kill")
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(job: Job) -> None:
    """Hang, as does a process that it started; their numbers are in the row."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    job.add(what="before the hang", processes=f"{os.getpid()} {child.pid}")
    time.sleep(600)
