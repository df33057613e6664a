"""The constraint that pieces which stand for single bytes spell valid UTF-8.

A tokenizer with byte fallback spells a character that it has no piece for as the bytes of its
UTF-8, a piece each. A byte piece then has to continue the character that was begun, and neither
another piece nor </s> may come before its last byte. The bytes that may follow each other are those
of table 3-7 of the Unicode Standard (RFC 3629): no overlong forms, no surrogates, nothing above
U+10FFFF. Search only excludes pieces; probabilities remain those of the model.
"""

# B segments, K hypotheses of each, R = B * K rows, C candidates of a row, V vocabulary,
# N byte pieces of a segment, T kinds of pieces, Q states times kinds of room

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes that may follow in the same places, first and last. The kind of a piece is 0 for a whole
# piece or </s>, i + 1 for a byte of range i, and NEVER for a byte that may not be written.
_RANGES = (
    (0x00, 0x7F), (0x80, 0x8F), (0x90, 0x9F), (0xA0, 0xBF), (0xC2, 0xDF), (0xE0, 0xE0),
    (0xE1, 0xEC), (0xED, 0xED), (0xEE, 0xEF), (0xF0, 0xF0), (0xF1, 0xF3), (0xF4, 0xF4),
)  # fmt: skip
WHOLE, NEVER = 0, len(_RANGES) + 1
_NUM_KINDS = NEVER + 1
_LOW, _MIDDLE, _HIGH = 2, 3, 4  # kinds of continuation bytes

# What a hypothesis is inside of: nothing, or a character whose next byte is restricted.
BETWEEN, ONE, TWO, AFTER_E0, AFTER_ED, THREE, AFTER_F0, AFTER_F4 = range(8)
_NUM_STATES = 8
_ANY = (_LOW, _MIDDLE, _HIGH)
# For each state inside a character the kinds that may follow, and the state after them.
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
_LONGEST = 4  # bytes of a character; more room than that makes no difference
_ROOMS = _LONGEST + 1
_UNREACHABLE = _ROOMS + _LONGEST  # more than there is ever room for


def next_state(state: int, kind: int) -> int:
    """Return the state after a piece; a piece that may not follow begins anew."""
    return _NEXT.get((state, kind), _FIRST.get(kind, BETWEEN))


_AFTER = torch.tensor(
    [[next_state(state, kind) for kind in range(_NUM_KINDS)] for state in range(_NUM_STATES)]
)


