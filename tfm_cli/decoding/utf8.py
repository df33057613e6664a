"""The constraint that tokens which stand for single bytes spell valid UTF-8.

A tokenizer with byte fallback spells a character that is not in its vocabulary as its UTF-8 bytes,
one token each. A byte token must then continue the character that was begun, and neither another
token nor </s> may come before its last byte. The permitted sequences of bytes are those of
table 3-7 of the Unicode Standard (RFC 3629): no overlong forms, no surrogates, nothing above
U+10FFFF. Search only excludes tokens; probabilities remain those of the model.
"""

# B segments, K hypotheses of each, R = B * K rows, C candidates of a row, V vocabulary,
# N byte tokens of a segment, T kinds of tokens, Q states times numbers of remaining tokens

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# First and last byte of ranges whose bytes are permitted in the same positions. The kind of a token
# is 0 for text or </s>, i + 1 for a byte of range i, and NEVER for a byte that is banned.
_RANGES = (
    (0x00, 0x7F), (0x80, 0x8F), (0x90, 0x9F), (0xA0, 0xBF), (0xC2, 0xDF), (0xE0, 0xE0),
    (0xE1, 0xEC), (0xED, 0xED), (0xEE, 0xEF), (0xF0, 0xF0), (0xF1, 0xF3), (0xF4, 0xF4),
)  # fmt: skip
WHOLE, NEVER = 0, len(_RANGES) + 1
_NUM_KINDS = NEVER + 1
_LOW, _MIDDLE, _HIGH = 2, 3, 4  # kinds of continuation bytes

# The states of a hypothesis: between characters, or inside one whose next byte is restricted.
BETWEEN, ONE, TWO, AFTER_E0, AFTER_ED, THREE, AFTER_F0, AFTER_F4 = range(8)
_NUM_STATES = 8
_ANY = (_LOW, _MIDDLE, _HIGH)
# For each state inside a character, the kinds that may follow and the state after them.
_CONTINUATIONS = {
    ONE: (_ANY, BETWEEN),
    TWO: (_ANY, ONE),
    AFTER_E0: ((_HIGH,), ONE),
    AFTER_ED: ((_LOW, _MIDDLE), ONE),
    THREE: (_ANY, TWO),
    AFTER_F0: ((_MIDDLE, _HIGH), TWO),
    AFTER_F4: ((_LOW,), TWO),
}
_FIRST = {
    WHOLE: BETWEEN, 1: BETWEEN, 5: ONE, 6: AFTER_E0, 7: TWO, 8: AFTER_ED, 9: TWO, 10: AFTER_F0,
    11: THREE, 12: AFTER_F4,
}  # fmt: skip
_NEXT = {(BETWEEN, kind): state for kind, state in _FIRST.items()} | {
    (state, kind): after for state, (kinds, after) in _CONTINUATIONS.items() for kind in kinds
}
_LONGEST = 4  # bytes of a character; larger numbers of remaining tokens make no difference
_NUM_REMAINING = _LONGEST + 1  # numbers of remaining tokens that are distinguished
_UNREACHABLE = _NUM_REMAINING + _LONGEST  # more tokens than may ever remain


def next_state(state: int, kind: int) -> int:
    """Return the state after a token; one that may not follow begins a new character."""
    return _NEXT.get((state, kind), _FIRST.get(kind, BETWEEN))


_AFTER = torch.tensor(
    [[next_state(state, kind) for kind in range(_NUM_KINDS)] for state in range(_NUM_STATES)]
)


