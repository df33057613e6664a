"""Optional constraints on the next token, at no cost when they are unused."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding.interface import TargetVocabulary

# R rows, V vocabulary, t tokens generated, W n-grams among them, P tokens of a prefix


@dataclass(frozen=True, slots=True)
class Constraints:
    """The tokens that are never generated, and the rules against repetition."""

    banned: Tensor  # ids
    eos_id: int  # exempt from the ban on n-grams, so that every row can end
    no_repeat_ngram_size: int = 0  # 0 for no constraint
    repetition_penalty: float = 1.0

    @staticmethod
    def of(
        vocabulary: TargetVocabulary, settings: SearchConfig, device: torch.device
    ) -> "Constraints":
        """Return the constraints of a search."""
        return Constraints(
            torch.tensor(list(vocabulary.banned_ids), dtype=torch.long, device=device),
            vocabulary.eos_id,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
            repetition_penalty=settings.repetition_penalty,
        )

    def apply(
        self, logits: Tensor, generated: Tensor, forced: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits whose softmax is the model's distribution, and those to choose from.

        Both are (R, V), the second with -inf for tokens that must not be generated. They may be the
        input tensor, which is not changed.

        Args:
            logits: (R, V) of the model, single precision or better.
            generated: (R, t), without the start.
            forced: (R,) tokens that are exempt from all constraints; -1 for none.
        """
        if self.repetition_penalty != 1:
            logits = _penalized(logits, generated, self.repetition_penalty)
        allowed = logits.index_fill(1, self.banned, -math.inf) if len(self.banned) else logits
        if 0 < self.no_repeat_ngram_size <= generated.shape[1]:
            allowed = _without_repeats(allowed, generated, self.no_repeat_ngram_size)
            allowed[:, self.eos_id] = logits[:, self.eos_id]
        if forced is not None:
            index = forced.clamp(min=0)[:, None]  # (R, 1)
            exempt = torch.where(forced[:, None] >= 0, logits, allowed).gather(1, index)
            allowed = allowed.scatter(1, index, exempt)
        return logits, allowed


def single_precision(logits: Tensor) -> Tensor:
    """Return bf16 and fp16 logits in single precision, others unchanged."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _penalized(logits: Tensor, generated: Tensor, penalty: float) -> Tensor:
    """Return logits that are lower, or higher below a penalty of 1, for tokens already generated.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1, for positive logits; the negative
    ones are multiplied, since a division would raise them.
    """
    before = logits.gather(1, generated)  # (R, t)
    return logits.scatter(1, generated, torch.where(before > 0, before / penalty, before * penalty))


def _without_repeats(logits: Tensor, generated: Tensor, size: int) -> Tensor:
    """Return logits of -inf for tokens that would repeat an n-gram of `size` tokens."""
    ngrams = generated.unfold(1, size, 1)  # (R, W, size)
    last = generated[:, generated.shape[1] - size + 1 :]  # (R, size - 1)
    is_repeat = (ngrams[:, :, :-1] == last[:, None]).all(dim=2)  # (R, W)
    ends = ngrams[:, :, -1]  # (R, W)
    lowered = logits.gather(1, ends).masked_fill(is_repeat, -math.inf)
    # A token may end several n-grams; it is excluded if one of them is a repetition.
    return logits.scatter_reduce(1, ends, lowered, "amin")


def padded_prefixes(prefixes: Sequence[Sequence[int]], device: torch.device) -> Tensor | None:
    """Return the prefixes as one tensor (B, P), padded with -1; None if all are empty."""
    longest = max(map(len, prefixes), default=0)
    if not longest:
        return None
    rows = [[*prefix, *[-1] * (longest - len(prefix))] for prefix in prefixes]
    return torch.tensor(rows, device=device)


def forced_tokens(prefixes: Tensor | None, step: int, beam: int) -> Tensor | None:
    """Return the token that is forced on each row at a step, (R,); -1 for none.

    The result is None if no prefix is that long.

    Args:
        prefixes: (B, P), from `padded_prefixes`.
        step: number of tokens generated before.
        beam: rows of each segment.
    """
    if prefixes is None or step >= prefixes.shape[1]:
        return None
    return prefixes[:, step].repeat_interleave(beam)


def only_forced(logits: Tensor, forced: Tensor) -> Tensor:
    """Return logits of -inf for all but the forced token of each row that has one."""
    others = torch.arange(logits.shape[1], device=logits.device) != forced[:, None]  # (R, V)
    return logits.masked_fill(others & (forced >= 0)[:, None], -math.inf)


# Loops: an undertrained model repeats the same few tokens.

LONGEST_PERIOD = 8  # in tokens, of a loop
REPEATED_TOKENS = 24  # number of last tokens that must repeat those before them


def is_loop(ids: Sequence[int]) -> bool:
    """Return True if a translation ends in at least four passes over at most eight tokens.

    The result depends on these ids alone, so that every search stops at the same position.
    """
    if len(ids) <= REPEATED_TOKENS or ids[-1] not in ids[-1 - LONGEST_PERIOD : -1]:
        return False
    last = ids[-REPEATED_TOKENS:]
    return any(
        last == ids[-REPEATED_TOKENS - period : -period]
        for period in range(1, min(LONGEST_PERIOD, len(ids) - REPEATED_TOKENS) + 1)
    )
