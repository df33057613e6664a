"""What `translate.py` measures: the works by name, and in which arrangements each side may run."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

BATCHES = (16, 32, 64, 128)
BEAMS = {"greedy": 1, "beam4": 4}
RANDOM_SHAPES = ("base", "small")
# Of random weights every source has 20 pieces, and with `search.max_length_factor` = 1 every
# translation 30: what `output_limit` says.
SOURCE_PIECES = 20
LENGTH_FACTOR = 1.0
LIMIT = 30


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the table; its name is `SHAPE-SEARCH-PRECISION` and what else sets it apart."""

    shape: str  # base, small: random weights; model: the user's own; tiny: of the sample corpus
    search: str  # greedy, beam4
    precision: str  # of tfm
    kind: str = "batch"  # batch; one: a sentence at a time; process: whole commands
    peer: str = "ctranslate2"  # or hf

    @property
    def name(self) -> str:
        """What `--only` picks it by."""
        extras = ["one"] if self.kind == "one" else []
        extras += ["process"] if self.kind == "process" else []
        extras += ["hf"] if self.peer == "hf" else []
        return "-".join([self.shape, self.search, self.precision, *extras])

    @property
    def beam_size(self) -> int:
        """Hypotheses that are followed at a time."""
        return BEAMS[self.search]

    @property
    def is_fixed(self) -> bool:
        """Whether every translation has the same length, since none can end by itself."""
        return self.shape in RANDOM_SHAPES

    @property
    def export(self) -> str:
        """What the peer reads: a folder beside the model."""
        if self.peer == "hf":
            return "hf"
        return "ctranslate2-int8" if self.precision == "int8" else "ctranslate2-fp32"

    @property
    def compute_types(self) -> tuple[str, ...]:
        """What CTranslate2 is asked for; the first that this processor can do is taken."""
        if self.precision == "int8":
            return ("int8",)
        return ("bfloat16", "float32") if self.precision == "bf16" else ("float32",)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How a side shares out its threads, and how many sentences it translates together."""

    workers: int
    threads: int  # of each worker
    batch: int  # 0: as the command does by itself

    def __str__(self) -> str:
        batch = f", batch {self.batch}" if self.batch else ""
        return f"{self.workers}x{self.threads}{batch}"


def _all_works() -> tuple[Work, ...]:
    works = []
    for shape in (*RANDOM_SHAPES, "model"):
        precisions = ("fp32", "int8") if shape == "small" else ("fp32", "int8", "bf16")
        for kind in ("batch", "one"):
            for precision in precisions:
                if not (kind == "one" and (precision == "bf16" or shape == "model")):
                    works += [Work(shape, search, precision, kind) for search in BEAMS]
    works += [Work("tiny", "greedy", precision, "process") for precision in ("fp32", "int8")]
    works.append(Work("base", "beam4", "fp32", peer="hf"))
    return tuple(works)


WORKS = _all_works()


def picked(patterns: str, *, has_model: bool) -> list[Work]:
    """The works of these names, in the order of the table.

    Args:
        patterns: names with commas between them, in which `*` stands for anything; empty for all.
        has_model: whether there is a model of the user's.

    Raises:
        ValueError: a pattern is no work's name, or that of one that needs a model.
    """
    names = [work.name for work in WORKS if has_model or work.shape != "model"]
    if not patterns:
        return [work for work in WORKS if work.name in names]
    chosen: set[str] = set()
    for pattern in patterns.split(","):
        found = fnmatch.filter(names, pattern)
        if not found and fnmatch.filter([work.name for work in WORKS], pattern):
            raise ValueError(f"`{pattern}` needs `--model` and `--source`")
        if not found:
            raise ValueError(f"no work is called `{pattern}`; there are {', '.join(names)}")
        chosen.update(found)
    return [work for work in WORKS if work.name in chosen]


def usual_arrangement(work: Work, side: str, *, threads: int, batch: int = 0) -> Arrangement:
    """What is run where no sweep looks for something better; `batch` 0 for a usual one."""
    if work.kind == "one":
        return Arrangement(1, threads, 1)
    size = batch or (64 if work.beam_size == 1 else 32)
    if work.kind == "process" and side == "tfm":
        size = 0
    return Arrangement(1, threads, size) if side == "hf" else Arrangement(threads, 1, size)


def arrangements(work: Work, side: str, *, threads: int, sentences: int) -> Sequence[Arrangement]:
    """All that a sweep tries: batches, and one worker of all threads against one thread each."""
    splits = [(1, threads)]
    if threads > 1 and side != "ctranslate2":
        splits.append((1, 1))  # on a busy machine two threads are slower than one
    if work.kind == "one":
        return [Arrangement(1, count, 1) for count in sorted({1, threads})]
    if threads > 1 and side != "hf":
        splits.append((threads, 1))
    # Larger batches than there are sentences are all the same.
    batches = [size for size in BATCHES if size <= sentences] or [sentences]
    if work.kind == "process" and side == "tfm":
        batches = [0]
    return [Arrangement(workers, count, batch) for workers, count in splits for batch in batches]
