"""Scripts that are written without spaces between words, and joining text in them."""

import bisect
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Script = Literal["Han", "kana", "other"]

# Unicode blocks, first and last code point. "other": South-East Asian scripts, Tibetan, Bopomofo
# and Yi.
_BLOCKS: tuple[tuple[int, int, Script], ...] = (
    (0x0E00, 0x0E7F, "other"),  # Thai
    (0x0E80, 0x0EFF, "other"),  # Lao
    (0x0F00, 0x0FFF, "other"),  # Tibetan
    (0x1000, 0x109F, "other"),  # Myanmar
    (0x1780, 0x17FF, "other"),  # Khmer
    (0x1950, 0x197F, "other"),  # Tai Le
    (0x1980, 0x19DF, "other"),  # New Tai Lue
    (0x1A20, 0x1AAF, "other"),  # Tai Tham
    (0x1B00, 0x1B7F, "other"),  # Balinese
    (0x2E80, 0x2FDF, "Han"),  # radicals
    (0x3005, 0x3007, "Han"),
    (0x3021, 0x3029, "Han"),
    (0x3031, 0x3035, "kana"),  # repeat marks
    (0x3038, 0x303B, "Han"),
    (0x3041, 0x30FA, "kana"),  # Hiragana and Katakana
    (0x30FC, 0x30FF, "kana"),
    (0x3100, 0x312F, "other"),  # Bopomofo
    (0x31A0, 0x31BF, "other"),
    (0x31F0, 0x31FF, "kana"),
    (0x3400, 0x4DBF, "Han"),
    (0x4E00, 0x9FFF, "Han"),
    (0xA000, 0xA4CF, "other"),  # Yi
    (0xA980, 0xA9DF, "other"),  # Javanese
    (0xA9E0, 0xA9FF, "other"),  # Myanmar
    (0xAA60, 0xAA7F, "other"),
    (0xAA80, 0xAADF, "other"),  # Tai Viet
    (0xF900, 0xFAFF, "Han"),
    (0xFF66, 0xFF9D, "kana"),  # half width
    (0x1AFF0, 0x1B16F, "kana"),
    (0x20000, 0x323AF, "Han"),
)
_FIRST = [block[0] for block in _BLOCKS]
_LETTERS = frozenset({"Lo", "Lm", "Nl", "So"})  # Unicode categories, without combining marks
# Punctuation of these scripts, and full-width forms.
_WIDE_MARKS = ((0x3000, 0x303F), (0xFE10, 0xFE1F), (0xFE30, 0xFE6F), (0xFF00, 0xFF65))


def script_without_spaces(character: str) -> Script | None:
    """Return the script of a character if it has no spaces between words; otherwise None."""
    code = ord(character)
    if code < _FIRST[0]:
        return None
    _, last, script = _BLOCKS[bisect.bisect_right(_FIRST, code) - 1]
    return script if code <= last else None


def belongs_without_spaces(character: str) -> bool:
    """Return True for a character or punctuation mark of a script without spaces."""
    if script_without_spaces(character):
        return True
    code = ord(character)
    return any(first <= code <= last for first, last in _WIDE_MARKS)


class ScriptCounts(NamedTuple):
    """Counts of letters in scripts without spaces, and of words in all other scripts."""

    han: int
    kana: int
    other: int
    words: int

    @property
    def is_without_spaces(self) -> bool:
        """Return True if the text as a whole is in scripts without spaces.

        A word in a script with spaces counts as much as a letter in one without, so that Latin
        names and terms do not outweigh the rest of a Chinese text.
        """
        return self.han + self.kana + self.other > self.words

    @property
    def is_chinese(self) -> bool:
        """Return True for a text in Han characters with few kana.

        Japanese sentences have kana, usually more than Han characters; a Chinese text has a few
        only in Japanese names.
        """
        is_han = self.han + self.kana > self.other
        return self.is_without_spaces and is_han and self.kana * 10 < self.han


def count_scripts(lines: Iterable[str]) -> ScriptCounts:
    """Count letters and words by script, without digits and punctuation."""
    counts = {"Han": 0, "kana": 0, "other": 0}
    words = 0
    for line in lines:
        is_in_word = False
        for character in line:
            script = script_without_spaces(character)
            if script is not None:
                counts[script] += unicodedata.category(character) in _LETTERS
                is_in_word = False
            elif character.isalpha():
                words += not is_in_word
                is_in_word = True
            elif character.isspace():
                is_in_word = False
    return ScriptCounts(counts["Han"], counts["kana"], counts["other"], words)


# Joining the translations of the parts of a line.


def separators(texts: Sequence[str], continues_word: Sequence[bool]) -> list[str]:
    """Return the separator before each part of a text: "" or a space.

    There is no space between two characters of scripts without spaces, nor next to one such
    character if most of the text is in such scripts. There is none before an empty part, nor inside
    a word.

    Args:
        texts: the text of each part.
        continues_word: True for each part that begins in the middle of a word.
    """
    result: list[str] = []
    before = ""
    is_without_spaces: bool | None = None
    for text, is_same_word in zip(texts, continues_word, strict=True):
        separator = " " if before and text and not is_same_word else ""
        if separator:
            sides = belongs_without_spaces(before), belongs_without_spaces(text[0])
            if any(sides) and not all(sides) and is_without_spaces is None:
                is_without_spaces = count_scripts(texts).is_without_spaces
            if all(sides) or (any(sides) and is_without_spaces):
                separator = ""
        result.append(separator)
        before = text[-1] if text else before
    return result


def join_texts(texts: Sequence[str], continues_word: Sequence[bool]) -> str:
    """Return the parts of a text joined with their `separators`."""
    between = separators(texts, continues_word)
    return "".join(part for pair in zip(between, texts, strict=True) for part in pair)
