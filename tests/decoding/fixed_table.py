"""The table model in steps of fixed shapes."""

# B segments, K beams of each, n steps there is room for, V vocabulary, L steps that have tables

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.decoding.table_model import EOS, START, TableModel, sources
from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.decoding.static.beam import BeamRules, FixedBeams
from tfm_cli.decoding.static.greedy import FixedGreedy, GreedyRules
from tfm_cli.decoding.static.interface import Shape
from tfm_cli.decoding.static.search import FixedSearch

CPU = torch.device("cpu")


@dataclass
class FixedTableState:
    """Which tables the segments have, and what each beam wrote at each step."""

    tables: Tensor  # (B, L, V, V, V)
    written: Tensor  # (B, n, K)

    @property
    def num_bytes(self) -> int:
        return self.tables.nbytes + self.written.nbytes

    def take(self, other: "FixedTableState", segments: Tensor) -> None:
        self.tables.copy_(other.tables[segments])
        self.written[:, : other.written.shape[1]] = other.written[segments]


class FixedTable:
    """A TableModel that finds the piece before the newest by the lineage it is told."""

    def __init__(self, model: TableModel) -> None:
        self.logits = model.logits.float()
        self.shapes: list[Shape] = []

    def state(self, shape: Shape) -> FixedTableState:
        self.shapes.append(shape)
        tables = self.logits[:1].repeat(shape.segments, 1, 1, 1, 1)
        written = torch.full((shape.segments, shape.room, shape.beams), START)
        return FixedTableState(tables, written)

    def read(self, source: Tensor, source_keep: Tensor | None, state: FixedTableState) -> None:
        state.tables[: len(source)] = self.logits[source[:, 0]]

    def fixed_step(
        self, pieces: Tensor, position: Tensor, lineage: Tensor, state: FixedTableState
    ) -> Tensor:
        segments, beams = lineage.shape[:2]
        state.written.index_copy_(1, position, pieces.view(segments, 1, beams))
        earlier = (position - 1).clamp(min=0)
        slot = lineage.index_select(2, earlier)[:, :, 0]  # (B, K)
        older = state.written.index_select(1, earlier)[:, 0].gather(1, slot)  # (B, K)
        older = torch.where(position == 0, START, older)
        # The tables end before the room does.
        last = state.tables.shape[1] - 1
        tables = state.tables.index_select(1, position.clamp(max=last))[:, 0]  # (B, V, V, V)
        at = (older * tables.shape[3] + pieces.view(segments, beams))[:, :, None]  # (B, K, 1)
        logits = tables.flatten(1, 2).gather(1, at.expand(-1, -1, tables.shape[3]))  # (B, K, V)
        return logits.flatten(0, 1)


BeamSearch = FixedSearch[FixedTableState, FixedBeams]
GreedySearch = FixedSearch[FixedTableState, FixedGreedy]


def fixed_beams(table: FixedTable, rules: BeamRules) -> BeamSearch:
    rows_of = partial(FixedBeams, rules=rules, device=CPU)
    return FixedSearch(table, rows_of, beams=rules.beam_size, device=CPU)


def fixed_greedy(table: FixedTable, banned: Sequence[int] = ()) -> GreedySearch:
    rules = GreedyRules(START, EOS, banned)
    return FixedSearch(table, partial(FixedGreedy, rules=rules, device=CPU), beams=1, device=CPU)


def found_in(
    search: BeamSearch | GreedySearch, tables: Sequence[int], limits: Sequence[int]
) -> list[list[Hypothesis]]:
    return search(sources(*tables), None, limits=limits)
