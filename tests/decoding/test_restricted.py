import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.decoding.searching import beam_search
from tests.decoding.table_model import EOS, START, TableModel, TableState, sources
from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.decoding.restricted import ShortlistedModel, Shortlists

LISTS = ([EOS, START, 2], [EOS, START, 2, 3], [EOS, START, 3])


class SomeLogits:
    """A table model that gives some of its logits."""

    def __init__(self, model: TableModel, needed: Sequence[int]) -> None:
        self.model, self.needed = model, list(needed)

    def start(self, source: Tensor, source_keep: Tensor | None) -> TableState:
        return self.model.start(source, source_keep)

    def step(self, pieces: Tensor, state: TableState) -> Tensor:
        return self.model.step(pieces, state)[:, self.needed]


def search(
    model: TableModel, lists: Sequence[list[int]], limits: Sequence[int], beam_size: int
) -> list[list[Hypothesis]]:
    """What is found for tables 0, 1, …, whose lists these are, in ids of the table."""
    needed = sorted(set().union(*lists))
    longest = max(map(len, lists))
    filled = [ids + [EOS] * (longest - len(ids)) for ids in lists]
    columns = [[needed.index(piece) for piece in ids] for ids in filled]
    hidden = [[place >= len(ids) for place in range(longest)] for ids in lists]
    own = Shortlists(torch.tensor(filled), torch.tensor(columns), torch.tensor(hidden))
    found = beam_search(
        ShortlistedModel(SomeLogits(model, needed), own), sources(*range(len(lists))), None,
        limits=limits, start_id=1, eos_id=0, banned_ids=(1,), beam_size=beam_size,
    )  # fmt: skip
    return [
        [Hypothesis(tuple(ids[i] for i in h.ids), h.log_probability, h.score) for h in hypotheses]
        for ids, hypotheses in zip(lists, found, strict=True)
    ]


def log_probability(model: TableModel, table: int, ids: Sequence[int], listed: list[int]) -> float:
    """Of these pieces and </s>, among the pieces of a list, in plain floats."""
    written, total = [START, START], 0.0
    for step, piece in enumerate([*ids, EOS]):
        logits = model.logits[table, step, written[-2], written[-1]].tolist()
        total += logits[piece] - math.log(sum(math.exp(logits[each]) for each in listed))
        written.append(piece)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_widest_beam_finds_every_sequence_of_the_list_and_no_other(seed: int) -> None:
    model = TableModel(seed, num_tables=3)

    actual = search(model, LISTS, [3, 3, 3], beam_size=81)

    for table, listed in enumerate(LISTS):
        pieces = [piece for piece in listed if piece not in (EOS, START)]
        expected = {
            ids: log_probability(model, table, ids, listed)
            for length in range(4)
            for ids in itertools.product(pieces, repeat=length)
        }
        assert {h.ids: pytest.approx(h.log_probability) for h in actual[table]} == expected


@pytest.mark.parametrize("beam_size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_what_is_found_does_not_depend_on_what_the_neighbors_may_write(
    seed: int, beam_size: int
) -> None:
    """Segments leave the batch one after the other, beams change places."""
    model = TableModel(seed, num_tables=3)
    lists, limits = [LISTS[(seed + i) % 3] for i in range(3)], [1, 6, 3]

    together = search(model, lists, limits, beam_size)

    for table in range(3):
        alone = TableModel(seed, num_tables=3)
        alone.logits = model.logits[table : table + 1]
        assert search(alone, lists[table : table + 1], limits[table : table + 1], beam_size) == [
            together[table]
        ]
