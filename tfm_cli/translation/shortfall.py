"""A warning of translations that have far fewer sentences or tokens than their source."""

import logging

from tfm_cli.translation.sentences import count_marks, sentence_ends

logger = logging.getLogger(__name__)

_FEWEST_SENTENCES = 3  # of a source that can lose too many of them
_FEWEST_TOKENS = 16  # likewise
_FEWER = 4  # a translation with fewer than one token for so many of its source has lost some


class ShortfallWatch:
    """Warns of the first translation that may have left text out; a class because it warns once."""

    def __init__(self) -> None:
        self._has_warned = False

    def look(
        self, number: int, source: str, text: str, *, source_tokens: int, target_tokens: int
    ) -> None:
        """Look at a translation.

        Args:
            number: of the line.
            source: the line.
            text: its translation.
            source_tokens: of the line.
            target_tokens: of its translation, without the end of a segment.
        """
        if self._has_warned:
            return
        # Characters that the tokenizer does not know have a token for each byte.
        tokens = min(source_tokens, len(source))
        sentences = _lost_sentences(source, text, is_shorter=target_tokens * 2 < tokens)
        if sentences is not None:
            found = f"{sentences[0]} sentences became {sentences[1]}"
        elif tokens >= _FEWEST_TOKENS and target_tokens * _FEWER < tokens:
            found = f"{tokens} tokens became {target_tokens}"
        else:
            return
        self._has_warned = True
        logger.warning(
            "line %d: %s, so its translation may lack text; a model that learned from single "
            "sentences needs each sentence on a line of its own; other such lines are not told",
            number, found,
        )  # fmt: skip


def _lost_sentences(source: str, text: str, *, is_shorter: bool) -> tuple[int, int] | None:
    """Return the numbers of sentences if a translation has less than half of its source's.

    Args:
        source: the line.
        text: its translation. Where it has no marks that end sentences, as in Thai, its sentences
            cannot be counted.
        is_shorter: whether it has few tokens as well.
    """
    if count_marks(source) < _FEWEST_SENTENCES - 1:  # most lines; looking closely takes longer
        return None
    before = len(sentence_ends(source)) + 1
    after = len(sentence_ends(text)) + 1
    if before < _FEWEST_SENTENCES or after * 2 >= before or not (is_shorter or count_marks(text)):
        return None
    return before, after
