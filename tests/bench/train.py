"""Training updates against peers: `make bench-train`.

tfm's update loop beside Hugging Face's MarianMTModel, torch.nn.Transformer and JoeyNMT, each in a
plain loop: the same shapes, the same pairs of random ids with lengths like Multi30k's, AdamW,
dropout, label smoothing and clipping alike. `own` works cut batches as each side's users do, for
about 4096 target pieces a batch, among which JoeyNMT counts padding; in `same` works all sides
learn from tfm's batches. Each side has a process of its own, which makes an update to warm up and
then, by turns, the updates of a round.

Pieces a second are source and target pieces, padding left out; ratios above 1 say that tfm was
faster. Memory is the peak of the process. Losses are those of a few pairs without dropout, before
the first update and after the last. Of the GEMM peak: the products' multiplications and additions
for real pieces (backward counted as twice forward, attention to all pieces of a side, nothing else
counted), against those of a product of two 2048 x 2048 matrices in the same round and precision.
Nothing here passes or fails; machines differ and are noisy, so compare rows of one work only.

--tricks measures tfm against itself with one trick left out at a time.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Nothing heavy: a process hands the peak of its memory on to those that it starts.
import tfm_cli  # noqa: E402 - the path comes first
from tests.bench.machine import bind, package_version, processor  # noqa: E402
from tests.bench.train_runs import job, measured  # noqa: E402
from tests.bench.train_table import HEADING, TRICK_HEADING, Side, rows, trick_row  # noqa: E402
from tests.bench.train_works import (  # noqa: E402
    PEERS,
    TRICK_WAYS,
    WORKS,
    Work,
    picked,
    picked_names,
)

Jobs = Callable[..., dict[str, Any]]
Result = dict[str, Any]


def compared(work: Work, arguments: argparse.Namespace, asked: Jobs) -> Iterator[Result]:
    """The rows of a work, and what they were made of."""
    peers = picked_names(arguments.peers, PEERS, kind="peer")
    names = ["tfm", *peers, "gemm"]
    sides = measured({name: asked(work, name) for name in names}, rounds=arguments.rounds)
    print(rows(work.name, sides["tfm"], [sides[name] for name in peers], sides["gemm"]), flush=True)
    yield _result(work, sides)


def tricks(work: Work, arguments: argparse.Namespace, asked: Jobs) -> Iterator[Result]:
    """The rows of all tricks on a work, and what they were made of."""
    for name in picked_names(arguments.tricks, tuple(TRICK_WAYS), kind="trick"):
        jobs = {"tfm": asked(work, "tfm"), "without": asked(work, "tfm", without=name)}
        sides = measured(jobs, rounds=arguments.rounds)
        line = trick_row(work.name, name, TRICK_WAYS[name], sides["tfm"], sides["without"])
        print(line, flush=True)
        yield {**_result(work, sides), "trick": name}


def _result(work: Work, sides: dict[str, Side]) -> Result:
    return {
        "work": work.name,
        "sides": [dataclasses.asdict(side) for side in sides.values()],
    }


def report(arguments: argparse.Namespace, works: Sequence[Work]) -> None:
    """Measure every work and print a Markdown table as its rows come."""

    def asked(work: Work, side: str, *, without: str = "") -> dict[str, Any]:
        return job(
            work,
            side,
            updates=arguments.updates,
            threads=arguments.threads,
            slow_bf16=arguments.slow_bf16,
            without=without,
        )

    names = ("torch", "transformers", "joeynmt")
    versions = ", ".join(f"{name} {package_version(name)}" for name in names)
    machine = f"{processor()}, {arguments.threads} threads"
    print(f"tfm {tfm_cli.__version__}, {versions}; {machine}\n")
    print(TRICK_HEADING if arguments.tricks else HEADING, flush=True)
    bind(arguments.threads)
    results: list[Result] = []
    for work in works:
        for result in (tricks if arguments.tricks else compared)(work, arguments, asked):
            results.append(result)
            if arguments.json is not None:  # what is there so far, should it be stopped
                table = {"machine": machine, "versions": versions, "works": results}
                arguments.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--only", default="*", help="works with commas between them; `*` stands for anything")
    add("--list", action="store_true", help="print the names of the works")
    add("--rounds", type=int, default=3, help="how often each side runs (default: 3)")
    add("--threads", type=int, default=2, help="cores that a side may use (default: 2)")
    add("--updates", type=int, default=0, help="of a round (default: 12 tiny, 6 small, 3 base)")
    add("--peers", default=",".join(PEERS), help="with commas between them (default: all)")
    add("--tricks", nargs="?", const=",".join(TRICK_WAYS), default="", metavar="NAMES",
        help="measure these tricks of tfm instead (default: all)")  # fmt: skip
    add("--slow-bf16", action="store_true", help="bf16 on a processor that is slow with it, too")
    add("--json", type=Path, metavar="FILE", help="write all that was measured there")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(work.name for work in WORKS))
        return
    try:
        picked_names(arguments.peers, PEERS, kind="peer")
        picked_names(arguments.tricks, tuple(TRICK_WAYS), kind="trick")
        works = picked(arguments.only)
    except ValueError as error:
        parser.error(str(error))
    report(arguments, works)


if __name__ == "__main__":
    main()
