"""The section `determinism`: runs with `--deterministic` leave the same bits."""

import json
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.conftest import TFM, TINY_SHAPE, write_corpus
from tests.gpu.section import Job, last_line
from tests.runs import left_behind
from tfm_cli.files import faults

UPDATES, KILLED_AT, SAVED_AT = 12, 8, 4
# Everything that makes it difficult: dropout of all kinds, gradient accumulation, an average.
_RUN = [
    "--update-freq", "2", "--dropout", "0.2", "--attention-dropout", "0.1",
    "--activation-dropout", "0.1", "--word-dropout", "0.1", "--lr", "1e-3", "--lr-warmup", "10",
    "--set", "training.ema_decay=0.8", "--max-updates", str(UPDATES), "--disp-freq", "1",
    "--save-freq", str(SAVED_AT), "--valid-freq", str(UPDATES // 2), "--deterministic",
]  # fmt: skip
_SHAPE = [
    "--preset", "small", "--vocab-size", "60", "--set", "tokenizer.byte_fallback=false",
    "--set", "tokenizer.model_type=word", "--max-tokens", "1024",
]  # fmt: skip
_TINY = [*TINY_SHAPE, "--max-tokens", "64"]


def report(job: Job) -> None:
    """Compare runs in each precision; those of a precision run side by side."""
    precisions = ["fp32"] if job.is_tiny else ["bf16", "fp32"]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        arguments = write_corpus(Path(folder)).train_arguments()
        arguments += [*_RUN, *(_TINY if job.is_tiny else _SHAPE), "--device", job.device]

        def left(precision: str, name: str) -> dict[str, Any]:
            output = Path(folder, f"{precision}-{name}")
            command = [*TFM, "train", *arguments, "--precision", precision, "-o", str(output)]
            if name == "killed":
                _train(command, job, fault=f"update:{KILLED_AT}=kill")
            _train(command, job)
            return left_behind(output)

        runs = {
            (precision, name): pool.submit(left, precision, name)
            for precision in precisions
            for name in ("first", "again", "killed")
        }
        for precision in precisions:
            for name, what in (("again", "twice"), ("killed", "killed and resumed")):
                with job.attempt(precision=precision, run=what):
                    expected, actual = runs[precision, "first"].result(), runs[precision, name]
                    differing = _differing(expected, actual.result())
                    losses = [line["loss"] for line in expected["metrics"] if "loss" in line]
                    job.add(
                        precision=precision, run=what, updates=UPDATES,
                        last_loss=losses[-1] if losses else None,
                        compared=f"{len(expected['hashes'])} files, counters, metrics",
                        differing=", ".join(differing), holds=not differing,
                    )  # fmt: skip


def _train(command: list[str], job: Job, *, fault: str = "") -> None:
    """Run a command, which a fault is to kill if there is one.

    Raises:
        RuntimeError: it ended otherwise, or not in time.
    """
    environment = {**os.environ, faults.VARIABLE: fault, "OMP_NUM_THREADS": "1"}
    if not fault:
        del environment[faults.VARIABLE]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=max(1.0, job.seconds_left),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"`tfm train` did not end within {error.timeout:.0f} seconds") from None
    print(done.stderr, flush=True)  # into the log of the section
    if done.returncode != (-9 if fault else 0):
        raise RuntimeError(f"exit code {done.returncode}: {last_line(done.stderr)}")


def _differing(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """Return the names of files that differ, and of what else does."""
    names = expected["hashes"].keys() | actual["hashes"].keys()
    differing = sorted(
        name for name in names if expected["hashes"].get(name) != actual["hashes"].get(name)
    )
    for key in expected.keys() - {"hashes"}:
        if json.dumps(expected[key]) != json.dumps(actual[key]):
            differing.append(key)
    return differing
