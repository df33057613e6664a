"""Which training pairs are left out, and why; each is counted under the first reason."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from tfm_cli.config import DataConfig

# U+FFFD, C0 and C1 but the tab, DEL, private use, and the code points that are no characters.
_BAD = re.compile(
    "[\ufffd\x00-\x08\x0a-\x1f\x7f-\x9f\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0xF0000, 0x10000))
    + "\U000f0000-\U0010ffff]"
)
REASONS = (
    "blank side", "identical sides", "bad characters", "too long", "length ratio", "duplicate",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Filters:
    """What training pairs must be like; pairs with a blank side are left out in any case.

    Attributes:
        max_length: most pieces on a side.
        max_ratio: most pieces of a side for each of the other; 0 for any number.
        identical: leave out pairs of which both sides are the same text.
        duplicates: leave out pairs of texts that occurred before.
        bad_characters: leave out pairs with characters that no text has.
    """

    max_length: int
    max_ratio: float = 0.0
    identical: bool = False
    duplicates: bool = False
    bad_characters: bool = False

    @classmethod
    def of(cls, data: DataConfig) -> Self:
        """Those that the settings ask for."""
        return cls(
            max_length=data.max_length,
            max_ratio=data.max_ratio,
            identical=data.drop_identical,
            duplicates=data.drop_duplicates,
            bad_characters=data.drop_bad_characters,
        )


def has_bad_character(text: str) -> bool:
    """Whether there is a replacement or control character, private use or a noncharacter."""
    return _BAD.search(text) is not None


def kept_texts(
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
        rules.append(("bad characters", lambda s, t: has_bad_character(s) or has_bad_character(t)))
    for reason, is_wrong in rules:
        kept = [pair for pair in pairs if not is_wrong(*pair)]
        dropped[reason] += len(pairs) - len(kept)
        pairs = kept
    return [source for source, _ in pairs], [target for _, target in pairs]


def kept_lengths(
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
