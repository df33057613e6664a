"""The processes of the sides: all of a work are alive together, and one at a time learns."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.train_table import Side
from tests.bench.train_works import MAX_TOKENS, NUM_PAIRS, SHAPES, Work

ROOT = Path(__file__).resolve().parents[2]


class SideFailedError(Exception):
    """A side's process ended before its work."""


def job(
    work: Work, side: str, *, updates: int, threads: int, slow_bf16: bool, without: str = ""
) -> dict[str, Any]:
    """What a side's process is asked; `updates` 0 for as many as the shape's rounds have."""
    shape = SHAPES[work.shape]
    return {
        "side": side, "without": without, "shape": dataclasses.asdict(shape), "dropout": 0.1,
        "precision": work.precision, "slow_bf16": slow_bf16, "batching": work.batching,
        "pairs": NUM_PAIRS, "max_tokens": MAX_TOKENS, "updates": updates or shape.updates,
        "threads": threads,
    }  # fmt: skip


def measured(jobs: dict[str, dict[str, Any]], *, rounds: int) -> dict[str, Side]:
    """What each side did in so many rounds, in each of which every side learns once.

    The order of a round is that of the jobs, in every other round the reverse.
    """
    sides = {name: Side(name) for name in jobs}
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(_Process(one)) for name, one in jobs.items()}

        def each(ask: Callable[[_Process], dict[str, Any]], *, back: bool = False) -> None:
            for name in list(jobs)[:: -1 if back else 1]:
                if not sides[name].refused:
                    try:
                        sides[name].take(ask(processes[name]))
                    except SideFailedError as error:  # of memory, it may be: the others go on
                        print(f"the side `{name}` {error}", file=sys.stderr, flush=True)
                        sides[name] = Side(name, refused="failed")

        each(_Process.begin)
        for number in range(rounds):
            each(_Process.round, back=bool(number % 2))
        each(_Process.end)
    return sides


class _Process:
    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._process: subprocess.Popen[str] | None = None
        # Not a pipe, which would be full some time.
        self._told = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - see __exit__

    def __enter__(self) -> "_Process":
        return self

    def begin(self) -> dict[str, Any]:
        """Start it; comes back when it has made its first update."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.train_sides"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told,
            env={**os.environ, "OMP_NUM_THREADS": str(self._job["threads"])},
        )  # fmt: skip
        return self._ask(json.dumps(self._job))

    def round(self) -> dict[str, Any]:
        return self._ask("round")

    def end(self) -> dict[str, Any]:
        return self._ask(None)

    def _ask(self, line: str | None) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed, and said why
            if line is None:
                process.stdin.close()
            else:
                process.stdin.write(line + "\n")
                process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            self._told.seek(0)
            raise SideFailedError(f"failed, exit code {process.wait()}:\n{self._told.read()}")
        table: dict[str, Any] = json.loads(answer)
        return table

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self._told.close()
