"""Characters that do not belong in a line of text: line separators, controls, noncharacters."""

import re

# Some programs end a line at these; here only LF does. Such a program can count different numbers
# of lines in the two sides of a parallel text.
SEPARATORS = {
    "\v": "VT",
    "\f": "FF",
    "\r": "CR",
    "\x1c": "FS",
    "\x1d": "GS",
    "\x1e": "RS",
    "\x85": "NEL",
    "\u2028": "LS",
    "\u2029": "PS",
}

# The last two code points of each plane, and 32 more, are never assigned to characters.
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(
    f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000)
)
_BAD = {
    "control": "\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f",  # except tab and the separators
    "replacement": "\ufffd",
    "private use": "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd",
    "noncharacter": _NONCHARACTERS,
    "byte order mark": "\ufeff",
}
BAD_KINDS = tuple(_BAD)

# Unicode's Default_Ignorable_Code_Point: invisible and without width.
_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff"
)
_INVISIBLE = re.compile(rf"[\s\x00-\x1f\x7f-\x9f{_IGNORABLE}]*")
_SEPARATOR = re.compile(f"[{''.join(SEPARATORS)}]")
_ANY_BAD = re.compile(f"[{''.join(_BAD.values())}]")


def is_plain(line: str) -> bool:
    """Return True only if a line has no separator and no bad character.

    This is a fast test, which may be False for a line that has neither.
    """
    # All characters are printable except controls, separators other than the space, private use,
    # format characters and unassigned ones. U+FFFD is the only bad character that is printable.
    return line.isprintable() and "\ufffd" not in line


def is_blank(line: str) -> bool:
    """Return True if nothing is visible: only white space, controls and zero-width characters."""
    return _INVISIBLE.fullmatch(line) is not None


def separator_kinds(line: str) -> list[str]:
    """Return the names in `SEPARATORS` of the line separators in a line, each once."""
    if is_plain(line):
        return []
    return [SEPARATORS[character] for character in sorted(set(_SEPARATOR.findall(line)))]


def has_bad_character(line: str) -> bool:
    """Return True if a line has a character of one of `BAD_KINDS`."""
    return not is_plain(line) and _ANY_BAD.search(line) is not None


def bad_kinds(line: str) -> list[str]:
    """Return the kinds of bad characters in a line, each once, in the order of `BAD_KINDS`."""
    if not has_bad_character(line):
        return []
    return [kind for kind, characters in _BAD.items() if re.search(f"[{characters}]", line)]
