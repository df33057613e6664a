"""How much memory `tfm translate` takes, whatever comes in on standard input: `make bench-memory`.

What comes in is made up while it is read: short lines, blank lines, lines of 20 kB and lines of
3.5 MB, of which the first mebibyte is kept. Most of the bytes are in the longest ones, most
of the lines are blank; each of the others is translated. The model is tiny, so that the bytes and
lines are what is measured. Memory is that of all its processes, pages that they share counted once
(PSS), without what is mapped from files. With `--models`, it is the whole memory of translating a
text with each of these models instead, in fp32 and in int8, with each number of workers.
"""

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_WORDS = b"She reads an old book in the small garden and buys some bread . "
_BLOCK = (
    b"She reads an old book.\n\nWhere is the station?\n" * 200
    + b"\n" * 20_000
    + (_WORDS * 320 + b"\n") * 20
    + _WORDS * 55_000
    + b"\n"
)
BLOCK_LINES = _BLOCK.count(b"\n")
_SAMPLE_SECONDS = 0.1
_MODEL = [
    "--set", "model.width=16", "--set", "model.heads=2", "--set", "model.feed_forward_width=32",
    "--set", "model.encoder_layers=1", "--set", "model.decoder_layers=1", "--vocab-size", "300",
    "--set", "tokenizer.byte_fallback=false", "--device", "cpu", "--max-updates", "1",
]  # fmt: skip
_SEARCH = ["--greedy", "--on-long", "cut", "--max-length", "16", "--device", "cpu"]


@dataclass(frozen=True, slots=True)
class Found:
    """What a run took; memory in MiB."""

    megabytes: int
    lines_in: int
    lines_out: int
    seconds: float
    base: float  # when the first lines were answered
    peak: float


def make_model(directory: Path) -> Path:
    """A model that translates badly and fast."""
    model = directory / "model"
    _tfm("train", "--output", str(model), "--quiet", *_MODEL)
    return model


def measure(model: Path, megabytes: int, *, workers: int) -> Found:
    """Translate so many million bytes; more than that by a part of a block."""
    command = [sys.executable, "-m", "tfm_cli", "translate", "--model", str(model), "--quiet"]
    command += [*_SEARCH, "--workers", str(workers)]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    lines_out, seen = [0], [0.0]
    output, ended = process.stdout, threading.Event()

    def drain() -> None:
        while chunk := os.read(output.fileno(), 1 << 16):
            lines_out[0] += chunk.count(b"\n")

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            seen.append(_own_mib(process.pid))

    threads = [threading.Thread(target=work) for work in (drain, sample)]
    process.stdin.write(b"She reads an old book.\n")
    process.stdin.flush()
    threads[0].start()
    while not lines_out[0]:
        time.sleep(_SAMPLE_SECONDS)
    base = _own_mib(process.pid)
    threads[1].start()
    blocks = -(-megabytes * 1_000_000 // len(_BLOCK))
    for _ in range(blocks):
        process.stdin.write(_BLOCK)
    process.stdin.close()
    threads[0].join()
    ended.set()
    threads[1].join()
    output.close()
    if process.wait():
        raise SystemExit(f"it ended with exit code {process.returncode}")
    seconds = time.monotonic() - began
    return Found(megabytes, 1 + blocks * BLOCK_LINES, lines_out[0], seconds, base, max(seen))


def measure_model(model: Path, source: Path, *, precision: str, workers: int) -> float:
    """Return the peak of all memory (PSS) of translating a text, in MiB, with the defaults."""
    command = [sys.executable, "-m", "tfm_cli", "translate", "--model", str(model), "--quiet"]
    command += ["--input", str(source), "--precision", precision, "--workers", str(workers)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(_mib(member, "Pss:") for member in _tree(process.pid)))
        time.sleep(_SAMPLE_SECONDS / 5)
    if process.returncode:
        raise SystemExit(f"it ended with exit code {process.returncode}")
    return peak


def _own_mib(process_id: int) -> float:
    """Memory of a process and its children that is not mapped from files."""
    return sum(_mib(member, "Pss_Anon:") for member in _tree(process_id))


def _mib(process_id: int, name: str) -> float:
    """Return a part of a process's memory; 0 if it has ended."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii")
        return (
            sum(int(line.split()[1]) for line in text.split("\n") if line.startswith(name)) / 1024
        )
    return 0.0


def _tree(process_id: int) -> Iterator[int]:
    yield process_id
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text("ascii")
        for child in children.split():
            yield from _tree(int(child))


def _environment() -> Mapping[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def _tfm(*arguments: str) -> None:
    command = [sys.executable, "-m", "tfm_cli", *arguments]
    subprocess.run(command, cwd=ROOT, env=_environment(), check=True)


def main() -> None:
    """Measure each size in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1], help="numbers of processes")
    parser.add_argument("--models", type=Path, nargs="*", default=[], metavar="DIR")
    parser.add_argument("--lines", type=int, nargs="*", default=[1, 500], help="with --models")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.models:
            _print_models(asked, Path(folder) / "source.txt")
        else:
            _print_sizes(asked, make_model(Path(folder)))


def _print_models(asked: argparse.Namespace, source: Path) -> None:
    text = (ROOT / "data" / "test.en").read_text(encoding="utf-8").splitlines(keepends=True)
    print("model | precision | lines | workers | peak")
    for model, precision in itertools.product(asked.models, ("fp32", "int8")):
        for lines, workers in itertools.product(asked.lines, asked.workers):
            source.write_text("".join(itertools.islice(itertools.cycle(text), lines)), "utf-8")
            peak = measure_model(model, source, precision=precision, workers=workers)
            print(f"{model} | {precision} | {lines:,} | {workers} | {peak:.0f} MiB", flush=True)


def _print_sizes(asked: argparse.Namespace, model: Path) -> None:
    print("standard input | workers | lines | first line answered | peak | seconds")
    for megabytes, workers in itertools.product(asked.megabytes, asked.workers):
        found = measure(model, megabytes, workers=workers)
        assert found.lines_in == found.lines_out
        print(
            f"{megabytes} MB | {workers} | {found.lines_in:,} | {found.base:.0f} MiB | "
            f"{found.peak:.0f} MiB | {found.seconds:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
