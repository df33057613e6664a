"""What stands between the translations of the parts of a line."""

from collections.abc import Sequence

from tfm_cli.scripts import belongs_without_blanks, count_scripts


def separators(texts: Sequence[str]) -> list[str]:
    """Return what stands before each part of a text: nothing or a blank.

    There is no blank in a script without blanks: where both sides of the seam are in one, or one
    of them is and most of the text. An empty part has none either.
    """
    found: list[str] = []
    before = ""
    is_without_blanks: bool | None = None
    for text in texts:
        separator = " " if before and text else ""
        if separator:
            sides = belongs_without_blanks(before), belongs_without_blanks(text[0])
            if any(sides) and not all(sides) and is_without_blanks is None:
                is_without_blanks = count_scripts(texts).is_without_blanks
            if all(sides) or (any(sides) and is_without_blanks):
                separator = ""
        found.append(separator)
        before = text[-1] if text else before
    return found


def join_texts(texts: Sequence[str]) -> str:
    """Return the translations of a line's parts as one text."""
    return "".join(part for pair in zip(separators(texts), texts, strict=True) for part in pair)
