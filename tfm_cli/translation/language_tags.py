"""Lines that do not say what a multilingual model wants to know, or say it to one that is not."""

import logging
from collections.abc import Sequence

from tfm_cli.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class TagCheck:
    """Warns of language tags, of each once; a class because it knows what it has told.

    Args:
        tokenizer: of the source.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._told: set[str] = set()  # "" for a line without one

    def check(self, lines: Sequence[str], first_number: int) -> None:
        """Warn of tags that a multilingual model does not know or does not find.

        Args:
            lines: of the source.
            first_number: what messages call the first of them.
        """
        if self._tokenizer.vocabulary is None:  # as of most models, which know of no tags
            return
        known = self._tokenizer.language_tags
        listed = ", ".join(known[:8]) + (" …" if len(known) > 8 else "")
        for number, line in enumerate(lines, first_number):
            tag = self._tokenizer.language_tag(line)
            if tag in known or tag in self._told or not line.strip():
                continue
            if tag:
                told = f"the model knows {listed}" if known else "the model has one target language"
                logger.warning("line %d: `%s` is no target language: %s", number, tag, told)
            elif known:
                told = "line %d: does not say its target language, such as %s at its start"
                logger.warning(told, number, known[0])
            self._told.add(tag)
