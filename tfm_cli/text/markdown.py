"""Escaping of untrusted text for Markdown."""

import re

from tfm_cli.console import one_line

# Characters are escaped by character references: a backslash escape may mean something in HTML.
_MARKS = re.compile(
    r"""
    [\\|<>&`*\[\]!~$@\#{}^]
    | (?<![A-Za-z0-9])_ | _(?![A-Za-z0-9])  # inside a word it has no meaning
    | : (?=//)  # some renderers make links of bare URLs
    | (?<=www) \.
    | ^ [-+=]
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CODE = re.compile(r"[\w.,:;=+/()<>#|-]+(?: [\w.,:;=+/()<>#|-]+)*", re.ASCII)


def plain(text: str) -> str:
    """Return Markdown that shows `one_line(text)` verbatim in a paragraph or a table cell."""
    return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", one_line(text).strip())


def code(text: str) -> str:
    """Return Markdown that shows a text as code in a table cell, or as `plain` if it cannot."""
    if not _CODE.fullmatch(text):
        return plain(text)
    escaped = text.replace("|", "\\|")  # a bare `|` ends a cell even inside code
    return f"`{escaped}`"
