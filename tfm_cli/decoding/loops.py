"""Loops: the same few pieces again and again, from a model that has not learned enough."""

from collections.abc import Sequence

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
