"""Filters that drop training pairs; each dropped pair is counted under the first reason."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from tfm_cli.config.settings import DataConfig
from tfm_cli.text.characters import has_bad_character, separator_kinds

_HASHES_AT_A_TIME = 1 << 21


@dataclass(frozen=True, slots=True)
class Filters:
    """Rules that training pairs must satisfy; pairs with a blank side are always dropped.

    Attributes:
        max_length: the maximum number of tokens on a side, without </s>.
        max_ratio: the maximum ratio of the longer to the shorter side, in tokens; 0 for no limit.
        identical: drop pairs whose sides are the same text.
        duplicates: drop pairs whose texts occurred before.
        bad_characters: drop pairs with bad characters or separators (`text.characters`).
        bad_utf8: the treatment of lines that are not UTF-8: `refuse`, `replace` or `drop-pair`.
    """

    max_length: int
    max_ratio: float = 0.0
    identical: bool = False
    duplicates: bool = False
    bad_characters: bool = False
    bad_utf8: str = "refuse"

    @classmethod
    def of(cls, data: DataConfig) -> Self:
        """Return the filters of the settings."""
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
    """Return the pairs whose text passes the filters, and count the others in `dropped`."""
    has_blank = not (all(map(str.strip, sources)) and all(map(str.strip, targets)))
    if not (has_blank or filters.identical or filters.bad_characters):  # the usual case
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
        passed = [pair for pair in pairs if not is_wrong(*pair)]
        dropped[reason] += len(pairs) - len(passed)
        pairs = passed
    return [source for source, _ in pairs], [target for _, target in pairs]


def _is_bad(text: str) -> bool:
    return has_bad_character(text) or bool(separator_kinds(text))


def filter_lengths(
    source: np.ndarray, target: np.ndarray, filters: Filters, dropped: Counter[str]
) -> np.ndarray:
    """Return True for each pair whose lengths pass the filters, shape (num_pairs,).

    Args:
        source: tokens of each source without </s>, shape (num_pairs,).
        target: the same for the targets.
        filters: the rules.
        dropped: the number of dropped pairs by reason; changed in place.
    """
    shorter, longer = np.minimum(source, target), np.maximum(source, target)
    select = np.ones(len(source), dtype=np.bool_)
    rules = [("blank side", shorter == 0), ("too long", longer > filters.max_length)]
    if filters.max_ratio:
        rules.append(("length ratio", longer > filters.max_ratio * shorter))
    for reason, is_wrong in rules:
        dropped[reason] += int((select & is_wrong).sum())
        select &= ~is_wrong
    return select


def repeated_hashes(hashes: np.ndarray, *, at_a_time: int = _HASHES_AT_A_TIME) -> np.ndarray:
    """Return True for each hash that also occurs earlier, shape (num_hashes,).

    The hashes are partitioned by their leading bits into parts of about `at_a_time`, and each part
    takes one pass over all of them, so that memory is bounded if they are memory-mapped.

    Args:
        hashes: 64-bit hashes of the texts, shape (num_hashes,).
        at_a_time: the approximate number of hashes in memory.
    """
    is_repeated = np.zeros(len(hashes), dtype=np.bool_)
    num_parts = 1 << max(0, (max(1, len(hashes)) - 1) // at_a_time).bit_length()
    shift = np.uint64(64 - num_parts.bit_length() + 1)
    for part in range(num_parts):
        positions = [
            first + np.flatnonzero(_part(hashes[first : first + at_a_time], shift) == part)
            for first in range(0, len(hashes), at_a_time)
        ]
        in_part = np.concatenate(positions) if positions else np.zeros(0, dtype=np.int64)
        values = hashes[in_part]
        order = np.argsort(values, kind="stable")
        again = np.flatnonzero(values[order][1:] == values[order][:-1]) + 1
        is_repeated[in_part[order[again]]] = True
    return is_repeated


def _part(hashes: np.ndarray, shift: np.uint64) -> np.ndarray:
    if shift == 64:  # NumPy does not define a shift by 64 bits
        return np.zeros(len(hashes), dtype=np.uint64)
    return hashes >> shift
