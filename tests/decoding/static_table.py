"""The table model in steps of fixed shapes."""

# B segments, K beams of each, n steps of capacity, V vocabulary, L steps that have tables

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.decoding.searching import Rules
from tests.decoding.table_model import EOS, START, TableModel, sources
from tfm_cli.decoding.interface import Hypothesis, TargetVocabulary
from tfm_cli.decoding.static.search import Shape, StaticSearch
from tfm_cli.decoding.static.steps import StaticBeams, StaticGreedy
from tfm_cli.decoding.utf8 import Utf8

CPU = torch.device("cpu")


@dataclass
class StaticTableState:
    """The tables of the segments, and the tokens of each beam at each step."""

    tables: Tensor  # (B, L, V, V, V)
    written: Tensor  # (B, n, K)

    @property
    def num_bytes(self) -> int:
        return self.tables.nbytes + self.written.nbytes

    def copy_from(self, other: "StaticTableState", segments: Tensor) -> None:
        self.tables.copy_(other.tables[segments])
        self.written[:, : other.written.shape[1]] = other.written[segments]


class StaticTable:
    """A TableModel that finds the token before the last by the beam's ancestors."""

    def __init__(self, model: TableModel) -> None:
        self.logits = model.logits.float()
        self.shapes: list[Shape] = []

    def state(self, shape: Shape) -> StaticTableState:
        self.shapes.append(shape)
        tables = self.logits[:1].repeat(shape.segments, 1, 1, 1, 1)
        written = torch.full((shape.segments, shape.capacity, shape.beams), START)
        return StaticTableState(tables, written)

    def encode(self, source: Tensor, source_keep: Tensor | None, state: StaticTableState) -> None:
        state.tables[: len(source)] = self.logits[source[:, 0]]

    def step(
        self, tokens: Tensor, position: Tensor, beam_ancestors: Tensor, state: StaticTableState
    ) -> Tensor:
        segments, beams = beam_ancestors.shape[:2]
        state.written.index_copy_(1, position, tokens.view(segments, 1, beams))
        earlier = (position - 1).clamp(min=0)
        slot = beam_ancestors.index_select(2, earlier)[:, :, 0]  # (B, K)
        older = state.written.index_select(1, earlier)[:, 0].gather(1, slot)  # (B, K)
        older = torch.where(position == 0, START, older)
        # There are fewer tables than steps.
        last = state.tables.shape[1] - 1
        tables = state.tables.index_select(1, position.clamp(max=last))[:, 0]  # (B, V, V, V)
        at = (older * tables.shape[3] + tokens.view(segments, beams))[:, :, None]  # (B, K, 1)
        logits = tables.flatten(1, 2).gather(1, at.expand(-1, -1, tables.shape[3]))  # (B, K, V)
        return logits.flatten(0, 1)


BeamSearch = StaticSearch[StaticTableState, StaticBeams]
GreedySearch = StaticSearch[StaticTableState, StaticGreedy]


def static_beams(table: StaticTable, rules: Rules) -> BeamSearch:
    vocabulary, settings = rules
    make = partial(StaticBeams, vocabulary=vocabulary, settings=settings, device=CPU)
    return StaticSearch(table, make, beams=settings.beam_size, device=CPU)


def static_greedy(
    table: StaticTable, banned: Sequence[int] = (), utf8: Utf8 | None = None
) -> GreedySearch:
    make = partial(StaticGreedy, vocabulary=TargetVocabulary(START, EOS, banned, utf8), device=CPU)
    return StaticSearch(table, make, beams=1, device=CPU)


def found_in(
    search: BeamSearch | GreedySearch, tables: Sequence[int], limits: Sequence[int]
) -> list[list[Hypothesis]]:
    return search(sources(*tables), None, limits=limits)
