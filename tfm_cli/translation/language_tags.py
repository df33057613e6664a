"""Warnings of lines whose language tag is missing or unknown."""

import logging
from collections.abc import Sequence

from tfm_cli.corpus.characters import is_blank
from tfm_cli.language_tags import leading_tag, listed
from tfm_cli.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_MOST_TOLD = 8  # tags that are warned of


class TagCheck:
    """Warns of language tags that are missing or unknown, of each once.

    Args:
        tokenizer: of the source.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known = frozenset(tokenizer.language_tags)
        self._told: set[str] = set()  # "" for a line without one

    def check(self, lines: Sequence[str], first_number: int, *, name: str = "") -> None:
        """Warn of tags that the model does not know, and of lines without one that need it.

        Args:
            lines: of the source; of a text of several lines, the first one with text counts.
            first_number: what messages call the first of them.
            name: what messages call the file.
        """
        known = self._known
        for number, line in enumerate(lines, first_number):
            if not line or (not known and not line.lstrip("\n").startswith(">>")):
                continue
            texts = line.split("\n") if "\n" in line else [line]
            tags = [leading_tag(text) for text in texts if not is_blank(text)]
            # A line without a tag has that of the line before it.
            for tag in dict.fromkeys((*tags[:1], *filter(None, tags))):
                if tag not in known and tag not in self._told and len(self._told) <= _MOST_TOLD:
                    self._tell(tag, f"{name}:{number}" if name else f"line {number}")

    def _tell(self, tag: str, place: str) -> None:
        if not tag and not self._known:
            return
        self._told.add(tag)
        if len(self._told) > _MOST_TOLD:
            logger.warning("%s: `%s` is no target language either; others are not told", place, tag)
            return
        tags = self._tokenizer.language_tags
        if not tag:
            told = "%s: does not say its target language, such as %s at its start"
            logger.warning(told, place, tags[0])
        elif tags:
            told = f"the model knows {listed(tags)}"
            logger.warning("%s: `%s` is no target language: %s", place, tag, told)
        elif self._tokenizer.reads_tags_as_text:
            told = "the model knows no language tags and reads it as text"
            logger.warning("%s: `%s` is no target language: %s", place, tag, told)
        else:
            told = "the model has one target language"
            logger.warning("%s: `%s` is no target language: %s", place, tag, told)