@dataclass(frozen=True, slots=True)
class Utf8:
    """Which pieces may follow, for each segment of a batch or for all alike (B = 1).

    Attributes:
        kinds: (B, V) kind of each piece.
        places: (B, N) ids of the byte pieces, filled up with ids of other pieces.
        may: (B, Q, T) whether a kind may follow, by state and room.
    """

    kinds: Tensor
    places: Tensor
    may: Tensor

    @staticmethod
    def of(
        byte_values: Mapping[int, int],
        vocab_size: int,
        *,
        banned_ids: Sequence[int] = (),
        device: torch.device,
    ) -> "Utf8 | None":
        """Return the constraint for a vocabulary; None where no piece stands for a byte.

        Args:
            byte_values: the byte, 0 to 255, that a piece stands for, by its id.
            vocab_size: V.
            banned_ids: pieces that are never written.
            device: where search runs.
        """
        if not byte_values:
            return None
        kinds = [WHOLE] * vocab_size
        banned = frozenset(banned_ids)
        for piece, value in byte_values.items():
            kinds[piece] = NEVER if piece in banned else _kind(value)
        return Utf8._of_kinds(torch.tensor([kinds], device=device))

    @staticmethod
    def _of_kinds(kinds: Tensor) -> "Utf8":
        is_byte = kinds != WHOLE  # (B, V)
        count = int(is_byte.sum(dim=1).max())
        # Byte pieces first, in the order of their ids.
        places = is_byte.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
        return Utf8(kinds, places, _may(kinds))

    def within(self, ids: Tensor) -> "Utf8 | None":
        """Return the constraint where each segment has a vocabulary of its own.

        Piece i of segment b is piece `ids[b, i]` of this vocabulary. None where no segment has a
        byte piece. A segment that lacks the last bytes of a character never begins it.
        """
        kinds = self.kinds[0][ids]  # (B, V')
        return Utf8._of_kinds(kinds) if bool((kinds != WHOLE).any()) else None

    @property
    def num_segments(self) -> int:
        """Number of segments that have rules of their own; 1 where all are alike."""
        return len(self.kinds)

    def keep(self, segments: Tensor) -> "Utf8":
        """Return the constraint for these segments alone."""
        if self.num_segments == 1:
            return self
        return Utf8(self.kinds[segments], self.places[segments], self.may[segments])

    def kinds_of(self, pieces: Tensor) -> Tensor:
        """Return the kinds of the pieces of each segment, (B, any) for (B, any)."""
        if self.num_segments == 1:
            return self.kinds[0][pieces]
        return self.kinds.gather(1, pieces)

    def allows(self, states: Tensor, room: Tensor, kinds: Tensor) -> Tensor:
        """Return whether pieces of these kinds may follow, (B, K, C).

        Args:
            states: (B, K) of the hypotheses.
            room: (B,) pieces that may still be written, these included.
            kinds: (B, K, C).
        """
        return self._rules(states, room).gather(2, kinds)

    def forbid_(
        self, logits: Tensor, states: Tensor, room: Tensor, is_free: Tensor | None = None
    ) -> Tensor:
        """Set the logits of pieces that may not follow to -inf, in place, and return them.

        Args:
            logits: (R, V).
            states: (B, K) of the hypotheses.
            room: (B,) as in `allows`.
            is_free: (R,) rows that this is done for; None for all.
        """
        segments, beams = states.shape
        places = self.places[:, None].expand(segments, beams, -1).flatten(0, 1)  # (R, N)
        kinds = self.kinds.gather(1, self.places)[:, None].expand(segments, beams, -1)  # (B, K, N)
        allowed = self.allows(states, room, kinds).flatten(0, 1)  # (R, N)
        is_inside = (states != BETWEEN).flatten()  # (R,)
        if is_free is not None:
            allowed, is_inside = allowed | ~is_free[:, None], is_inside & is_free
        spelled = logits.gather(1, places).masked_fill(~allowed, -torch.inf)  # (R, N)
        if bool(is_inside.any()):
            logits[is_inside] = -torch.inf
        return logits.scatter_(1, places, spelled)

    def after(self, states: Tensor, kinds: Tensor) -> Tensor:
        """Return the states after one more piece of these kinds, (B, K) for (B, K) each."""
        return _AFTER.to(states.device)[states, kinds]

    def limits(self, limits: Sequence[int], prefixes: Sequence[Sequence[int]]) -> list[int]:
        """Return the limits, raised where a prefix ends inside a character that has no room."""
        raised = list(limits)
        for segment, prefix in enumerate(prefixes):
            state, length = BETWEEN, len(prefix)
            for kind in self.kinds[segment % self.num_segments, list(prefix)].tolist():
                state = next_state(state, kind)
            while state != BETWEEN:
                state, length = _CONTINUATIONS[state][1], length + 1
            raised[segment] = max(raised[segment], length)
        return raised

    def _rules(self, states: Tensor, room: Tensor) -> Tensor:
        """The rules of each hypothesis, (B, K, T)."""
        index = states * _ROOMS + room.clamp(0, _LONGEST)[:, None]  # (B, K)
        if self.num_segments == 1:
            return self.may[0][index]
        return self.may.gather(1, index[:, :, None].expand(-1, -1, _NUM_KINDS))


