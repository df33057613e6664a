"""What bears on the next piece besides the model: nothing unless asked for, and then at no cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# R rows, V vocabulary, t pieces written, W runs of pieces among them, P pieces of a prefix


@dataclass(frozen=True, slots=True)
class Constraints:
    """What is never written, and what is written again less gladly or not at all."""

    banned: Tensor  # ids
    eos_id: int  # may be written whatever else holds, so that every row can end
    no_repeat_ngram_size: int = 0  # 0 for any
    repetition_penalty: float = 1.0

    def weigh(
        self, logits: Tensor, written: Tensor, forced: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The logits in whose softmax a piece has its probability, and those of what may follow.

        Both are (R, V), the second with -inf for what may not be written. They may be the tensor
        that came in, which is left as it is.

        Args:
            logits: (R, V) of the model, single precision or better.
            written: (R, t), without the start.
            forced: (R,) pieces that may be written whatever else holds; -1 for none.
        """
        if self.repetition_penalty != 1:
            logits = _penalized(logits, written, self.repetition_penalty)
        allowed = logits.index_fill(1, self.banned, -math.inf) if len(self.banned) else logits
        if 0 < self.no_repeat_ngram_size <= written.shape[1]:
            allowed = _without_repeats(allowed, written, self.no_repeat_ngram_size)
            allowed[:, self.eos_id] = logits[:, self.eos_id]
        if forced is not None:
            place = forced.clamp(min=0)[:, None]  # (R, 1)
            kept = torch.where(forced[:, None] >= 0, logits, allowed).gather(1, place)
            allowed = allowed.scatter(1, place, kept)
        return logits, allowed


def _penalized(logits: Tensor, written: Tensor, penalty: float) -> Tensor:
    """Logits that are lower, or higher below a penalty of 1, for the pieces already written.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1, for positive logits; the negative
    ones are multiplied, since a division would raise them.
    """
    before = logits.gather(1, written)  # (R, t)
    return logits.scatter(1, written, torch.where(before > 0, before / penalty, before * penalty))


def _without_repeats(logits: Tensor, written: Tensor, size: int) -> Tensor:
    """Logits of -inf for a piece that would end a run of `size` pieces that was there before."""
    runs = written.unfold(1, size, 1)  # (R, W, size)
    newest = written[:, written.shape[1] - size + 1 :]  # (R, size - 1)
    again = (runs[:, :, :-1] == newest[:, None]).all(dim=2)  # (R, W)
    ends = runs[:, :, -1]  # (R, W)
    lowered = logits.gather(1, ends).masked_fill(again, -math.inf)
    # A piece may end several runs: the lowest counts.
    return logits.scatter_reduce(1, ends, lowered, "amin")


def padded_prefixes(prefixes: Sequence[Sequence[int]], device: torch.device) -> Tensor | None:
    """The prefixes as one tensor (B, P), -1 behind their ends; None where all are empty."""
    longest = max(map(len, prefixes), default=0)
    if not longest:
        return None
    rows = [[*prefix, *[-1] * (longest - len(prefix))] for prefix in prefixes]
    return torch.tensor(rows, device=device)


def forced_pieces(prefixes: Tensor | None, step: int, rows_each: int) -> Tensor | None:
    """The piece that each row has to write at a step, (R,), -1 for any; None where none has to."""
    if prefixes is None or step >= prefixes.shape[1]:
        return None
    return prefixes[:, step].repeat_interleave(rows_each)


def only_forced(logits: Tensor, forced: Tensor) -> Tensor:
    """Logits of -inf for all but the forced piece of each row that has one."""
    others = torch.arange(logits.shape[1], device=logits.device) != forced[:, None]  # (R, V)
    return logits.masked_fill(others & (forced >= 0)[:, None], -math.inf)


# Loops: the same few pieces again and again, from a model that has not learned enough.

LONGEST_PERIOD = 8  # pieces that are repeated
REPEATED_PIECES = 24  # so many of the newest pieces are a repetition of those before them


def is_loop(ids: Sequence[int]) -> bool:
    """Return True if a translation ends in at least four passes over at most eight pieces.

    It depends on these ids alone, so that whoever searches, and wherever, stops at the same place.
    """
    if len(ids) <= REPEATED_PIECES or ids[-1] not in ids[-1 - LONGEST_PERIOD : -1]:
        return False
    newest = ids[-REPEATED_PIECES:]
    return any(
        newest == ids[-REPEATED_PIECES - period : -period]
        for period in range(1, min(LONGEST_PERIOD, len(ids) - REPEATED_PIECES) + 1)
    )