@dataclass(frozen=True, slots=True)
class Utf8:
    """The UTF-8 constraint, for each segment of a batch or shared by all (B = 1).

    Attributes:
        kinds: (B, V) kind of each token.
        byte_ids: (B, N) ids of the byte tokens, padded with ids of other tokens.
        allowed_kinds: (B, Q, T) True if a kind may follow, by state and number of remaining tokens.
    """

    kinds: Tensor
    byte_ids: Tensor
    allowed_kinds: Tensor

    @staticmethod
    def of(
        byte_values: Mapping[int, int],
        vocab_size: int,
        *,
        banned_ids: Sequence[int] = (),
        device: torch.device,
    ) -> "Utf8 | None":
        """Return the constraint for a vocabulary; None if no token stands for a byte.

        Args:
            byte_values: the byte, 0 to 255, that a token stands for, by its id.
            vocab_size: V.
            banned_ids: tokens that are never generated.
            device: the device of the search.
        """
        if not byte_values:
            return None
        kinds = [WHOLE] * vocab_size
        banned = frozenset(banned_ids)
        for token, value in byte_values.items():
            kinds[token] = NEVER if token in banned else _kind(value)
        return Utf8._of_kinds(torch.tensor([kinds], device=device))

    @staticmethod
    def _of_kinds(kinds: Tensor) -> "Utf8":
        is_byte = kinds != WHOLE  # (B, V)
        count = int(is_byte.sum(dim=1).max())
        # Byte tokens first, in the order of their ids.
        byte_ids = is_byte.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
        return Utf8(kinds, byte_ids, _allowed_kinds(kinds))

    def within(self, ids: Tensor) -> "Utf8 | None":
        """Return the constraint if each segment has its own vocabulary; None without byte tokens.

        Token i of segment b is token `ids[b, i]` of this vocabulary. A segment that lacks the last
        bytes of a character never begins it.
        """
        kinds = self.kinds[0][ids]  # (B, V')
        return Utf8._of_kinds(kinds) if bool((kinds != WHOLE).any()) else None

    @property
    def num_segments(self) -> int:
        """Return the number of segments with separate rules; 1 if all share them."""
        return len(self.kinds)

    def select(self, segments: Tensor) -> "Utf8":
        """Return the constraint for only these segments."""
        if self.num_segments == 1:
            return self
        return Utf8(self.kinds[segments], self.byte_ids[segments], self.allowed_kinds[segments])

    def kinds_of(self, tokens: Tensor) -> Tensor:
        """Return the kinds of the tokens of each segment, (B, any) for (B, any)."""
        if self.num_segments == 1:
            return self.kinds[0][tokens]
        return self.kinds.gather(1, tokens)

    def allows(self, states: Tensor, remaining: Tensor, kinds: Tensor) -> Tensor:
        """Return True where tokens of these kinds may follow, (B, K, C).

        Args:
            states: (B, K) of the hypotheses.
            remaining: (B,) number of tokens that may still be generated, these included.
            kinds: (B, K, C).
        """
        return self._rules(states, remaining).gather(2, kinds)

    def forbid_(
        self, logits: Tensor, states: Tensor, remaining: Tensor, is_free: Tensor | None = None
    ) -> Tensor:
        """Set the logits of tokens that may not follow to -inf, in place, and return them.

        Args:
            logits: (R, V).
            states: (B, K) of the hypotheses.
            remaining: (B,) as in `allows`.
            is_free: (R,) True for rows to change; None for all.
        """
        segments, beams = states.shape
        byte_ids = self.byte_ids[:, None].expand(segments, beams, -1).flatten(0, 1)  # (R, N)
        kinds = self.kinds.gather(1, self.byte_ids)[:, None].expand(
            segments, beams, -1
        )  # (B, K, N)
        allowed = self.allows(states, remaining, kinds).flatten(0, 1)  # (R, N)
        is_inside = (states != BETWEEN).flatten()  # (R,)
        if is_free is not None:
            allowed, is_inside = allowed | ~is_free[:, None], is_inside & is_free
        spelled = logits.gather(1, byte_ids).masked_fill(~allowed, -torch.inf)  # (R, N)
        if bool(is_inside.any()):
            logits[is_inside] = -torch.inf
        return logits.scatter_(1, byte_ids, spelled)

    def after(self, states: Tensor, kinds: Tensor) -> Tensor:
        """Return the states after one more token of these kinds, (B, K) for (B, K) each."""
        return _AFTER.to(states.device)[states, kinds]

    def limits(self, limits: Sequence[int], prefixes: Sequence[Sequence[int]]) -> list[int]:
        """Return the limits, raised where a prefix needs more tokens to end a character."""
        raised = list(limits)
        for segment, prefix in enumerate(prefixes):
            state, length = BETWEEN, len(prefix)
            for kind in self.kinds[segment % self.num_segments, list(prefix)].tolist():
                state = next_state(state, kind)
            while state != BETWEEN:
                state, length = _CONTINUATIONS[state][1], length + 1
            raised[segment] = max(raised[segment], length)
        return raised

    def _rules(self, states: Tensor, remaining: Tensor) -> Tensor:
        """Return True for the kinds that may follow each hypothesis, (B, K, T)."""
        index = states * _NUM_REMAINING + remaining.clamp(0, _LONGEST)[:, None]  # (B, K)
        if self.num_segments == 1:
            return self.allowed_kinds[0][index]
        return self.allowed_kinds.gather(1, index[:, :, None].expand(-1, -1, _NUM_KINDS))


