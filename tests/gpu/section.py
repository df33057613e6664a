"""One section of the proof, in a process of its own: `python -m tests.gpu.section FUNCTION JOB`.

FUNCTION is `module:name`; JOB is a table in JSON with the fields of `Job`. Results go to a file of
JSON lines as soon as they are known, so that what ends the process leaves them.
"""

import contextlib
import faulthandler
import importlib
import json
import math
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NO_TIME = "no time left"
_TRACE_BEFORE = 2.0  # seconds before the time limit at which the stacks of a hang are written


class Job:
    """What a section is asked to do, and where its rows go.

    Args:
        table: `device`, cuda or cpu; `is_tiny`, to rehearse with small sizes; `seconds` to
            spend; `rows`, the file of results.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        self.device: str = table["device"]
        self.is_tiny: bool = table["is_tiny"]
        self._ends = time.monotonic() + table["seconds"]
        self._rows = Path(table["rows"])
        self._peak_mib = 0.0  # on the device, so far

    @property
    def is_gpu(self) -> bool:
        """Return True on a GPU, False in a rehearsal on a CPU."""
        return self.device == "cuda"

    @property
    def seconds_left(self) -> float:
        """Return the time until the limit of the section."""
        left: float = self._ends - time.monotonic()
        return left

    def add(self, **row: Any) -> None:
        """Write a row of the section's table; a key `holds` is the outcome of a check."""
        self.write({"row": {key: _in_json(value) for key, value in row.items()}})

    def write(self, line: dict[str, Any]) -> None:
        """Append a line to the results."""
        with self._rows.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps({**line, **self._device_peak()}) + "\n")

    def has_time(self, seconds: float, **row: Any) -> bool:
        """Return True if so much time is left; otherwise write a row of what is not measured."""
        if self.seconds_left >= seconds:
            return True
        self.add(**row, error=NO_TIME)
        return False

    @contextlib.contextmanager
    def attempt(self, **row: Any) -> Iterator[None]:
        """Measure something inside the block; if it fails, write a row of that and go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.add(**row, holds=False, error=first_line(f"{type(error).__name__}: {error}"))

    def _device_peak(self) -> dict[str, float]:
        torch = sys.modules.get("torch")
        if torch is None or not self.is_gpu or not torch.cuda.is_initialized():
            return {}
        # Sections reset PyTorch's own maximum between their rows.
        self._peak_mib = max(self._peak_mib, torch.cuda.max_memory_reserved() / (1 << 20))
        return {"peak_device_mib": self._peak_mib}


def _in_json(value: Any) -> Any:
    """Return a value that JSON has: infinities and NaN as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def first_line(text: str) -> str:
    """Return the first line; messages of CUDA go on with advice."""
    return text.strip().split("\n")[0]


def last_line(text: str) -> str:
    """Return the last line that is not blank; empty if there is none."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return lines[-1] if lines else ""


def _end_with_parent() -> None:
    """Kill this process and those it started once the parent, which holds a pipe, has ended."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main(function: str, table: dict[str, Any]) -> None:
    """Do the job."""
    if os.getpgid(0) == os.getpid():  # not in a debugger or a terminal
        _end_with_parent()
    faulthandler.dump_traceback_later(max(1.0, table["seconds"] - _TRACE_BEFORE))
    job = Job(table)
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(job)
    faulthandler.cancel_dump_traceback_later()
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    kilobytes = max(each.ru_maxrss for each in usage)  # KiB on Linux, bytes on macOS
    job.write({"peak_mib": kilobytes / (1 << 20 if sys.platform == "darwin" else 1 << 10)})


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
