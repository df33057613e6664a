import unicodedata
from collections import Counter

import numpy as np
import pytest

from tests.corpus.conftest import hostile_lines
from tfm_cli.config.settings import DataConfig
from tfm_cli.corpus.filters import Filters, filter_lengths, filter_texts


def is_bad(character: str) -> bool:
    """By Unicode's own tables: control, private use, no character, U+FFFD, a mark, LS or PS."""
    code = ord(character)
    is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    named = character in "\ufffd\ufeff\u2028\u2029"
    is_control = unicodedata.category(character) in ("Cc", "Co") and character != "\t"
    return is_noncharacter or named or is_control


@pytest.mark.slow
def test_bad_characters_are_those_of_the_unicode_tables() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    lines = [f"a{character}b" for character in characters if character.strip()]
    dropped: Counter[str] = Counter()

    actual, _ = filter_texts(lines, lines, Filters(9, bad_characters=True), dropped)

    expected = [line for line in lines if not is_bad(line[1])]
    assert actual == expected
    assert dropped["bad characters"] == len(lines) - len(expected)


@pytest.mark.parametrize("identical", [False, True])
@pytest.mark.parametrize("bad", [False, True])
def test_texts_pass_unless_a_rule_drops_them(identical: bool, bad: bool) -> None:
    lines = [line.decode() for line in hostile_lines(1, 400)]
    sources, targets = [*lines, "same", "p\ue000"], [*lines[:50], *lines[:350], "same", "p\ue000"]
    dropped: Counter[str] = Counter()

    actual = filter_texts(
        sources, targets, Filters(9, identical=identical, bad_characters=bad), dropped
    )

    expected, counts = [], Counter[str]()
    for source, target in zip(sources, targets, strict=True):
        if source.strip() == "" or target.strip() == "":
            counts["blank side"] += 1
        elif identical and source == target:
            counts["identical sides"] += 1
        elif bad and any(map(is_bad, source + target)):
            counts["bad characters"] += 1
        else:
            expected.append((source, target))
    assert list(zip(*actual, strict=True)) == expected
    assert dropped == counts


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, 3.0])
def test_lengths_pass_within_the_bounds(ratio: float) -> None:
    both = np.array([[s, t] for s in range(12) for t in range(12)])
    dropped: Counter[str] = Counter()

    keep = filter_lengths(both[:, 0], both[:, 1], Filters(9, max_ratio=ratio), dropped)

    counts = Counter[str]()
    for (source, target), stays in zip(both.tolist(), keep.tolist(), strict=True):
        reason = ""
        if 0 in (source, target):
            reason = "blank side"
        elif max(source, target) > 9:
            reason = "too long"
        elif ratio and max(source, target) / min(source, target) > ratio:
            reason = "length ratio"
        counts[reason] += 1
        assert stays == (not reason), (source, target)
    del counts[""]
    assert dropped == counts


def test_filters_are_those_of_the_settings() -> None:
    data = DataConfig(
        max_length=7, max_ratio=2.0, drop_identical=True, drop_duplicates=True,
        drop_bad_characters=True,
    )  # fmt: skip

    assert Filters.of(data) == Filters(
        7, max_ratio=2.0, identical=True, duplicates=True, bad_characters=True
    )
    assert Filters.of(DataConfig()) == Filters(256)
