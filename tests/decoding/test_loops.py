from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.decoding.searching import beam_search, greedy_search
from tfm_cli.decoding.constraints import is_loop

EOS = 3


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([5] * 24, False),
        ([5] * 25, True),
        ([9, 8, 7, *[5, 6] * 13], True),
        ([9, 8, 7, *[5, 6] * 13, 5], True),
        ([*[5, 6] * 13, 9], False),
        (list(range(8)) * 4, True),
        ([*list(range(8)) * 3, 0, 1, 2, 3, 4, 5, 6], False),
        (list(range(9)) * 9, False),
        ([*[5] * 12, 6, *[5] * 12], False),
        (list(range(1000)), False),
        ([], False),
    ],
)
def test_loop_is_a_repetition_of_few_pieces(ids: list[int], expected: bool) -> None:
    assert is_loop(ids) == expected


class Cycle:
    """A model that writes 4, 5, 6, 4, 5, 6, … for some segments, and ends after a while in others.

    Rows are told apart by their source.
    """

    def start(self, source: Tensor, source_keep: Tensor | None) -> "Cycle":
        self._ends_after = source[:, 0].clone()  # (B,), -1 for never
        self._step = 0
        return self

    def step(self, pieces: Tensor, state: "Cycle") -> Tensor:
        logits = torch.full((len(pieces), 8), -9.0)
        logits[:, 4 + self._step % 3] = 0.0
        ends = self._ends_after.repeat_interleave(len(pieces) // len(self._ends_after))
        logits[ends == self._step, EOS] = 9.0
        self._step += 1
        return logits

    def reorder(self, parents: Tensor) -> None:
        pass

    def select(self, segments: Tensor) -> None:
        self._ends_after = self._ends_after[segments]


def search(beam_size: int, *, stops_loops: bool) -> list[Sequence[int]]:
    source = torch.tensor([[-1], [7]])
    if beam_size == 1:
        found = greedy_search(
            Cycle(), source, None, limits=[90, 90], start_id=2, eos_id=EOS, stops_loops=stops_loops
        )
        return [hypothesis.ids for hypothesis in found]
    best = beam_search(
        Cycle(), source, None, limits=[90, 90], start_id=2, eos_id=EOS, beam_size=beam_size,
        stops_loops=stops_loops,
    )  # fmt: skip
    return [hypotheses[0].ids for hypotheses in best]


def test_greedy_search_ends_a_loop_and_nothing_else() -> None:
    looping, ending = search(1, stops_loops=True)

    assert looping == (4, 5, 6) * 9
    assert ending == (4, 5, 6, 4, 5, 6, 4)


def test_greedy_search_follows_a_loop_to_the_limit_unless_asked_to_stop() -> None:
    looping, ending = search(1, stops_loops=False)

    assert looping == (4, 5, 6) * 30
    assert ending == (4, 5, 6, 4, 5, 6, 4)


def test_beam_search_ends_loops() -> None:
    looping, ending = search(2, stops_loops=True)

    assert len(looping) <= 40
    assert ending == (4, 5, 6, 4, 5, 6, 4)
    assert len(search(2, stops_loops=False)[0]) == 90