class Utf8States:
    """The UTF-8 states of the hypotheses of a batch, updated with each token.

    Args:
        utf8: the constraint.
        segments: B.
    """

    def __init__(self, utf8: Utf8, segments: int) -> None:
        self._utf8 = utf8
        self._outside = utf8.kinds.new_zeros(segments, 1)  # (B, 1)
        self._states: Tensor | None = None  # (B, K); None while all are between characters
        self._is_near = True  # True if a byte token may follow at this step

    def states(self, beams: int) -> Tensor:
        """Return the states of the hypotheses, (B, K)."""
        return self._outside.expand(-1, beams) if self._states is None else self._states

    def wrong_rows(
        self, scores: Tensor, tokens: Tensor, remaining: Tensor, forced: Tensor | None
    ) -> Tensor | None:
        """Return the rows (r,) with a candidate that may not follow; None if there are none.

        Args:
            scores: (R, C) of the candidates; -inf for entries that are no candidates.
            tokens: (R, C) their ids.
            remaining: (B,) number of tokens that may still be generated, these included.
            forced: (R,) tokens that are exempt from the constraint; -1 for none.
        """
        segments = len(self._outside)
        kinds = self._utf8.kinds_of(tokens.view(segments, -1))  # (B, K * C)
        self._is_near = bool(kinds.any())
        if self._states is None and not self._is_near:
            return None
        beams = len(tokens) // segments
        kinds = kinds.view(segments, beams, -1)  # (B, K, C)
        fits = self._utf8.allows(self.states(beams), remaining, kinds).flatten(0, 1)  # (R, C)
        is_wrong = (~fits & (scores > -torch.inf)).any(dim=1)  # (R,)
        if forced is not None:
            is_wrong &= forced < 0
        rows = is_wrong.nonzero()[:, 0]
        return rows if len(rows) else None

    def restricted(
        self, logits: Tensor, plain: Tensor, rows: Tensor, remaining: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of some rows, with -inf for tokens that may not follow, (r, V).

        The second tensor holds the rows whose logits are taken from `plain`.

        Args:
            logits: (R, V).
            plain: (R, V) without the ban on repetitions, used where a character could not be ended
                otherwise.
            rows: (r,).
            remaining: (B,) as in `wrong_rows`.
        """
        beams = len(logits) // len(self._outside)
        segments = rows // beams
        utf8, remaining = self._utf8.select(segments), remaining[segments]
        states = self.states(beams).flatten()[rows][:, None]  # (r, 1)
        found = utf8.forbid_(logits[rows], states, remaining)  # (r, V)
        stuck = (found.amax(dim=1) == -torch.inf).nonzero()[:, 0]
        if len(stuck):
            without = utf8.select(stuck).forbid_(
                plain[rows[stuck]], states[stuck], remaining[stuck]
            )
            found[stuck] = without
        return found, rows[stuck]

    def forbid_(
        self, logits: Tensor, plain: Tensor, remaining: Tensor, forced: Tensor | None
    ) -> Tensor:
        """Set the logits of tokens that may not follow to -inf, where each segment has one row.

        Return the rows (r,) whose logits are taken from `plain`. The arguments are those of
        `wrong_rows` and `restricted`.
        """
        is_free = None if forced is None else forced < 0
        states = self.states(1)
        self._utf8.forbid_(logits, states, remaining, is_free)
        rows = states[:, 0].nonzero()[:, 0]
        stuck = rows[logits[rows].amax(dim=1) == -torch.inf] if len(rows) else rows
        if len(stuck):
            logits[stuck] = self._utf8.select(stuck).forbid_(
                plain[stuck], states[stuck], remaining[stuck]
            )
        return stuck

    def append(self, parents: Tensor, tokens: Tensor) -> None:
        """Replace hypothesis k with hypothesis `parents[:, k]` plus a token, (B, K) each."""
        if self._states is None and not self._is_near:
            return
        kinds = self._utf8.kinds_of(tokens)  # (B, K)
        if self._states is not None:
            before = self._states.gather(1, parents)
        elif bool(kinds.any()):
            before = torch.zeros_like(tokens)
        else:
            return
        states = self._utf8.after(before, kinds)
        self._states = states if bool(states.any()) else None

    def select(self, segments: Tensor) -> None:
        """Keep only these segments."""
        self._utf8 = self._utf8.select(segments)
        self._outside = self._outside[segments]
        self._states = None if self._states is None else self._states[segments]


class GreedyUtf8States:
    """A `Utf8States` for one hypothesis of each segment, stored on the host.

    Greedy search reads each token there anyway, so tokens other than bytes cost almost nothing.

    Args:
        utf8: the constraint.
    """

    def __init__(self, utf8: Utf8) -> None:
        self._utf8 = utf8
        self._allowed_kinds: list[list[list[bool]]] = utf8.allowed_kinds.tolist()
        self._kinds = [
            dict(zip(byte_ids, kinds, strict=True))
            for byte_ids, kinds in zip(
                utf8.byte_ids.tolist(), utf8.kinds.gather(1, utf8.byte_ids).tolist(), strict=True
            )
        ]
        self._byte_ids = frozenset().union(*self._kinds)
        self._states: dict[int, int] = {}  # of segments that are inside a character

    def is_near(self, tokens: Sequence[int]) -> bool:
        """Return True if a token may be a byte, or a segment is inside a character."""
        return bool(self._states) or not self._byte_ids.isdisjoint(tokens)

    def fits(self, segment: int, token: int, remaining: int) -> bool:
        """Return True if a token may follow in a segment.

        Args:
            segment: index of the segment.
            token: id of the token.
            remaining: number of tokens that may still be generated, this one included.
        """
        rules = segment % len(self._kinds)
        kind = self._kinds[rules].get(token, WHOLE)
        state = self._states.get(segment, BETWEEN)
        return self._allowed_kinds[rules][state * _NUM_REMAINING + min(remaining, _LONGEST)][kind]

    def forbid_(self, logits: Tensor, segments: Sequence[int], remaining: Sequence[int]) -> Tensor:
        """Set the logits of tokens that may not follow to -inf, in place, and return them.

        Args:
            logits: (r, V).
            segments: of each row.
            remaining: of each row, as in `fits`.
        """
        index = torch.tensor(segments, device=logits.device)
        states = index.new_tensor([[self._states.get(segment, BETWEEN)] for segment in segments])
        return self._utf8.select(index).forbid_(logits, states, index.new_tensor(remaining))

    def append(self, segment: int, token: int) -> None:
        """Append a token to a segment."""
        kind = self._kinds[segment % len(self._kinds)].get(token, WHOLE)
        state = next_state(self._states.pop(segment, BETWEEN), kind)
        if state != BETWEEN:
            self._states[segment] = state


class StaticUtf8States:
    """A `Utf8States` in tensors that are reused for each batch, for one vocabulary.

    Args:
        utf8: the constraint, the same for all segments.
        segments: B.
        beams: K.
    """

    def __init__(self, utf8: Utf8, segments: int, beams: int) -> None:
        (allowed,), (kinds,) = utf8.allowed_kinds, utf8.kinds
        self._forbidden = ~allowed[:, kinds]  # (Q, V)
        self._after = _AFTER.to(kinds.device)[:, kinds].flatten()  # (states * V,)
        self._vocab_size = len(kinds)
        self._states = kinds.new_zeros(segments, beams)

    def reset(self) -> None:
        """Set all hypotheses to the state between characters."""
        self._states.zero_()

    def copy_from(self, other: "StaticUtf8States", segments: Tensor) -> None:
        """Copy the states of these segments (B,) from another batch."""
        self._states.copy_(other._states.index_select(0, segments))

    def forbid_(self, logits: Tensor, remaining: Tensor) -> Tensor:
        """Set the logits of tokens that may not follow to -inf, in place, and return them.

        Args:
            logits: (R, V).
            remaining: (B,) number of tokens that may still be generated, these included.
        """
        rules = self._states * _NUM_REMAINING + remaining.clamp(0, _LONGEST)[:, None]  # (B, K)
        return logits.masked_fill_(self._forbidden.index_select(0, rules.flatten()), -torch.inf)

    def append(self, parents: Tensor, tokens: Tensor) -> None:
        """Replace hypothesis k with hypothesis `parents[:, k]` plus a token, (B, K) each."""
        index = tokens + self._states.gather(1, parents) * self._vocab_size  # (B, K)
        self._states.copy_(self._after.index_select(0, index.flatten()).view_as(tokens))


def _kind(value: int) -> int:
    for kind, (first, last) in enumerate(_RANGES, 1):
        if first <= value <= last:
            return kind
    return NEVER


def _allowed_kinds(kinds: Tensor) -> Tensor:
    """Return True where a kind may follow, (B, Q, T), for tokens of (B, V) kinds.

    A byte may follow if the available tokens can end its character within the remaining ones.
    """
    available = kinds.new_zeros((len(kinds), _NUM_KINDS), dtype=torch.bool)
    available.scatter_(1, kinds, torch.ones_like(kinds, dtype=torch.bool))
    missing = kinds.new_zeros(len(kinds), _NUM_STATES)  # fewest tokens that end the character
    for state, (following, after) in _CONTINUATIONS.items():
        is_possible = available[:, list(following)].any(dim=1)  # (B,)
        missing[:, state] = torch.where(is_possible, missing[:, after] + 1, _UNREACHABLE)
    needed = 1 + missing[:, _AFTER.to(kinds.device)]  # (B, states, T)
    needed[:, :, WHOLE] = 0  # it may be </s>
    is_valid = torch.zeros(_NUM_STATES, _NUM_KINDS, dtype=torch.bool)
    is_valid[tuple(zip(*_NEXT, strict=True))] = True
    remaining = torch.arange(_NUM_REMAINING, device=kinds.device)[:, None]
    allowed = is_valid.to(kinds.device)[:, None] & (remaining >= needed[:, :, None])
    return allowed.flatten(1, 2)  # (B, states, remaining, T) → (B, Q, T)
