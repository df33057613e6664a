"""The works that `translate.py` measures, by name, and in which arrangements each side may run."""

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

BATCHES = (16, 32, 64, 128)
BEAMS = {"greedy": 1, "beam4": 4}
RANDOM_SHAPES = ("base", "small", "tiny")
# Of random weights every source has 20 tokens, and every translation 30.
SOURCE_PIECES = 20
LIMIT = 30
# Of CTranslate2, which takes neither by itself on every processor where it is the faster one.
INSTRUCTION_SETS = ("AVX512", "AVX2")
ENVIRONMENTS = tuple(
    (("CT2_FORCE_CPU_ISA", instructions), ("CT2_USE_MKL", mkl))
    for instructions, mkl in itertools.product(INSTRUCTION_SETS, ("1", "0"))
)


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the table; its name is `SHAPE-SEARCH-PRECISION` and what else sets it apart."""

    shape: str  # random weights, or model: the user's own; sample: trained on the sample corpus
    search: str  # greedy, beam4
    precision: str  # of tfm
    kind: str = "batch"  # one: a sentence at a time; process, line: a whole command
    peer: str = "ctranslate2"  # or hf

    @property
    def name(self) -> str:
        """Return the name that `--only` picks it by."""
        extras = [] if self.kind == "batch" else [self.kind]
        extras += ["hf"] if self.peer == "hf" else []
        return "-".join([self.shape, self.search, self.precision, *extras])

    @property
    def beam_size(self) -> int:
        """Return the number of hypotheses that are followed at a time."""
        return BEAMS[self.search]

    @property
    def is_fixed(self) -> bool:
        """Return True if every translation has the same length, since none can end by itself."""
        return self.shape in RANDOM_SHAPES and self.kind != "line"

    @property
    def is_command(self) -> bool:
        """Return True if whole commands are measured, start-up included."""
        return self.kind in ("process", "line")

    @property
    def export(self) -> str:
        """Return the folder beside the model that the peer reads."""
        if self.peer == "hf":
            return "hf"
        return "ctranslate2-int8" if self.precision == "int8" else "ctranslate2-fp32"

    @property
    def compute_types(self) -> tuple[str, ...]:
        """Return what CTranslate2 is asked for; the first that this processor has is taken."""
        if self.precision == "int8":
            return ("int8",)
        return ("bfloat16", "float32") if self.precision == "bf16" else ("float32",)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Threads, sentences in a batch, and environment of one side."""

    workers: int
    threads: int  # of each worker
    batch: int  # 0: as the command does by itself
    environment: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        batch = f", batch {self.batch}" if self.batch else ""
        how = "".join(f", {name.removeprefix('CT2_')}={value}" for name, value in self.environment)
        return f"{self.workers}x{self.threads}{batch}{how}"


def _all_works() -> tuple[Work, ...]:
    works = []
    for shape in (*RANDOM_SHAPES, "model"):
        precisions = ("fp32", "int8", "bf16") if shape in ("base", "model") else ("fp32", "int8")
        for kind in ("batch", "one"):
            for precision in precisions:
                if not (kind == "one" and (precision == "bf16" or shape == "model")):
                    works += [Work(shape, search, precision, kind) for search in BEAMS]
    works += [
        Work("sample", search, precision, "process")
        for precision in ("fp32", "int8")
        for search in BEAMS
    ]
    works += [
        Work(shape, "greedy", precision, "line")
        for shape in ("sample", "base")
        for precision in ("fp32", "int8")
    ]
    works.append(Work("base", "beam4", "fp32", peer="hf"))
    return tuple(works)


WORKS = _all_works()


def picked(patterns: str, *, has_model: bool) -> list[Work]:
    """Return the works of these names, in the order of the table.

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
    """Return what is run where no sweep is asked for; `batch` 0 for a usual one."""
    if work.kind in ("one", "line"):
        count = 1 if side == "tfm" else threads  # its search of a batch runs in one thread
        return Arrangement(1, count, 1 if work.kind == "one" else 0)
    size = batch or (64 if work.beam_size == 1 else 32)
    if work.is_command and side == "tfm":
        size = 0
    return Arrangement(1, threads, size) if side == "hf" else Arrangement(threads, 1, size)


def arrangements(work: Work, side: str, *, threads: int, sentences: int) -> Sequence[Arrangement]:
    """Return what a sweep tries: batches, and ways to share threads, which only peers have."""
    splits = [(threads, 1)] if side == "tfm" else [(1, threads), (threads, 1)]
    # Larger batches than there are sentences are all the same.
    batches = [size for size in BATCHES if size <= sentences] or [sentences]
    if side == "hf":
        splits = [(1, threads)]
    if work.kind in ("one", "line"):
        splits = [(1, 1)] if side == "tfm" else [(1, threads)]
        batches = [1 if work.kind == "one" else 0]
    elif work.is_command and side == "tfm":
        batches = [0]
    return [
        Arrangement(workers, count, batch)
        for workers, count in dict.fromkeys(splits)
        for batch in batches
    ]
