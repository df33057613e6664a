"""Translation against CTranslate2 and Hugging Face: `make bench-translate`.

The same weights, lines and rules of search on both sides, by turns, each side in a process of its
own that is bound to as many cores as threads were asked for. `base`, `small` and `tiny` have random
weights whose translations cannot end before 30 tokens; `model` is your own, with BLEU beside its
speed; `sample` learns the sample corpus and is run as a whole command, start-up included, on many
lines or on one. Ratios above 1 mean that tfm was faster; they are of the processors' time, and the
one by the clock stands last. With `--arrangements` each side first runs in all its ways: batches,
and CTranslate2 with each instruction set, with MKL and without. Nothing here passes or fails;
machines differ and are noisy, so compare what stands in one row.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Nothing heavy: a process hands the peak of its memory on to those that it starts.
import tfm_cli  # noqa: E402 - the path comes first
from tests.bench.machine import bind, package_version, processor  # noqa: E402
from tests.bench.translate_runs import Bench, Side  # noqa: E402
from tests.bench.translate_table import ABSENT, HEADING, agreement, row  # noqa: E402
from tests.bench.translate_works import WORKS, Work, picked  # noqa: E402


def compare(bench: Bench, work: Work, *, rounds: int, sweep: bool) -> str:
    """The row of one work."""
    sides = [Side("tfm"), Side(work.peer)]
    for side in sides:
        bench.arrange(work, side, sweep=sweep)
    bench.run(work, sides, rounds=rounds)
    ours, theirs = sides
    outputs = ""
    if ours.rounds and theirs.rounds:
        outputs = agreement(ours.rounds[0].outputs, theirs.rounds[0].outputs)
    scores = [bench.bleu(work, side) for side in sides]
    if any(scores):
        bleu = f"BLEU {' / '.join(score or ABSENT for score in scores)}"
        outputs = "; ".join(filter(None, [outputs, bleu]))
    settings = "<br>".join(f"{side.name}: {side}" for side in sides)
    return row(work.name, settings, ours.rounds, theirs.rounds, outputs=outputs)


def report(arguments: argparse.Namespace, works: Sequence[Work], folder: Path) -> None:
    """Measure every work and print a Markdown table as its rows come."""
    bench = Bench(
        folder,
        threads=arguments.threads,
        sentences=arguments.sentences,
        lines=arguments.lines,
        updates=arguments.updates,
        batch=arguments.batch,
        precision=arguments.precision,
        model=arguments.model,
        source=arguments.source,
        reference=arguments.reference,
    )
    names = ("ctranslate2", "transformers")
    versions = ", ".join(f"{name} {package_version(name)}" for name in names)
    print(f"tfm {tfm_cli.__version__}, {versions}; {processor()}, {arguments.threads} threads\n")
    bench.prepare(works)
    print(HEADING, flush=True)
    bind(arguments.threads)
    for work in works:
        line = compare(bench, work, rounds=arguments.rounds, sweep=arguments.arrangements)
        print(line, flush=True)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--only", default="", help="works with commas between them; `*` stands for anything")
    add("--list", action="store_true", help="print the names of the works")
    add("--rounds", type=int, default=3, help="how often each side runs (default: 3)")
    add("--threads", type=int, default=1, help="cores that a side may use (default: 1)")
    add("--sentences", type=int, help="to translate (default: 256; all of --source)")
    add("--lines", type=int, default=10_000, help="of a whole command (default: 10000)")
    add("--arrangements", action="store_true", help="first look for the best of each side")
    add("--batch", type=int, default=0, help="sentences in a batch, where nothing is looked for")
    add("--precision", default="", help="of tfm, instead of what the work's name says")
    add("--updates", type=int, default=400, help="that `sample` learns (default: 400)")
    add("--quick", action="store_true", help="one round of a few sentences, to see that it works")
    add("--keep", type=Path, metavar="DIR", help="keep models and exports there, and use them")
    add("--model", type=Path, metavar="DIR", help="a model directory, for the works `model-*`")
    add("--source", type=Path, metavar="FILE", help="what it translates")
    add("--reference", type=Path, metavar="FILE", help="the right translations, for BLEU")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(work.name for work in WORKS))
        return
    if arguments.quick:
        arguments.rounds, arguments.sentences = 1, arguments.sentences or 16
        arguments.lines, arguments.updates = min(arguments.lines, 200), 10
    try:
        has_model = arguments.model is not None and arguments.source is not None
        works = picked(arguments.only, has_model=has_model)
    except ValueError as error:
        parser.error(str(error))
    with _folder(arguments.keep) as folder:
        report(arguments, works, folder)


if __name__ == "__main__":
    main()
