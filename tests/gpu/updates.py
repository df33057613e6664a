"""Updates of training on a device, for the sections that measure or compare them."""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tests.bench.train_pairs import Lengths, Plan, draw_store, representative, tfm_plan
from tests.bench.train_sides import SETTINGS, Tfm
from tests.bench.train_works import Shape
from tfm_cli.corpus.store import CorpusStore

# An assumption about WMT's English and German in 37,000 joint pieces, not a measurement: 29 ± 17
# and 31 ± 18 tokens, </s> included.
WMT = Lengths((3.23, 3.27), (0.55, 0.55), 0.9, longest=256)


@dataclass(frozen=True, slots=True)
class Batches:
    """A few batches of random pairs with WMT's lengths, as the plan of a corpus has on average."""

    store: CorpusStore
    chosen: Plan

    @staticmethod
    def draw(*, pairs: int, vocab_size: int, max_tokens: int, number: int) -> "Batches":
        """Return so many batches of at most `max_tokens` target tokens, of a corpus of `pairs`."""
        store = draw_store(pairs, vocab_size, lengths=WMT)
        lengths = store.source.lengths, store.target.lengths
        return Batches(store, representative(tfm_plan(*lengths, max_tokens), *lengths, number))

    @property
    def lengths(self) -> Iterator[tuple[int, int]]:
        """Yield the source and target tokens of each pair, </s> included."""
        for pairs in self.chosen:
            source, target = self.store.source.lengths[pairs], self.store.target.lengths[pairs]
            yield from zip(source.tolist(), target.tolist(), strict=True)


@contextlib.contextmanager
def training(
    shape: Shape,
    batches: Batches,
    *,
    device: str,
    precision: str,
    micro_batch: int,
    dropout: float = 0.0,
    compiled: bool = False,
) -> Iterator[Tfm]:
    """Train a model inside the block, always from the same weights; its memory is freed then."""
    torch.manual_seed(SETTINGS.seed)
    job: dict[str, Any] = {
        "shape": dataclasses.asdict(shape), "precision": precision, "dropout": dropout,
        "device": device, "micro_batch": micro_batch, "compiled": compiled,
    }  # fmt: skip
    side = Tfm(job, batches.store, batches.chosen)
    try:
        yield side
    finally:
        side.close()
        vars(side).clear()  # what the caller's name still refers to
        free_memory(device)


def free_memory(device: str) -> None:
    """Return to the device the memory of tensors that are no more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def losses(side: Tfm, number: int) -> list[float]:
    """Make so many updates, and return the negative log-likelihood of a target token in each."""
    stats = [side.update() for _ in range(number)]
    return [float(each.nll) / each.target_tokens for each in stats]


def largest_difference(ours: list[float], theirs: list[float]) -> float:
    """Return the largest absolute difference of two lists."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
