"""Which pairs occurred before, told by 64-bit hashes of their text."""

import numpy as np

_HASHES_AT_A_TIME = 1 << 21


def later_duplicates(hashes: np.ndarray, *, at_a_time: int = _HASHES_AT_A_TIME) -> np.ndarray:
    """True for each hash that stands further ahead as well, of shape (num_pairs,).

    One pass over all of them for each share of about `at_a_time`, so that memory stays bounded
    when they are on a disk.
    """
    is_later = np.zeros(len(hashes), dtype=np.bool_)
    num_shares = 1 << max(0, (max(1, len(hashes)) - 1) // at_a_time).bit_length()
    shift = np.uint64(64 - num_shares.bit_length() + 1)
    for share in range(num_shares):
        places = [
            first + np.flatnonzero(_share(hashes[first : first + at_a_time], shift) == share)
            for first in range(0, len(hashes), at_a_time)
        ]
        here = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
        found = hashes[here]
        order = np.argsort(found, kind="stable")
        again = np.flatnonzero(found[order][1:] == found[order][:-1]) + 1
        is_later[here[order[again]]] = True
    return is_later


def _share(hashes: np.ndarray, shift: np.uint64) -> np.ndarray:
    if shift == 64:  # which would be no shift at all
        return np.zeros(len(hashes), dtype=np.uint64)
    return hashes >> shift
