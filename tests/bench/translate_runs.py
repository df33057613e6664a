"""Processes that are measured: what each is asked, and what came back."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.translate_table import Measured
from tests.bench.translate_works import (
    LENGTH_FACTOR,
    LIMIT,
    SOURCE_PIECES,
    Arrangement,
    Work,
    arrangements,
    usual_arrangement,
)

ROOT = Path(__file__).resolve().parents[2]
PEER_COMMAND = Path(__file__).with_name("ctranslate2_process.py")
PIECES_A_WORD = 1.4  # as in bench.py
SENTENCES = 256
_USAGE = 2  # tfm's exit code for a flag or setting that is none


@dataclass(slots=True)
class Side:
    """One side of a work while it is measured."""

    name: str
    arrangement: Arrangement | None = None
    rounds: list[Measured] = field(default_factory=list)
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"not there yet: {self.refused}"
        precision = self.rounds[0].precision if self.rounds else ""
        return ", ".join(filter(None, [precision, str(self.arrangement)]))


class Bench:
    """Models in a folder, lines, and what is the same for all works."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int,
        sentences: int | None,
        lines: int,
        updates: int,
        batch: int,
        precision: str,
        model: Path | None,
        source: Path | None,
        reference: Path | None,
    ) -> None:
        self._folder = folder
        self._threads = threads
        self._sentences = sentences
        self._lines = lines
        self._updates = updates
        self._batch = batch
        self._precision = precision
        self._model = model.resolve() if model else None
        self._source = source.resolve() if source else None
        self._reference = reference.resolve() if reference else None

    def prepare(self, works: Sequence[Work]) -> None:
        """Make the models of these works, and what the other sides read, where they are not."""
        for shape in dict.fromkeys(work.shape for work in works):
            own = [work for work in works if work.shape == shape]
            job = {
                "shape": shape,
                "folder": str(self._home(own[0])),
                "model": str(self._directory(own[0], "tfm")),
                "exports": sorted({work.export for work in own}),
                "updates": self._updates,
            }
            _ask("tests.bench.translate_models", job, threads=os.cpu_count() or 1)

    def arrange(self, work: Work, side: Side, *, sweep: bool) -> None:
        """Choose how a side shares out its threads and sentences, by trying all if asked for."""
        usual = usual_arrangement(work, side.name, threads=self._threads, batch=self._batch)
        side.arrangement = usual
        if not sweep:
            return
        sentences = len(self._work_lines(work))
        best = 0.0
        for one in arrangements(work, side.name, threads=self._threads, sentences=sentences):
            found = self._measured(work, side.name, one, check=False)
            if isinstance(found, Measured) and found.rate > best:
                side.arrangement, best = one, found.rate
            told = f"{found.rate:.1f} sentences/s" if isinstance(found, Measured) else found
            print(f"{work.name}, {side.name}, {one}: {told}", file=sys.stderr, flush=True)

    def run(self, work: Work, side: Side, *, number: int) -> None:
        """One more round of a side, unless it cannot do the work."""
        if side.refused:
            return
        assert side.arrangement is not None
        found = self._measured(work, side.name, side.arrangement, check=number == 0)
        if isinstance(found, Measured):
            side.rounds.append(found)
        else:
            side.refused = found

    def bleu(self, work: Work, side: Side) -> str:
        """The BLEU of what a side said; empty where there is no reference."""
        if work.shape != "model" or self._reference is None or not side.rounds:
            return ""
        outputs = [hypotheses[0] for hypotheses in side.rounds[0].outputs]
        output, reference = self._folder / "output.txt", self._folder / "reference.txt"
        _write_lines(output, outputs)
        _write_lines(reference, _read_lines(self._reference)[: len(outputs)])
        command = [sys.executable, "-m", "tfm_cli", "evaluate", str(reference), "-i", str(output)]
        done = _run([*command, "-m", "bleu", "--score-only"], threads=1)
        return done.stdout.strip()

    def _measured(
        self, work: Work, side: str, arrangement: Arrangement, *, check: bool
    ) -> Measured | str:
        """What a process measured, or why it refused."""
        if work.kind == "process":
            return self._whole_process(work, side, arrangement)
        lines = self._work_lines(work)
        words = sum(len(line.split()) for line in lines) / len(lines)
        job = {
            "side": side,
            "directory": str(self._directory(work, side)),
            "precision": self._precision or work.precision,
            "compute_types": work.compute_types,
            "beam_size": work.beam_size,
            "renormalize": work.peer == "ctranslate2",
            "limit": LIMIT if work.is_fixed else 0,
            "length_factor": LENGTH_FACTOR if work.is_fixed else 3.0,
            # With </s>.
            "source_length": 1 + (SOURCE_PIECES if work.is_fixed else words * PIECES_A_WORD),
            "workers": arrangement.workers,
            "threads": arrangement.threads,
            "batch": arrangement.batch,
            "one_by_one": work.kind == "one",
            "lines": lines,
            "check": check,
            "began": time.monotonic(),
        }
        found = _ask("tests.bench.translate_sides", job, threads=arrangement.threads)
        return str(found["refused"]) if "refused" in found else Measured.from_json(found)

    def _whole_process(self, work: Work, side: str, arrangement: Arrangement) -> Measured | str:
        lines = self._work_lines(work)
        source, output = self._folder / "input.txt", self._folder / "output.txt"
        _write_lines(source, lines)
        directory = str(self._directory(work, side))
        precision = self._precision or work.precision
        if side == "tfm":
            command = ["-m", "tfm_cli", "translate", "--greedy", "--quiet", "--device", "cpu"]
            command += ["--model", directory, "--input", str(source), "--output", str(output)]
            command += ["--precision", precision, "--workers", str(arrangement.workers)]
        else:
            precision = work.compute_types[-1]
            command = [str(PEER_COMMAND), directory, str(source), str(output)]
            command += ["--compute-type", precision, "--workers", str(arrangement.workers)]
            command += ["--threads", str(arrangement.threads), "--batch", str(arrangement.batch)]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=_environment(arrangement.threads),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        told = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == _USAGE and side == "tfm":
            return told.strip().split("\n")[-1]
        if process.returncode:
            raise RuntimeError(told)
        return Measured(
            seconds=seconds,
            sentences=len(lines),
            pieces=0,
            load_seconds=0,
            peak_mib=usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10),
            outputs=tuple((line,) for line in _read_lines(output)),
            precision=precision,
        )

    def _home(self, work: Work) -> Path:
        """Where the model of a work and its exports are."""
        name = f"tiny-{self._updates}" if work.shape == "tiny" else work.shape
        return self._folder / name

    def _directory(self, work: Work, side: str) -> Path:
        """What a side loads."""
        if side != "tfm":
            return self._home(work) / work.export
        if work.shape == "model":
            assert self._model is not None
            return self._model
        return self._home(work) / "tfm"

    def _work_lines(self, work: Work) -> list[str]:
        if work.shape == "model":
            assert self._source is not None
            return _read_lines(self._source)[: self._sentences]
        lines = _read_lines(self._home(work) / "source.txt")
        if work.kind == "process":
            return (lines * -(-self._lines // len(lines)))[: self._lines]
        count = self._sentences or SENTENCES
        # A sentence at a time takes longer.
        return lines[: max(2, count // 16) if work.kind == "one" else count]


def _ask(module: str, job: dict[str, Any], *, threads: int) -> dict[str, Any]:
    """What a module of ours answers to a job, in a process of its own."""
    done = _run([sys.executable, "-m", module], threads=threads, text=json.dumps(job))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _run(
    command: Sequence[str], *, threads: int, text: str = ""
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=ROOT, env=_environment(threads)
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="\n")
