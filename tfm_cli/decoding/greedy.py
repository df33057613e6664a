"""Greedy search: the likeliest next token at each step.

The results are those of `beam_search` with a beam of 1, but no probabilities are computed.
"""

# B segments still open, V vocabulary

from collections.abc import Sequence

import torch
from torch import Tensor

from tfm_cli.decoding.constraints import is_loop
from tfm_cli.decoding.interface import (
    Hypothesis,
    StateT,
    StepModel,
    TargetVocabulary,
    refuse_non_finite,
)
from tfm_cli.decoding.utf8 import GreedyUtf8States

# Rows that have ended leave the batch when at most this share of rows is still open. Their removal
# copies the caches of the others, which costs more than the attention of one step.
_MAX_OPEN_SHARE = 0.8


def greedy_search(
    model: StepModel[StateT],
    source: Tensor,
    source_keep: Tensor | None,
    *,
    limits: Sequence[int],
    vocabulary: TargetVocabulary,
    stops_loops: bool = False,
) -> list[Hypothesis]:
    """Return one hypothesis for each segment, whose score and log-probability are NaN.

    Args:
        model: the model that is searched.
        source: (B, S) ids.
        source_keep: (B, 1, 1, S), False at padding; None if there is none.
        limits: maximum number of tokens of each segment's translation, without </s>.
        vocabulary: the special tokens.
        stops_loops: end a translation that repeats the same few tokens, as if at its limit.

    Raises:
        NonFiniteScoresError: the model computes scores that are not finite numbers.
    """
    eos_id, device = vocabulary.eos_id, source.device
    banned = torch.tensor(list(vocabulary.banned_ids), dtype=torch.long, device=device)
    generated: list[list[int]] = [[] for _ in limits]
    rows = list(range(len(limits)))  # the segment of each row
    open_rows = [row for row in rows if limits[row]]
    tokens = torch.full((len(limits),), vocabulary.start_id, device=device)  # (B,)
    state = model.start(source, source_keep)
    utf8_states = None if vocabulary.utf8 is None else GreedyUtf8States(vocabulary.utf8)
    while open_rows:
        if len(open_rows) <= _MAX_OPEN_SHARE * len(rows):
            kept = torch.tensor(open_rows, device=device)
            tokens = tokens.index_select(0, kept)
            state.select(kept)
            rows = [rows[row] for row in open_rows]
            open_rows = list(range(len(rows)))
        logits = model.step(tokens, state).index_fill(1, banned, -torch.inf)  # (B, V)
        best, tokens = logits.max(dim=1)  # (B,) each
        refuse_non_finite(best)
        last = tokens.tolist()
        if utf8_states is not None and utf8_states.is_near(last):
            remaining = {row: limits[rows[row]] - len(generated[rows[row]]) for row in open_rows}
            tokens, last = _valid_tokens(utf8_states, logits, tokens, last, rows, remaining)
        staying = []
        for row in open_rows:
            segment = rows[row]
            if last[row] == eos_id:
                continue
            generated[segment].append(last[row])
            ends = stops_loops and is_loop(generated[segment])
            if ends and utf8_states is not None:
                ends = utf8_states.fits(segment, eos_id, 1)
            if len(generated[segment]) < limits[segment] and not ends:
                staying.append(row)
        open_rows = staying
    nan = float("nan")
    return [Hypothesis(tuple(ids), nan, nan) for ids in generated]


def _valid_tokens(
    utf8_states: GreedyUtf8States,
    logits: Tensor,
    tokens: Tensor,
    last: list[int],
    rows: Sequence[int],
    remaining: dict[int, int],
) -> tuple[Tensor, list[int]]:
    """Return the likeliest tokens (B,) that spell valid UTF-8, on the device and on the host.

    Args:
        utf8_states: of the segments; the tokens are appended to it.
        logits: (B, V).
        tokens: (B,) the likeliest ones.
        last: the same on the host.
        rows: the segment of each row.
        remaining: the number of tokens that each open row may still generate, this one included.
    """
    wrong = [row for row in remaining if not utf8_states.fits(rows[row], last[row], remaining[row])]
    if wrong:
        index = torch.tensor(wrong, device=logits.device)
        some = logits[index]  # (r, V)
        utf8_states.forbid_(some, [rows[row] for row in wrong], [remaining[row] for row in wrong])
        tokens = tokens.index_copy(0, index, some.argmax(dim=1))
        last = tokens.tolist()
    for row in remaining:
        utf8_states.append(rows[row], last[row])
    return tokens, last
