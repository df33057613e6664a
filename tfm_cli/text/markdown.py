"""Text of others in Markdown: shown as it stands, whatever it is made of."""

import re

from tfm_cli.console import one_line

# A character reference never has a meaning for Markdown or HTML, other than a backslash before it.
_MARKS = re.compile(
    r"""
    [\\|<>&`*\[\]!~$@\#{}^]
    | (?<![A-Za-z0-9])_ | _(?![A-Za-z0-9])  # elsewhere it is a part of a word
    | : (?=//)  # else some renderers make links of such text
    | (?<=www) \.
    | ^ [-+=]
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CODE = re.compile(r"[\w.,:;=+/()<>#|-]+(?: [\w.,:;=+/()<>#|-]+)*", re.ASCII)


def plain(text: str) -> str:
    """Return Markdown that shows a text as `one_line` has it, in a paragraph or a table."""
    return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", one_line(text).strip())


def code(text: str) -> str:
    """Return Markdown that shows a text as code, where it can be, in a table."""
    if not _CODE.fullmatch(text):
        return plain(text)
    escaped = text.replace("|", "\\|")  # which ends a cell even inside of code
    return f"`{escaped}`"
