"""Greedy search: the likeliest next piece, again and again, and nothing else.

What `beam_search` finds with a beam of 1, without the probabilities, which nobody asked for.
"""

# B segments still open, V vocabulary

from collections.abc import Sequence

import torch
from torch import Tensor

from tfm_cli.decoding.constraints import is_loop
from tfm_cli.decoding.interface import Hypothesis, StateT, StepModel, refuse_non_finite
from tfm_cli.decoding.utf8 import GreedySpelling, Utf8

# Share of rows that still go on, up to which the others are dropped. What a state keeps of the rest
# is moved then, which costs more than a step's attention.
_WORTH_MOVING = 0.8


def greedy_search(
    model: StepModel[StateT],
    source: Tensor,
    source_keep: Tensor | None,
    *,
    limits: Sequence[int],
    start_id: int,
    eos_id: int,
    banned_ids: Sequence[int] = (),
    utf8: Utf8 | None = None,
    stops_loops: bool = False,
) -> list[Hypothesis]:
    """A hypothesis for each segment; its score and log-probability are NaN.

    Args:
        model: what is searched.
        source: (B, S) ids.
        source_keep: (B, 1, 1, S), False at padding; None if there is none.
        limits: most pieces of each segment's translation, without </s>, which is then forced.
        start_id: what every translation is a continuation of.
        eos_id: ends a translation.
        banned_ids: never written.
        utf8: see `beam_search`.
        stops_loops: end a translation that repeats the same few pieces, as if at its limit.

    Raises:
        NonFiniteScoresError: the model gives scores that are not finite numbers.
    """
    banned = torch.tensor(list(banned_ids), dtype=torch.long, device=source.device)
    written: list[list[int]] = [[] for _ in limits]
    rows = list(range(len(limits)))  # the segment of each row
    open_rows = [row for row in rows if limits[row]]
    pieces = torch.full((len(limits),), start_id, device=source.device)  # (B,)
    state = model.start(source, source_keep)
    spelling = None if utf8 is None else GreedySpelling(utf8)
    while open_rows:
        if len(open_rows) <= _WORTH_MOVING * len(rows):
            kept = torch.tensor(open_rows, device=source.device)
            pieces = pieces.index_select(0, kept)
            state.keep(kept)
            rows = [rows[row] for row in open_rows]
            open_rows = list(range(len(rows)))
        logits = model.step(pieces, state).index_fill(1, banned, -torch.inf)  # (B, V)
        best, pieces = logits.max(dim=1)  # (B,) each
        refuse_non_finite(best)
        newest, staying = pieces.tolist(), []
        if spelling is not None and spelling.is_near(newest):
            room = {row: limits[rows[row]] - len(written[rows[row]]) for row in open_rows}
            wrong = [
                row for row in open_rows if not spelling.fits(rows[row], newest[row], room[row])
            ]
            if wrong:
                places = torch.tensor(wrong, device=source.device)
                some = logits[places]  # (r, V)
                spelling.forbid_(some, [rows[row] for row in wrong], [room[row] for row in wrong])
                pieces = pieces.index_copy(0, places, some.argmax(dim=1))
                newest = pieces.tolist()
            for row in open_rows:
                spelling.grow(rows[row], newest[row])
        for row in open_rows:
            segment = rows[row]
            if newest[row] != eos_id:
                written[segment].append(newest[row])
                ends = stops_loops and is_loop(written[segment])
                if ends and spelling is not None:
                    ends = spelling.fits(segment, eos_id, 1)
                if len(written[segment]) < limits[segment] and not ends:
                    staying.append(row)
        open_rows = staying
    nothing = float("nan")
    return [Hypothesis(tuple(ids), nothing, nothing) for ids in written]
