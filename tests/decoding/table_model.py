"""A model small enough to try every translation: random tables, and brute force over them."""

# B segments, R rows (K for each segment), V vocabulary, L steps that have tables of their own

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfm_cli.decoding.interface import Hypothesis

EOS = 0
START = 1
VOCAB = 4


@dataclass
class TableState:
    """Which tables the segments have, how far they are, and the token before the last."""

    tables: Tensor  # (B, L, V, V, V)
    older: Tensor  # (R,), which search never sees and has to keep in order
    length: int = 0

    def reorder(self, parents: Tensor) -> None:
        self.older = self.older.view(len(parents), -1).gather(1, parents).flatten()

    def select(self, segments: Tensor) -> None:
        self.older = self.older.view(len(self.tables), -1)[segments].flatten()
        self.tables = self.tables[segments]


class TableModel:
    """Logits that depend on the segment, the step, the last token and the token before it.

    The first id of a segment's source says which tables it has.
    """

    def __init__(
        self, seed: int, *, num_tables: int = 1, spread: float = 1.5, vocab: int = VOCAB
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (num_tables, 8, vocab, vocab, vocab)
        self.logits = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.rows_of_steps: list[int] = []

    def start(self, source: Tensor, source_keep: Tensor | None) -> TableState:
        return TableState(self.logits[source[:, 0]], torch.full((len(source),), START))

    def step(self, pieces: Tensor, state: TableState) -> Tensor:
        self.rows_of_steps.append(len(pieces))
        beam = len(pieces) // len(state.tables)
        tables = state.tables[:, state.length].repeat_interleave(beam, dim=0)  # (R, V, V, V)
        rows = torch.arange(len(pieces))
        if len(state.older) != len(pieces):  # only before the first `reorder`
            state.older = state.older.repeat_interleave(beam)
        logits = tables[rows, state.older, pieces]  # (R, V)
        state.older = pieces
        state.length += 1
        return logits


def sources(*tables: int) -> Tensor:
    """A batch of segments with these tables, (B, 1)."""
    return torch.tensor(tables)[:, None]


def log_probabilities(model: TableModel, table: int, prefix: Sequence[int]) -> list[float]:
    """Log-probability of each piece after these, in plain floats."""
    older, newest = [START, START, *prefix][-2:]
    logits = model.logits[table, len(prefix), older, newest].tolist()
    total = math.log(sum(math.exp(logit) for logit in logits))
    return [logit - total for logit in logits]


def forced_log_probability(model: TableModel, table: int, ids: Sequence[int]) -> float:
    """Log-probability of these pieces and </s>."""
    pieces = [*ids, EOS]
    return sum(
        log_probabilities(model, table, pieces[:step])[piece] for step, piece in enumerate(pieces)
    )


def brute_force(
    model: TableModel,
    table: int,
    *,
    limit: int,
    length_penalty: float,
    length_norm: str = "power",
    banned: Sequence[int] = (),
) -> list[Hypothesis]:
    """Every translation of at most `limit` pieces, best first."""
    return sorted(
        (
            Hypothesis(ids, total, total / base**length_penalty)
            for ids in _sequences(limit, banned, model.logits.shape[-1])
            for base in [len(ids) + 1 if length_norm == "power" else (5 + len(ids) + 1) / 6]
            for total in [forced_log_probability(model, table, ids)]
        ),
        key=lambda hypothesis: -hypothesis.score,
    )


def _sequences(limit: int, banned: Sequence[int], vocab: int) -> Iterator[tuple[int, ...]]:
    pieces = [piece for piece in range(vocab) if piece != EOS and piece not in banned]
    for length in range(limit + 1):
        yield from itertools.product(pieces, repeat=length)
