"""How fast text becomes piece ids, against SentencePiece alone, and how much memory that takes.

Text is made up here: lines of 120 bytes on average, of words that are as frequent as words are.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the path comes first

from tfm_cli.config.settings import TokenizerConfig  # noqa: E402
from tfm_cli.corpus.filters import Filters  # noqa: E402
from tfm_cli.corpus.parallel_text import read_corpus  # noqa: E402
from tfm_cli.corpus.prepare import cached_store, prepare  # noqa: E402
from tfm_cli.corpus.sources import CorpusFile, aligned_files  # noqa: E402
from tfm_cli.tokenizer.pair import TokenizerPair  # noqa: E402
from tfm_cli.tokenizer.tokenizer import Tokenizer  # noqa: E402
from tfm_cli.tokenizer.training import draw_sample, train_tokenizer  # noqa: E402

FILTERS = Filters(256)
_LINES = 600_000  # of both sides; with fewer, starting processes would be what is measured
_WORDS, _HALVES, _AT_A_TIME = 30_000, 100_000, 100_000


class Text:
    """Made-up lines; a class because the words and half-lines are made once."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "en", "ar")]
        words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(_WORDS)]
        weights = [1 / (rank + 2) for rank in range(_WORDS)]
        drawn = iter(chance.choices(words, weights, k=_HALVES * 10))
        self._halves = [
            " ".join(next(drawn) for _ in range(chance.randint(5, 13)))
            for _ in range(int(_HALVES * 0.98))
        ]
        self._random = np.random.Generator(np.random.PCG64(seed))

    def write(self, path: Path, num_lines: int) -> None:
        """Write so many lines into a file."""
        halves = self._halves
        with path.open("w", encoding="utf-8") as stream:
            for first in range(0, num_lines, _AT_A_TIME):
                count = min(_AT_A_TIME, num_lines - first)
                left, right = self._random.integers(len(halves), size=(2, count)).tolist()
                both = zip(left, right, strict=True)
                stream.writelines(f"{halves[i]} {halves[j]}\n" for i, j in both)


def peak_mib(workers: int) -> float:
    """Most memory that was held so far: of this process, and of each that it started, at most."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    each = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + workers * each) / 1024


def own_mib() -> float:
    """Memory that this process holds now and that no file backs; 0 where nobody tells."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").split("\n") if status.exists() else []
    return sum(float(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds that passed, and seconds of all processors."""

    def busy() -> float:
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        used = [resource.getrusage(one) for one in who]
        return sum(one.ru_utime + one.ru_stime for one in used)

    began, before = time.monotonic(), busy()
    work()
    return time.monotonic() - began, busy() - before


def speeds(files: tuple[CorpusFile, ...], tokenizers: TokenizerPair, rounds: int) -> None:
    """Print SentencePiece's speed and ours, by turns, on the files over and over again."""
    pairs = list(read_corpus(files))
    files *= max(1, _LINES // (2 * len(pairs)))
    pairs *= len(files)
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]

    def alone() -> None:
        for tokenizer, lines in zip((tokenizers.source, tokenizers.target), sides, strict=True):
            for first in range(0, len(lines), 4096):
                tokenizer.encode(lines[first : first + 4096], threads=1)

    def prepared(workers: int) -> Callable[[], None]:
        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                prepare(files, tokenizers, FILTERS, Path(folder) / "store", workers=workers)

        return work

    works = {"SentencePiece alone": alone, "1 process": prepared(1), "2 processes": prepared(2)}
    print(f"{2 * len(pairs)} lines; lines/s, and lines for each second of a core")
    for number in range(rounds):
        base = 0.0
        for name, work in works.items():
            seconds, busy = measured(work)
            base = base or 2 * len(pairs) / busy
            per_core = 2 * len(pairs) / busy
            print(f"round {number + 1}  {name:20s} {2 * len(pairs) / seconds:9.0f} "
                  f"{per_core:9.0f}  ratio {per_core / base:.2f}", flush=True)  # fmt: skip


def memory(directory: Path, num_pairs: int, workers: int) -> None:
    """Print time and memory of a first and of a second start on so many pairs."""
    for path, seed in ((directory / "big.a", 1), (directory / "big.b", 2)):
        Text(seed).write(path, num_pairs)
    size = (directory / "big.a").stat().st_size / 1e9
    print(f"{num_pairs} pairs, {size:.2f} GB a side")
    for what in ("sample", "first", "second"):
        arguments = [sys.executable, __file__, "--part", what, "--folder", str(directory),
                     "--workers", str(workers)]  # fmt: skip
        found = json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE).stdout)
        told = f"peak {found['peak_mib']:5.0f} MiB, {found['own_mib']:4.0f} without mapped files"
        print(f"  {found['what']:45s} {found['seconds']:8.1f} s  {told}", flush=True)
    for path in (directory / "big.a", directory / "big.b"):
        path.unlink()


def part(what: str, directory: Path, workers: int) -> None:
    """One of the measurements of `memory`, in a process of its own."""
    files = aligned_files([str(directory / "big.a")], [str(directory / "big.b")])
    began = time.monotonic()
    if what == "sample":

        def lines() -> Iterator[str]:
            for pair in read_corpus(files):
                yield from pair

        draw_sample(lines(), max_lines=1_000_000, seed=1)
        told = "lines drawn to learn a tokenizer from"
    else:
        tokenizers = TokenizerPair.joint(Tokenizer.load(directory / "tokenizer.model"))
        store, _ = cached_store(
            directory / "cache", files, tokenizers, FILTERS,
            weights=(), workers=workers,
        )  # fmt: skip
        chosen = np.random.Generator(np.random.PCG64(1)).permutation(len(store))[:10_000]
        store.source.gather(chosen)
        store.target.gather(chosen)
        told = f"{what} start, to the first 10,000 pairs"
    seconds = time.monotonic() - began
    peak = peak_mib(workers if what == "first" else 0)
    print(json.dumps({"what": told, "seconds": seconds, "peak_mib": peak, "own_mib": own_mib()}))


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", help="text for the speeds; by default made up")
    parser.add_argument("--target", help="its translation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, nargs="*", default=[], help="measure memory for these")
    parser.add_argument("--workers", type=int, default=2, help="processes of that measurement")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        part(asked.part, asked.folder, asked.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        source, target = asked.source, asked.target
        if not source:
            source, target = str(directory / "some.a"), str(directory / "some.b")
            Text(3).write(Path(source), 100_000)
            Text(4).write(Path(target), 100_000)
        files = aligned_files([source], [target])
        lines = (line for pair in read_corpus(files) for line in pair)
        settings = TokenizerConfig(vocab_size=8000, input_sentence_size=50_000)
        model = train_tokenizer(lines, settings, seed=1, soft_limit=True)
        (directory / "tokenizer.model").write_bytes(model)
        if asked.rounds:
            speeds(files, TokenizerPair.joint(Tokenizer(model)), asked.rounds)
        for num_pairs in asked.pairs:
            memory(directory, num_pairs, asked.workers)


if __name__ == "__main__":
    main()
