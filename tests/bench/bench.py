"""Speed and memory of training and translation: `make bench`.

Random weights and random pieces, of the lengths of the sample corpus or of `--source` and
`--target`, so that nothing but the work itself is measured: reading, tokenisation and loading are
left out. Translations are as long as their source: random weights hardly ever end one. Each case
has a process of its own, whose memory, with that of all processes it starts, is sampled. Nothing
here passes or fails; machines differ and are noisy, so compare rows of one table only.

With `--pairs N …` whole runs of `tfm train` on so many made-up pairs are measured instead: reading,
learning a tokenizer, preparing and 100 updates.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import tfm_cli
from tfm_cli.config.loading import resolve
from tfm_cli.config.settings import SearchConfig, TrainingConfig
from tfm_cli.corpus.batch import Batch, make_batch
from tfm_cli.corpus.batching import BatchOrder, padding_share
from tfm_cli.corpus.parallel_text import read_pairs
from tfm_cli.corpus.sources import sample_path
from tfm_cli.model.precision import resolve_precision
from tfm_cli.model_directory.weights import build_transformer
from tfm_cli.native.model import NativeModel
from tfm_cli.native.search import NativeSearch, Segments
from tfm_cli.training.batches import MicroBatch, UpdateBatches
from tfm_cli.training.optimizer import MovingAverage, make_optimizer
from tfm_cli.training.parallel_model import ParallelModel
from tfm_cli.training.update import UpdateOptions, update

START_ID, EOS_ID = 2, 3
VOCAB_SIZES = {"tiny": 4000, "base": 32000}
PIECES_A_WORD = 1.4  # as many as a subword model of this size makes of a word, with punctuation
BATCH_SIZES = (16, 32, 64, 128)


def lengths(source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of each side of each pair, </s> included, estimated from words; (num_pairs,) each."""
    pairs = list(read_pairs([source], [target]))
    counted = np.array([[len(side.split()) for side in pair] for pair in pairs])
    estimated = np.maximum(2, np.rint(counted * PIECES_A_WORD)).astype(np.int64) + 1
    return estimated[:, 0], estimated[:, 1]


def random_segments(pieces: np.ndarray, vocab_size: int) -> list[np.ndarray]:
    """Random ids for segments of so many pieces, </s> excluded."""
    random = np.random.default_rng(1)
    return [random.integers(4, vocab_size, count - 1) for count in pieces]


def best_of(times: int, work: Callable[[], int]) -> tuple[int, float]:
    """What `work` counted and the fewest seconds it took."""
    best = float("inf")
    count = 0
    for _ in range(times):
        began = time.perf_counter()
        count = work()
        best = min(best, time.perf_counter() - began)
    return count, best


def tree_mib(pid: int) -> float:
    """Resident memory of a process and of all that it started, as Linux counts it."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(each) for task in tasks for each in (task / "children").read_text().split()]
    except (OSError, IndexError):  # it ended just now
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20) + sum(map(tree_mib, children))


def watched(command: Sequence[str]) -> tuple[bytes, float]:
    """What a command printed, and the most memory that its processes held together."""
    peak = 0.0
    with (
        tempfile.TemporaryFile() as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL) as process,
    ):
        while process.poll() is None:
            peak = max(peak, tree_mib(process.pid))
            time.sleep(0.05)
        out.seek(0)
        printed = out.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return printed, peak


def bench_training(
    preset: str, precision: str, source: np.ndarray, target: np.ndarray
) -> dict[str, float]:
    """Target pieces a second of whole updates, dropout and optimizer included."""
    config = resolve(preset=preset, flags={"data": {"source": ("x",), "target": ("x",)}})
    vocab_size, budget = VOCAB_SIZES[preset], 4096 if preset == "tiny" else 1024
    model = build_transformer(config.model, (vocab_size, vocab_size)).train()
    optimizer = make_optimizer(model, TrainingConfig())
    average = MovingAverage(model, 0.999)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    parallel_model = ParallelModel(model, label_smoothing=0.1, dtype=dtype)
    order = BatchOrder(source, target, max_tokens=budget, seed=1).batches(epoch=0, pool=0)

    def batch(pairs: np.ndarray) -> Batch:
        return make_batch(
            random_segments(source[pairs], vocab_size),
            random_segments(target[pairs], vocab_size),
            start_id=START_ID,
            eos_id=EOS_ID,
        )

    # Enough for batches of many sizes, as a real run has them.
    batches = [batch(pairs) for pairs in order[: 24 if preset == "tiny" else 6]]
    number = 0

    def epoch() -> int:
        nonlocal number
        for one in batches:
            number += 1
            plan = UpdateBatches(0, 0, 0, 1, one.target_tokens, (MicroBatch(0, one),))
            options = UpdateOptions(number=number, learn_rate=1e-7, clip_norm=1.0, seed=1)
            update(parallel_model, plan, optimizer, options)
            average.include(number)
        return sum(one.target_tokens for one in batches)

    epoch()
    pieces, seconds = best_of(2, epoch)
    return {
        "pieces_per_second": pieces / seconds,
        "batch": budget,
        "padding": padding_share(order, source, target),
    }


def tokenizers_of(vocab_size: int) -> Any:
    """Return what the engine asks of tokenizers, for a vocabulary without text."""
    side = SimpleNamespace(
        vocab_size=vocab_size, start_id=START_ID, eos_id=EOS_ID, banned_ids=(), byte_values={}
    )
    return SimpleNamespace(source=side, target=side, vocab_sizes=(vocab_size, vocab_size))


def bench_translation(
    preset: str, source: np.ndarray, *, beam_size: int, batch_size: int
) -> dict[str, float]:
    """Target pieces a second of search, for the lengths of the middle of the corpus."""
    config = resolve(preset=preset, flags={"data": {"source": ("x",), "target": ("x",)}})
    vocab_size = VOCAB_SIZES[preset]
    model = build_transformer(config.model, (vocab_size, vocab_size)).eval()
    search = NativeSearch(
        [NativeModel.from_weights(model.state_dict(), config, tokenizers_of(vocab_size))],
        SearchConfig(beam_size=beam_size),
    )
    number = 8 if batch_size == 1 else (256 if preset == "tiny" else 2 * batch_size)
    middle = np.sort(source)[len(source) // 2 - number // 2 :][:number]
    segments = random_segments(middle, vocab_size)

    def translate() -> int:
        pieces = 0
        for start in range(0, len(segments), batch_size):
            batch = segments[start : start + batch_size]
            found = search(
                Segments(
                    sources=[segment.tolist() for segment in batch],
                    limits=[len(segment) for segment in batch],
                )
            )
            pieces += sum(len(hypotheses[0].ids) + 1 for hypotheses in found)
        return pieces

    pieces, seconds = best_of(2, translate)
    return {
        "pieces_per_second": pieces / seconds,
        "batch": batch_size,
        "milliseconds_per_segment": 1000 * seconds / len(segments),
    }


def run_case(case: str, source: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """One row of the table, in this process."""
    kind, preset, *rest = case.split("/")
    if kind == "train":
        return bench_training(preset, rest[0], source, target)
    beam_size, batch_size = int(rest[0]), int(rest[1])
    return bench_translation(preset, source, beam_size=beam_size, batch_size=batch_size)


def in_own_process(case: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One row of the table, measured by a process of its own."""
    command = [sys.executable, __file__, "--case", case]
    command += ["--source", arguments.source, "--target", arguments.target]
    command += ["--threads", str(arguments.threads)]
    printed, peak = watched(command)
    row: dict[str, float] = json.loads(printed)
    return row | {"peak_mib": peak}


