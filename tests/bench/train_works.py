"""What `train.py` measures: the works by name, the shapes of their models, the sides of each."""

import fnmatch
from dataclasses import dataclass

MAX_TOKENS = 4096  # target pieces in a batch, or near it: see train_pairs.py
MICRO_BATCH = 2048  # what tfm computes at once of them on a CPU
NUM_PAIRS = 29_000  # of the corpus that plans are made for: as many as Multi30k has
PEERS = ("hf", "torch", "joeynmt")
# What makes tfm's updates fast, and the slow way that is taken without it: see train_tricks.py.
TRICK_WAYS = {
    "micro-batches": "the whole batch at once",
    "chunked-loss": "all logits of a micro-batch at once, gradients by autograd",
    "fused-adamw": "AdamW with `foreach`",
    "fused-projection": "query, key and value by a product each",
    "sorted-plan": "batches in random order",
    "own-dropout": "PyTorch's dropout",
    "own-attention": "PyTorch's kernel of attention",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, and how many updates of it a round has where nothing else is asked for."""

    width: int
    layers: int  # of the encoder and of the decoder
    heads: int
    feed_forward_width: int
    vocab_size: int
    updates: int

    def multiply_adds(self, source: int, target: int) -> int:
        """Of the matrix products that read a pair of so many pieces, forward and without padding.

        Every target piece is counted as attending to all of its side: products are made so.
        """
        square, inner = self.width**2, self.width * self.feed_forward_width
        encoder = source * (4 * square + 2 * inner) + 2 * source * source * self.width
        decoder = target * (6 * square + 2 * inner) + source * 2 * square
        decoder += 2 * (target + source) * target * self.width
        return self.layers * (encoder + decoder) + target * self.width * self.vocab_size


SHAPES = {
    "tiny": Shape(128, 4, 4, 256, 4000, updates=12),
    "small": Shape(256, 3, 4, 1024, 8000, updates=6),
    "base": Shape(512, 6, 8, 2048, 32_000, updates=3),
}


@dataclass(frozen=True, slots=True)
class Work:
    """What is measured together; its name is `SHAPE-PRECISION-BATCHING`."""

    shape: str
    precision: str  # fp32, bf16
    batching: str  # own: each side cuts its batches as its users do; same: all as tfm does

    @property
    def name(self) -> str:
        """What `--only` picks it by."""
        return f"{self.shape}-{self.precision}-{self.batching}"


WORKS = tuple(
    Work(shape, precision, batching)
    for shape in SHAPES
    for precision in ("fp32", "bf16")
    for batching in ("own", "same")
)


def picked(patterns: str) -> list[Work]:
    """The works of these names, in the order of the table.

    Args:
        patterns: names with commas between them, in which `*` stands for anything.

    Raises:
        ValueError: a pattern is no work's name.
    """
    names = [work.name for work in WORKS]
    chosen: set[str] = set()
    for pattern in patterns.split(","):
        found = fnmatch.filter(names, pattern)
        if not found:
            raise ValueError(f"no work is called `{pattern}`; there are {', '.join(names)}")
        chosen.update(found)
    return [work for work in WORKS if work.name in chosen]


def picked_names(names: str, known: tuple[str, ...], *, kind: str) -> list[str]:
    """The peers or tricks of these names, with commas between them, in the order of the table.

    Raises:
        ValueError: a name is none of those that are known.
    """
    asked = [name for name in names.split(",") if name]
    for name in asked:
        if name not in known:
            raise ValueError(f"no {kind} is called `{name}`; there are {', '.join(known)}")
    return [name for name in known if name in asked]
