"""Language tags such as `>>fra<<`, which begin a source line and select the target language."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

LANGUAGE_TAG = re.compile(r">>[^<>\s]+<<")
NO_TAGS = "none"  # the value of the setting that makes tags ordinary text

# If a smaller share of the lines begins with a tag, the tags are ordinary text: web pages contain
# `>>next<<` and the like.
MIN_TAGGED_SHARE = 0.1
_MAX_TAGS = 1000
_MAX_TAG_LENGTH = 64


def leading_tag(line: str) -> str:
    """Return the language tag at the start of a line; "" without one."""
    if not line.startswith(">>"):
        return ""
    match = LANGUAGE_TAG.match(line)
    return match[0] if match else ""


class TagCounts:
    """Counts of the language tags at the start of lines.

    Attributes:
        num_lines: lines that are not blank.
        num_tagged: lines that begin with a tag.
    """

    def __init__(self) -> None:
        self.num_lines = 0
        self.num_tagged = 0
        self._tags: Counter[str] = Counter()

    def add(self, line: str) -> str | None:
        """Count a line and return its tag, "" without one; skip a blank line and return None."""
        tag = leading_tag(line)
        if tag:
            self.num_tagged += 1
            if len(tag) <= _MAX_TAG_LENGTH and (tag in self._tags or len(self._tags) <= _MAX_TAGS):
                self._tags[tag] += 1
        elif not line.strip():
            return None
        self.num_lines += 1
        return tag

    def num_known(self, tags: Iterable[str]) -> int:
        """Return the number of lines that begin with one of these tags."""
        return sum(self._tags[tag] for tag in tags)

    def watch(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines unchanged, counting each."""
        for line in lines:
            self.add(line)
            yield line

    @property
    def is_tagged(self) -> bool:
        """Return True if the tags name target languages rather than being ordinary text."""
        share = self.num_tagged / max(1, self.num_lines)
        return share >= MIN_TAGGED_SHARE and 0 < len(self._tags) <= _MAX_TAGS

    @property
    def tags(self) -> tuple[str, ...]:
        """Return the tags of the text in order; empty if it is not tagged."""
        return tuple(sorted(self._tags)) if self.is_tagged else ()


def listed(tags: Sequence[str]) -> str:
    """Return the first eight tags as a list for a message."""
    return ", ".join(tags[:8]) + (" …" if len(tags) > 8 else "")
