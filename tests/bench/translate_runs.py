"""Processes that are measured: what each is asked, and what came back."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from tests.bench.translate_table import Measured
from tests.bench.translate_works import (
    ENVIRONMENTS,
    LIMIT,
    Arrangement,
    Work,
    arrangements,
    usual_arrangement,
)

ROOT = Path(__file__).resolve().parents[2]
PEER_COMMAND = Path(__file__).with_name("ctranslate2_process.py")
SENTENCES = 256
_USAGE = 2  # tfm's exit code for a flag or setting that is none
_SWEPT = 64  # sentences of which a sweep finds the best arrangement


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


class Running:
    """A process of `translate_sides`, which has loaded and waits; or a refusal."""

    def __init__(self, job: dict[str, Any], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.translate_sides"], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.refused: str = self._answer(job).get("refused", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def round(self, *, outputs: bool) -> Measured:
        """Translate once."""
        return Measured.from_json(self._answer({"outputs": outputs}))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


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
            command = [sys.executable, "-m", "tests.bench.translate_models"]
            _run(command, threads=os.cpu_count() or 1, text=json.dumps(job))

    def arrange(self, work: Work, side: Side, *, sweep: bool) -> None:
        """Choose how a side shares out its threads and sentences, by trying all if asked for."""
        side.arrangement = usual_arrangement(
            work, side.name, threads=self._threads, batch=self._batch
        )
        # A command of ours has one way; that of the other side runs as its batches run best.
        if not sweep or work.kind == "line":
            return
        sentences = len(self._work_lines(work))
        usual, tried = side.arrangement, dict[Arrangement, float]()
        environments = ENVIRONMENTS if side.name == "ctranslate2" else ()
        # First how to multiply, and with that how much at once.
        for one in [replace(usual, environment=environment) for environment in environments]:
            tried[one] = self._tried(work, side.name, one)
        environment = max(tried, key=tried.__getitem__, default=usual).environment
        found = arrangements(work, side.name, threads=self._threads, sentences=sentences)
        if len(found) > 1 or found[0] != usual:
            for one in [replace(one, environment=environment) for one in found]:
                if one not in tried:
                    tried[one] = self._tried(work, side.name, one)
        side.arrangement = max(tried, key=tried.__getitem__, default=usual)

    def run(self, work: Work, sides: Sequence[Side], *, rounds: int) -> None:
        """Let the sides do a work by turns, unless one cannot; it has no rounds then."""
        if work.is_command:
            for number in range(rounds):
                for side in _turn(sides, number):
                    if not side.refused:
                        self._run_command(work, side)
            return
        ours, theirs = sides
        with self._running(work, ours) as our_process, self._running(work, theirs) as their_process:
            processes = {ours.name: our_process, theirs.name: their_process}
            for side in sides:
                side.refused = processes[side.name].refused
            for number in range(rounds):
                for side in _turn(sides, number):
                    if not side.refused:
                        side.rounds.append(processes[side.name].round(outputs=number == 0))

    def bleu(self, work: Work, side: Side) -> str:
        """Return the BLEU of a side's translations; nothing where there is no reference."""
        if work.shape != "model" or self._reference is None or not side.rounds:
            return ""
        outputs = list(side.rounds[0].texts)
        output, reference = self._folder / "output.txt", self._folder / "reference.txt"
        _write_lines(output, outputs)
        _write_lines(reference, _read_lines(self._reference)[: len(outputs)])
        command = [sys.executable, "-m", "tfm_cli", "evaluate", str(reference), "-i", str(output)]
        done = _run([*command, "-m", "bleu", "--score-only"], threads=1)
        return done.stdout.strip()

    def _tried(self, work: Work, name: str, one: Arrangement) -> float:
        """Return sentences a second of an arrangement, the better of two runs; 0 if refused."""
        side = Side(name, one)
        if work.is_command:
            self._run_command(work, side)
            found = side.rounds
        else:
            with self._running(work, side, most=_SWEPT) as process:
                count = 0 if process.refused else 2
                found = [process.round(outputs=False) for _ in range(count)]
        rate = max((measured.rate for measured in found), default=0.0)
        told = f"{rate:.1f} sentences/s" if rate else "refused"
        print(f"{work.name}, {name}, {one}: {told}", file=sys.stderr, flush=True)
        return rate

    def _running(self, work: Work, side: Side, *, most: int | None = None) -> Running:
        assert side.arrangement is not None
        arrangement = side.arrangement
        job = {
            "side": side.name,
            "directory": str(self._directory(work, side.name)),
            "precision": self._precision or work.precision,
            "compute_types": work.compute_types,
            "beam_size": work.beam_size,
            "renormalize": work.peer == "ctranslate2",
            "limit": LIMIT if work.is_fixed else 0,
            "workers": arrangement.workers,
            "threads": arrangement.threads,
            "batch": arrangement.batch,
            "one_by_one": work.kind == "one",
            "lines": self._work_lines(work)[: most and max(most, arrangement.batch)],
            "began": time.monotonic(),
        }
        return Running(job, _environment(arrangement))

    def _run_command(self, work: Work, side: Side) -> None:
        """Do one more round of a whole command; or note why it refuses."""
        with tempfile.TemporaryDirectory() as aside:  # others may use the models meanwhile
            self._run_command_in(Path(aside), work, side)

    def _run_command_in(self, aside: Path, work: Work, side: Side) -> None:
        assert side.arrangement is not None
        arrangement = side.arrangement
        lines = self._work_lines(work)
        source, output = aside / "input.txt", aside / "output.txt"
        _write_lines(source, lines)
        directory = str(self._directory(work, side.name))
        precision = self._precision or work.precision
        if side.name == "tfm":
            command = ["-m", "tfm_cli", "translate", "--quiet", "--device", "cpu"]
            command += ["--model", directory, "--input", str(source), "--output", str(output)]
            command += ["--precision", precision, "--workers", str(arrangement.workers)]
            command += ["--greedy"] if work.beam_size == 1 else ["--beam-size", "4"]
            # What CTranslate2 always does.
            command += ["--early-stopping"] if work.beam_size > 1 else []
        else:
            precision = work.compute_types[-1]
            command = [str(PEER_COMMAND), directory, str(source), str(output)]
            command += ["--compute-type", precision, "--workers", str(arrangement.workers)]
            command += ["--threads", str(arrangement.threads)]
            command += ["--batch", str(arrangement.batch or 1), "--beam-size", str(work.beam_size)]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=_environment(arrangement),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        told = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == _USAGE and side.name == "tfm":
            side.refused = told.strip().split("\n")[-1]
            return
        if process.returncode:
            raise RuntimeError(told)
        found = Measured(
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            sentences=len(lines),
            pieces=0,
            load_seconds=0,
            peak_mib=usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10),
            outputs=tuple(_read_lines(output)),
            precision=precision,
        )
        side.rounds.append(found)

    def _home(self, work: Work) -> Path:
        """Return where the model of a work and its exports are."""
        name = f"sample-{self._updates}" if work.shape == "sample" else work.shape
        return self._folder / name

    def _directory(self, work: Work, side: str) -> Path:
        """Return what a side loads."""
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
        if work.kind == "line":
            return lines[:1]
        if work.kind == "process":
            return (lines * -(-self._lines // len(lines)))[: self._lines]
        count = self._sentences or SENTENCES
        # A sentence at a time takes longer.
        return lines[: max(2, count // 16) if work.kind == "one" else count]


def _turn(sides: Sequence[Side], number: int) -> Sequence[Side]:
    """Return the sides in the order of a round: each is first in every other one."""
    return sides[:: -1 if number % 2 else 1]


def _run(
    command: Sequence[str], *, threads: int, text: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = _environment(Arrangement(1, threads, 0))
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done


def _environment(arrangement: Arrangement) -> dict[str, str]:
    own = {**os.environ, "OMP_NUM_THREADS": str(arrangement.threads)}
    own.pop("PYTHONDONTWRITEBYTECODE", None)  # a command whose modules are compiled anew is slow
    return {**own, **dict(arrangement.environment)}


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="\n")
