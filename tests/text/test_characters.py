import sys
import unicodedata

from tfm_cli.text.characters import (
    BAD_KINDS,
    SEPARATORS,
    bad_kinds,
    has_bad_character,
    is_blank,
    is_plain,
    separator_kinds,
)

# All assigned planes, and the ends of the others, which are uniform inside.
EVERY = [chr(point) for point in range(0x3000)] + [
    chr(plane + point)
    for plane in range(0, sys.maxunicode, 0x10000)
    for point in (
        *range(0x40),
        *range(0xD7F0, 0xD800),
        *range(0xDFFF, 0xE010),
        *range(0xF8F0, 0x10000),
    )
]


def kind_by_unicode(character: str) -> str | None:
    """Return the kind of a character by Unicode's tables and the definition of a noncharacter."""
    point = ord(character)
    category = unicodedata.category(character)
    if point & 0xFFFE == 0xFFFE or 0xFDD0 <= point <= 0xFDEF:
        return "noncharacter"
    if category == "Co":
        return "private use"
    if category == "Cc" and character not in "\t\n" and character not in SEPARATORS:
        return "control"
    return {"\ufffd": "replacement", "\ufeff": "byte order mark"}.get(character)


def test_separators_are_where_python_would_split_a_line_but_the_line_feed() -> None:
    splitting = {c for c in EVERY if len(f"a{c}b".splitlines()) > 1}  # the reference

    assert set(SEPARATORS) | {"\n"} == splitting


def test_kinds_of_all_characters_agree_with_unicode() -> None:
    kinds = {c: kind_by_unicode(c) for c in EVERY}
    odd = {c for c, kind in kinds.items() if kind is not None}

    assert {c for c in EVERY if has_bad_character(c)} == odd
    assert {c: bad_kinds(c) for c in odd} == {c: [kinds[c]] for c in odd}
    assert {kinds[c] for c in odd} == set(BAD_KINDS)
    assert all(separator_kinds(c) == ([SEPARATORS[c]] if c in SEPARATORS else []) for c in odd)


def test_plain_line_has_no_odd_character() -> None:
    plain = [c for c in EVERY if is_plain(c)]

    assert not [c for c in plain if c in SEPARATORS or kind_by_unicode(c)]
    assert is_plain("Où est la gare ? 東京 😀")


def test_each_kind_of_a_line_is_listed_once() -> None:
    line = "a\x00b\ufffd\x01\ufeff \u2028\x85\u2028\ue000\ufdd0\t"

    assert bad_kinds(line) == list(BAD_KINDS)
    assert separator_kinds(line) == ["NEL", "LS"]
    assert (bad_kinds("a\u00a0b"), separator_kinds("\u200b\t")) == ([], [])


def test_nothing_that_can_be_seen_is_blank() -> None:
    seen = "LMNPS"  # letters, marks, numbers, punctuation, symbols
    invisible = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u3164", "\uffa0"}
    invisible |= {"\u180b", "\u180c", "\u180d", "\u180f", *map(chr, range(0xFE00, 0xFE10))}
    invisible |= {chr(point) for point in range(0xE0000, 0xE1000)}
    for character in EVERY:
        category = unicodedata.category(character)
        if category[0] in seen and character not in invisible:
            assert not is_blank(character), hex(ord(character))
            assert not is_blank(f" \u200b{character}")
        elif category in ("Zs", "Zl", "Zp", "Cc"):
            assert is_blank(character), hex(ord(character))


def test_characters_of_no_width_are_blank_by_themselves() -> None:
    for text in ("", " ", "\u200b", "\ufeff", "\u200c\u200d", "\u00ad \u2060", "\x01\x7f"):
        assert is_blank(text)
    assert not is_blank("\u0600")  # a visible Arabic sign of the category format
