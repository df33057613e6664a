"""Which training pairs are left out, and why; each is counted under the first reason."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from tfm_cli.config.settings import DataConfig
from tfm_cli.text.characters import has_bad_character, separator_kinds


@dataclass(frozen=True, slots=True)
class Filters:
    """What training pairs must be like; pairs with a blank side are left out in any case.

    Attributes:
        max_length: most pieces on a side.
        max_ratio: most pieces of a side for each of the other; 0 for any number.
        identical: leave out pairs of which both sides are the same text.
        duplicates: leave out pairs of texts that occurred before.
        bad_characters: leave out pairs with bad characters or separators, as of `characters`.
        bad_utf8: what becomes of lines that are no UTF-8: `refuse`, `replace` or `drop-pair`.
    """

    max_length: int
    max_ratio: float = 0.0
    identical: bool = False
    duplicates: bool = False
    bad_characters: bool = False
    bad_utf8: str = "refuse"

    @classmethod
    def of(cls, data: DataConfig) -> Self:
        """Those that the settings ask for."""
        return cls(
            max_length=data.max_length,
            max_ratio=data.max_ratio,
            identical=data.drop_identical,
            duplicates=data.drop_duplicates,
            bad_characters=data.drop_bad_characters,
            bad_utf8=data.bad_utf8,
        )


def filter_texts(
    sources: Sequence[str], targets: Sequence[str], filters: Filters, dropped: Counter[str]
) -> tuple[list[str], list[str]]:
    """The sides of the pairs whose text may stay."""
    has_blank = not (all(map(str.strip, sources)) and all(map(str.strip, targets)))
    if not (has_blank or filters.identical or filters.bad_characters):  # as nearly always
        return list(sources), list(targets)
    pairs = list(zip(sources, targets, strict=True))
    rules: list[tuple[str, Callable[[str, str], bool]]] = [
        ("blank side", lambda s, t: not (s.strip() and t.strip()))
    ]
    if filters.identical:
        rules.append(("identical sides", lambda s, t: s == t))
    if filters.bad_characters:
        rules.append(("bad characters", lambda s, t: _is_bad(s) or _is_bad(t)))
    for reason, is_wrong in rules:
        kept = [pair for pair in pairs if not is_wrong(*pair)]
        dropped[reason] += len(pairs) - len(kept)
        pairs = kept
    return [source for source, _ in pairs], [target for _, target in pairs]


def _is_bad(text: str) -> bool:
    return has_bad_character(text) or bool(separator_kinds(text))


def filter_lengths(
    source: np.ndarray, target: np.ndarray, filters: Filters, dropped: Counter[str]
) -> np.ndarray:
    """Which pairs may stay, by their numbers of pieces, of shape (num_pairs,) each."""
    shorter, longer = np.minimum(source, target), np.maximum(source, target)
    keep = np.ones(len(source), dtype=np.bool_)
    rules = [("blank side", shorter == 0), ("too long", longer > filters.max_length)]
    if filters.max_ratio:
        rules.append(("length ratio", longer > filters.max_ratio * shorter))
    for reason, is_wrong in rules:
        dropped[reason] += int((keep & is_wrong).sum())
        keep &= ~is_wrong
    return keep


# Which pairs occurred before, told by 64-bit hashes of their text.

_HASHES_AT_A_TIME = 1 << 21


def repeated_hashes(hashes: np.ndarray, *, at_a_time: int = _HASHES_AT_A_TIME) -> np.ndarray:
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