def whole_runs(numbers: Sequence[int]) -> None:
    """Print the time and the most memory of whole runs on so many made-up pairs."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.bench.prepare import Text

    print("\n| pairs | seconds | peak memory |\n|---:|---:|---:|", flush=True)
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            for seed, name in enumerate(("a", "b"), 1):
                Text(seed).write(Path(folder) / name, number)
            command = [sys.executable, "-m", "tfm_cli", "train", "-s", f"{folder}/a", "-t",
                       f"{folder}/b", "-o", f"{folder}/model", "--max-updates", "100"]  # fmt: skip
            began = time.monotonic()
            _, peak = watched(command)
            seconds = time.monotonic() - began
        print(f"| {number:,} | {seconds:.0f} | {peak:.0f} MiB |", flush=True)


def report(arguments: argparse.Namespace) -> None:
    """Measure every case and print a Markdown table as the rows come."""
    machine = f"{platform.machine()}, {arguments.threads} threads"
    print(f"tfm {tfm_cli.__version__}, torch {torch.__version__}, {machine}")
    print("\n| work | batch | target pieces/s | ms a segment | peak memory |")
    print("|---|---:|---:|---:|---:|", flush=True)

    def row(name: str, found: dict[str, float], unit: str) -> None:
        latency = found.get("milliseconds_per_segment")
        shown = f"{latency:.1f}" if latency else ""
        print(
            f"| {name} | {found['batch']:.0f} {unit} | {found['pieces_per_second']:.0f} "
            f"| {shown} | {found['peak_mib']:.0f} MiB |",
            flush=True,
        )

    precisions = ["fp32"]
    if resolve_precision("auto", torch.device("cpu")) == torch.bfloat16:
        precisions.append("bf16")
    else:
        print("| train, bf16 | | this processor has none | | |")
    for preset in ("tiny", "base"):
        for precision in precisions:
            found = in_own_process(f"train/{preset}/{precision}", arguments)
            row(f"train {preset}, {precision}", found, "pieces")
    for preset in ("tiny", "base"):
        for beam_size, name in ((1, "greedy"), (4, "beam 4")):
            alone = in_own_process(f"translate/{preset}/{beam_size}/1", arguments)
            row(f"translate {preset}, {name}", alone, "segment")
            sizes = BATCH_SIZES if preset == "tiny" else BATCH_SIZES[:3]
            tried = [
                in_own_process(f"translate/{preset}/{beam_size}/{size}", arguments)
                for size in sizes
            ]
            best = max(tried, key=lambda found: found["pieces_per_second"])
            row(f"translate {preset}, {name}, best batch", best, "segments")


def main() -> None:
    """Parse the command line and measure one case or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--source", help="text that gives lengths")
    parser.add_argument("--target", help="its translation")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pairs", type=int, nargs="*", default=[], help="measure whole runs")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.source = arguments.source or sample_path("train.en")
    arguments.target = arguments.target or sample_path("train.fr")
    torch.set_num_threads(arguments.threads)
    if not Path(arguments.source).is_file() or not Path(arguments.target).is_file():
        parser.error("--source and --target must be files")
    if arguments.pairs:
        whole_runs(arguments.pairs)
    elif arguments.case:
        source, target = lengths(arguments.source, arguments.target)
        print(json.dumps(run_case(arguments.case, source, target)))
    else:
        report(arguments)


if __name__ == "__main__":
    main()
