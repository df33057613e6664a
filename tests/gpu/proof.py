"""What the GPU does, in eight minutes: `python -m tests.gpu.proof OUT_DIR`.

Tests that need a GPU, equality with the CPU, determinism, training and decoding throughput, and the
handling of a lack of memory. Each section runs in a process of its own with a time limit, and
`OUT_DIR/proof.json` and `OUT_DIR/proof.md` are written anew whenever something is known, so that
whatever fails, hangs or is killed leaves the rest. `--device cpu --tiny` rehearses all of it.

The exit code is 0 if all sections passed, else 1.
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Nothing heavy, and no PyTorch: a broken driver must not break this process.
from tests.gpu.report import Report, Result
from tests.gpu.section import NO_TIME, last_line

ROOT = Path(__file__).resolve().parents[2]
BUDGET_SECONDS = 480.0
MIN_SECONDS = 5.0  # a section that would have less is skipped
_RESERVE_SECONDS = 3.0  # of a section's limit, in which it can end by itself
_KILL_SECONDS = 10.0  # until a killed process has ended
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Section:
    """A section: `function` is `module:name`, `share` its part of the budget."""

    name: str
    title: str
    share: float
    function: str
    about: str
    is_vital: bool = False  # without it, the others are skipped


SECTIONS = (
    Section("machine", "Machine", 20, "tests.gpu.machine_facts:report",
            "What everything was measured on.", is_vital=True),
    Section("tests", "Tests that need a GPU", 70, "tests.gpu.marked_tests:report",
            "`pytest -m gpu`."),
    Section("equality", "Equality with the CPU", 60, "tests.gpu.equality:report",
            "A small trained model on the device and, in fp32, on the CPU: token ids of "
            "translations, logits of the validation pairs, and losses of training from the same "
            "weights without dropout."),
    Section("determinism", "Determinism", 70, "tests.gpu.determinism:report",
            "`tfm train --deterministic` twice, and once killed and resumed: weights, moments, "
            "averages, counters and losses have the same bits."),
    Section("training", "Training throughput", 120, "tests.gpu.throughput:report",
            "Updates of the loop of `tfm train`, without its moving average, on random ids. Real "
            "target tokens are counted, without padding. The share of the peak is the model FLOPs "
            "utilization: 6 FLOPs for each multiply-add of the matrix products of real tokens, "
            "which is 6·N·tokens, with the encoder's N for source tokens and the decoder's and the "
            "output's N for target tokens, plus attention (6·2·T·S·D for each pair, layer and "
            "attention, causal or not), divided by the time and by the rate of the fastest of "
            "many products of two large square matrices in the same process and precision. Layers "
            "are compiled by torch.compile where it is named; training has no CUDA graphs."),
    Section("decoding", "Decoding throughput", 100, "tests.gpu.decoding:report",
            "Random weights; every source has 20 tokens and every translation 30, since </s> is "
            "ruled out. Tokenization is included. Hugging Face is `MarianMTModel.generate` with "
            "the same weights, precision and number of generated tokens."),
    Section("memory", "Lack of memory", 40, "tests.gpu.memory:report",
            "Losses of training where a micro-batch fits into memory, and where memory is capped "
            "so that it does not."),
)  # fmt: skip


class Proof:
    """A run of sections.

    Args:
        directory: where the files go; files of an earlier run are replaced.
        report: what is known so far.
    """

    def __init__(self, directory: Path, report: Report) -> None:
        self._directory = directory
        self._report = report
        self._began = time.monotonic()
        directory.mkdir(parents=True, exist_ok=True)

    def run(self, sections: Sequence[Section]) -> bool:
        """Run all sections, and return True if all passed."""
        results = [Result(each.name, each.title, each.about) for each in sections]
        self._report.results = results
        self._write()
        for index, (section, result) in enumerate(zip(sections, results, strict=True)):
            left = self._report.budget_seconds - (time.monotonic() - self._began)
            shares = sum(each.share for each in sections[index:])
            # What earlier sections did not need is shared out among those that follow.
            result.limit_seconds = min(left, max(MIN_SECONDS, left * section.share / shares))
            if left < MIN_SECONDS:
                result.outcome, result.limit_seconds = NO_TIME, None
            else:
                self._run(section, result)
            self._write()
            print(f"{section.name}: {result.outcome} {result.error}".rstrip(), flush=True)
            if section.is_vital and result.outcome != "passed":
                for each in results[index + 1 :]:
                    each.outcome, each.error = "skipped", f"`{section.name}` did not pass"
                self._write()
                break
        return all(result.outcome == "passed" for result in results)

    def _run(self, section: Section, result: Result) -> None:
        """Run a section in a process, and write the files whenever it has new rows."""
        assert result.limit_seconds is not None
        rows, log = (self._directory / f"{section.name}{end}" for end in (".jsonl", ".log"))
        rows.write_bytes(b"")
        result.outcome = "running"
        self._write()
        job = {
            "device": self._report.device,
            "is_tiny": self._report.is_tiny,
            "seconds": max(1.0, result.limit_seconds - _RESERVE_SECONDS),
            "rows": str(rows.resolve()),
        }
        # A rehearsal may run beside other work, where threads of tiny products wait for each other,
        # and leaves out the compiler, which takes minutes there.
        rehearsal = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
        environment = {**os.environ, **(rehearsal if self._report.is_tiny else {})}
        began = time.monotonic()
        with log.open("wb") as stream:
            # It ends with this process: its standard input is a pipe that nothing is written to.
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.section", section.function, json.dumps(job)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=stream, stderr=stream,
                start_new_session=True, env=environment,
            )  # fmt: skip
            try:
                size = 0
                while process.poll() is None and time.monotonic() - began < result.limit_seconds:
                    time.sleep(_POLL_SECONDS)
                    if rows.stat().st_size > size:
                        size = rows.stat().st_size
                        result.seconds = time.monotonic() - began
                        _read(rows, result)
                        self._write()
            finally:
                is_late = process.poll() is None
                # Also what it started; a group whose processes have all ended is no more.
                _kill_group(process.pid)
                try:
                    code = process.wait(_KILL_SECONDS)
                except subprocess.TimeoutExpired:  # it is inside a driver that does not return
                    code = -signal.SIGKILL
                assert process.stdin is not None
                process.stdin.close()
        result.seconds = time.monotonic() - began
        _read(rows, result)
        _judge(result, code, log.read_text(encoding="utf-8", errors="replace"), is_late=is_late)

    def _write(self) -> None:
        self._report.seconds = time.monotonic() - self._began
        self._report.write(self._directory)


def _kill_group(number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them have ended
        os.killpg(number, signal.SIGKILL)


def _read(rows: Path, result: Result) -> None:
    """Read what a section has written so far, except for lines that are not complete."""
    parsed: list[dict[str, Any]] = []
    for text in rows.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            parsed.append(json.loads(text))
    result.rows = [line["row"] for line in parsed if "row" in line]
    for line in parsed:
        result.peak_mib = line.get("peak_mib", result.peak_mib)
        result.peak_device_mib = line.get("peak_device_mib", result.peak_device_mib)


def _judge(result: Result, code: int, log: str, *, is_late: bool) -> None:
    """Set the outcome of a section whose process has ended."""
    failed = [row for row in result.rows if row.get("holds") is False]
    if is_late:
        result.outcome = "timed out"
        result.error = f"not done within {result.limit_seconds:.0f} seconds"
    elif code < 0:
        result.outcome = "killed"
        result.error = last_line(log) or signal.Signals(-code).name
    elif code > 0:
        result.outcome = "failed"
        result.error = last_line(log) or f"exit code {code}"
    elif failed:
        result.outcome = "failed"
        result.error = str(failed[0].get("error") or f"{len(failed)} of the checks do not hold")
    elif late := [row for row in result.rows if row.get("error") == NO_TIME]:
        result.outcome = "passed in part"
        result.error = f"{NO_TIME} for {len(late)} of {len(result.rows)} rows"
    else:
        result.outcome = "passed"


def main() -> int:
    """Parse the command line and run the sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [section.name for section in SECTIONS]
    parser.add_argument("directory", type=Path, metavar="OUT_DIR")
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"),
        help="CUDA_VISIBLE_DEVICES selects one of several GPUs (default: cuda)",
    )  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny sizes")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_SECONDS, metavar="SECONDS",
        help="for all sections (default: 480)",
    )  # fmt: skip
    parser.add_argument(
        "--only", default=",".join(names), metavar="NAMES",
        help=f"sections with commas between them, of {', '.join(names)} (default: all)",
    )  # fmt: skip
    arguments = parser.parse_args()
    asked = arguments.only.split(",")
    if unknown := set(asked) - set(names):
        parser.error(f"no section is called `{min(unknown)}`; there are {', '.join(names)}")
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("on a CPU there is only the rehearsal: use --tiny")
    report = Report(
        device=arguments.device,
        is_tiny=arguments.tiny,
        budget_seconds=arguments.budget,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    proof = Proof(arguments.directory, report)
    return 0 if proof.run([each for each in SECTIONS if each.name in asked]) else 1


if __name__ == "__main__":
    sys.exit(main())