class Spelling:
    """What the hypotheses of a batch are inside of; a class because it changes with each piece.

    Args:
        utf8: which pieces may follow.
        segments: B.
    """

    def __init__(self, utf8: Utf8, segments: int) -> None:
        self._utf8 = utf8
        self._outside = utf8.kinds.new_zeros(segments, 1)  # (B, 1)
        self._states: Tensor | None = None  # (B, K); None while all are between characters
        self._is_near = True  # whether a byte piece may follow at this step

    def states(self, beams: int) -> Tensor:
        """Return the states of the hypotheses, (B, K)."""
        return self._outside.expand(-1, beams) if self._states is None else self._states

    def wrong_rows(
        self, scores: Tensor, pieces: Tensor, room: Tensor, forced: Tensor | None
    ) -> Tensor | None:
        """Return the rows (r,) with a candidate that may not follow; None where none has.

        Args:
            scores: (R, C) of the candidates; -inf for one that is no candidate.
            pieces: (R, C) their ids.
            room: (B,) pieces that may still be written, these included.
            forced: (R,) pieces that follow whatever else holds; -1 for none.
        """
        segments = len(self._outside)
        kinds = self._utf8.kinds_of(pieces.view(segments, -1))  # (B, K * C)
        self._is_near = bool(kinds.any())
        if self._states is None and not self._is_near:
            return None
        beams = len(pieces) // segments
        kinds = kinds.view(segments, beams, -1)  # (B, K, C)
        fits = self._utf8.allows(self.states(beams), room, kinds).flatten(0, 1)  # (R, C)
        is_wrong = (~fits & (scores > -torch.inf)).any(dim=1)  # (R,)
        if forced is not None:
            is_wrong &= forced < 0
        rows = is_wrong.nonzero()[:, 0]
        return rows if len(rows) else None

    def restricted(
        self, logits: Tensor, plain: Tensor, rows: Tensor, room: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of some rows, with -inf for pieces that may not follow, (r, V).

        The second tensor holds those of the rows whose logits are those of `plain`.

        Args:
            logits: (R, V).
            plain: (R, V) without what forbids repetitions, which counts where a character could
                not be ended otherwise.
            rows: (r,).
            room: (B,) as in `wrong_rows`.
        """
        beams = len(logits) // len(self._outside)
        segments = rows // beams
        utf8, room = self._utf8.keep(segments), room[segments]
        states = self.states(beams).flatten()[rows][:, None]  # (r, 1)
        found = utf8.forbid_(logits[rows], states, room)  # (r, V)
        stuck = (found.amax(dim=1) == -torch.inf).nonzero()[:, 0]
        if len(stuck):
            without = utf8.keep(stuck).forbid_(plain[rows[stuck]], states[stuck], room[stuck])
            found[stuck] = without
        return found, rows[stuck]

    def forbid_(self, logits: Tensor, plain: Tensor, room: Tensor, forced: Tensor | None) -> Tensor:
        """Set the logits of pieces that may not follow to -inf, where each segment has one row.

        The arguments are those of `wrong_rows` and `restricted`, and so are the rows (r,) that it
        returns.
        """
        is_free = None if forced is None else forced < 0
        states = self.states(1)
        self._utf8.forbid_(logits, states, room, is_free)
        rows = states[:, 0].nonzero()[:, 0]
        stuck = rows[logits[rows].amax(dim=1) == -torch.inf] if len(rows) else rows
        if len(stuck):
            logits[stuck] = self._utf8.keep(stuck).forbid_(plain[stuck], states[stuck], room[stuck])
        return stuck

    def grow(self, origin: Tensor, pieces: Tensor) -> None:
        """Let hypothesis k continue hypothesis `origin[:, k]` by a piece, (B, K) each."""
        if self._states is None and not self._is_near:
            return
        kinds = self._utf8.kinds_of(pieces)  # (B, K)
        if self._states is not None:
            before = self._states.gather(1, origin)
        elif bool(kinds.any()):
            before = torch.zeros_like(pieces)
        else:
            return
        states = self._utf8.after(before, kinds)
        self._states = states if bool(states.any()) else None

    def keep(self, segments: Tensor) -> None:
        """Forget all segments but these."""
        self._utf8 = self._utf8.keep(segments)
        self._outside = self._outside[segments]
        self._states = None if self._states is None else self._states[segments]


class GreedySpelling:
    """A `Spelling` for one hypothesis of each segment, kept on the host.

    Greedy search reads each piece there anyway, so a piece that is no byte costs next to nothing.

    Args:
        utf8: which pieces may follow.
    """

    def __init__(self, utf8: Utf8) -> None:
        self._utf8 = utf8
        self._may: list[list[list[bool]]] = utf8.may.tolist()
        self._kinds = [
            dict(zip(places, kinds, strict=True))
            for places, kinds in zip(
                utf8.places.tolist(), utf8.kinds.gather(1, utf8.places).tolist(), strict=True
            )
        ]
        self._byte_ids = frozenset().union(*self._kinds)
        self._states: dict[int, int] = {}  # of segments that are inside a character

    def is_near(self, pieces: Sequence[int]) -> bool:
        """Return whether any of the pieces may be a byte, or a segment is inside a character."""
        return bool(self._states) or not self._byte_ids.isdisjoint(pieces)

    def fits(self, segment: int, piece: int, room: int) -> bool:
        """Return whether a piece may follow in a segment, of so many that may still be written."""
        place = segment % len(self._kinds)
        kind = self._kinds[place].get(piece, WHOLE)
        state = self._states.get(segment, BETWEEN)
        return self._may[place][state * _ROOMS + min(room, _LONGEST)][kind]

    def forbid_(self, logits: Tensor, segments: Sequence[int], room: Sequence[int]) -> Tensor:
        """Set the logits of pieces that may not follow to -inf, in place, and return them.

        Args:
            logits: (r, V).
            segments: of each row.
            room: of each row, as in `fits`.
        """
        at = torch.tensor(segments, device=logits.device)
        states = at.new_tensor([[self._states.get(segment, BETWEEN)] for segment in segments])
        return self._utf8.keep(at).forbid_(logits, states, at.new_tensor(room))

    def grow(self, segment: int, piece: int) -> None:
        """Note the piece that follows in a segment."""
        kind = self._kinds[segment % len(self._kinds)].get(piece, WHOLE)
        state = next_state(self._states.pop(segment, BETWEEN), kind)
        if state != BETWEEN:
            self._states[segment] = state


class FixedSpelling:
    """A `Spelling` in tensors alone, which stay where they are, for one vocabulary.

    Args:
        utf8: which pieces may follow, the same for all segments.
        segments: B.
        beams: K.
    """

    def __init__(self, utf8: Utf8, segments: int, beams: int) -> None:
        (may,), (kinds,) = utf8.may, utf8.kinds
        self._forbidden = ~may[:, kinds]  # (Q, V)
        self._after = _AFTER.to(kinds.device)[:, kinds].flatten()  # (states * V,)
        self._vocab_size = len(kinds)
        self._states = kinds.new_zeros(segments, beams)

    def begin(self) -> None:
        """Let all hypotheses be between characters."""
        self._states.zero_()

    def take(self, other: "FixedSpelling", segments: Tensor) -> None:
        """Become what these segments (B,) of another batch are."""
        self._states.copy_(other._states.index_select(0, segments))

    def forbid_(self, logits: Tensor, room: Tensor) -> Tensor:
        """Set the logits (R, V) of pieces that may not follow to -inf, and return them.

        Args:
            logits: (R, V).
            room: (B,) pieces that may still be written, these included.
        """
        rules = self._states * _ROOMS + room.clamp(0, _LONGEST)[:, None]  # (B, K)
        return logits.masked_fill_(self._forbidden.index_select(0, rules.flatten()), -torch.inf)

    def grow(self, origin: Tensor, pieces: Tensor) -> None:
        """Let hypothesis k continue hypothesis `origin[:, k]` by a piece, (B, K) each."""
        place = pieces + self._states.gather(1, origin) * self._vocab_size  # (B, K)
        self._states.copy_(self._after.index_select(0, place.flatten()).view_as(pieces))


def _kind(value: int) -> int:
    for place, (first, last) in enumerate(_RANGES, 1):
        if first <= value <= last:
            return place
    return NEVER


def _may(kinds: Tensor) -> Tensor:
    """Return whether a kind may follow by state and room, (B, Q, T), for pieces of (B, V) kinds.

    A byte may follow if the pieces that are there can end its character within the room.
    """
    available = kinds.new_zeros((len(kinds), _NUM_KINDS), dtype=torch.bool)
    available.scatter_(1, kinds, torch.ones_like(kinds, dtype=torch.bool))
    missing = kinds.new_zeros(len(kinds), _NUM_STATES)  # fewest pieces that end the character
    for state, (following, after) in _CONTINUATIONS.items():
        is_possible = available[:, list(following)].any(dim=1)  # (B,)
        missing[:, state] = torch.where(is_possible, missing[:, after] + 1, _UNREACHABLE)
    needed = 1 + missing[:, _AFTER.to(kinds.device)]  # (B, states, T)
    needed[:, :, WHOLE] = 0  # it may be </s>
    is_valid = torch.zeros(_NUM_STATES, _NUM_KINDS, dtype=torch.bool)
    is_valid[tuple(zip(*_NEXT, strict=True))] = True
    rooms = torch.arange(_ROOMS, device=kinds.device)[:, None]
    may = is_valid.to(kinds.device)[:, None] & (rooms >= needed[:, :, None])
    return may.flatten(1, 2)  # (B, states, rooms, T) → (B, Q, T)
