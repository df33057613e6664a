"""What a terminal is shown: text that cannot steer it."""

import errno
import io
import re
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# C0 but for tab and line feed, DEL, C1, the characters that turn the direction of writing, and
# what stands for bytes of a file name that are no UTF-8.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_LINE_FEED = re.compile("\n(?!  )")


def visible(text: str) -> str:
    r"""The text with each control character, but tab and line feed, spelled as in `\u001b`."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def told(text: str) -> str:
    r"""A message as it is shown: as `visible`, and a line feed is spelled unless two blanks follow.

    All lines of a message but the first are indented. A name with a line feed in it, which no
    message indents, thus cannot begin a line that looks like ours.
    """
    return _LINE_FEED.sub(r"\\u000a", visible(text))


def one_line(text: str) -> str:
    """A name as it stands in a table or beside a score: as `visible`, without line feeds."""
    return visible(text).replace("\n", "\\u000a").replace("\t", "\\u0009")


class _LastingFile(io.FileIO):
    """A terminal that may be gone one day; what is written to it then is lost."""

    def write(self, content: "ReadableBuffer", /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(content).nbytes


def lasting_terminal(stream: TextIO) -> TextIO:
    """Return a stream to the same terminal that has no errors once the terminal is gone.

    When a connection is dropped, a program should save its work and not fail at telling so.
    """
    binary = io.BufferedWriter(_LastingFile(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(binary, encoding="utf-8", errors=stream.errors, line_buffering=True)
