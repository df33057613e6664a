"""What stands between the translations of the parts of a line."""

from collections.abc import Sequence

from tfm_cli.scripts import belongs_without_blanks, count_scripts


def separators(texts: Sequence[str], goes_on: Sequence[bool]) -> list[str]:
    """Return what stands before each part of a text: nothing or a blank.

    There is no blank in a script without blanks: where both sides of the seam are in one, or one
    of them is and most of the text. An empty part has none either, and no part that goes on with a
    word.

    Args:
        texts: of the parts.
        goes_on: whether each part of the line begins in the middle of a word.
    """
    found: list[str] = []
    before = ""
    is_without_blanks: bool | None = None
    for text, is_same_word in zip(texts, goes_on, strict=True):
        separator = " " if before and text and not is_same_word else ""
        if separator:
            sides = belongs_without_blanks(before), belongs_without_blanks(text[0])
            if any(sides) and not all(sides) and is_without_blanks is None:
                is_without_blanks = count_scripts(texts).is_without_blanks
            if all(sides) or (any(sides) and is_without_blanks):
                separator = ""
        found.append(separator)
        before = text[-1] if text else before
    return found


def join_texts(texts: Sequence[str], goes_on: Sequence[bool]) -> str:
    """Return the translations of a line's parts as one text; for the arguments see `separators`."""
    between = separators(texts, goes_on)
    return "".join(part for pair in zip(between, texts, strict=True) for part in pair)
