"""Lines become segments, what a model translates in one go, and segments become batches."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tfm_cli.config import SearchConfig
from tfm_cli.corpus.characters import is_blank
from tfm_cli.corpus.random_key import random_key
from tfm_cli.corpus.token_batches import token_batches
from tfm_cli.errors import DataError
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.translation.language_tags import TagCheck
from tfm_cli.translation.splitting import Part, split_line
from tfm_cli.translation.text_lines import text_lines
from tfm_cli.translation.window import Lines

logger = logging.getLogger(__name__)

_CONTINUATION_BYTE = re.compile("<0x[89AB][0-9A-F]>")  # a piece that goes on with a character


@dataclass(frozen=True, slots=True)
class Segment:
    """A line, or a part of an over-long one."""

    line: int  # index within the window
    part: int  # index within the line
    number: int  # of the line in the input, from 1
    ids: list[int]
    seed: int
    prefix: list[int]  # what the translation begins with
    text_line: int = 0  # index within the text, where that has several lines
    goes_on: bool = False  # begins in the middle of a word


class Segmenter:
    """Makes batches of lines; a class because it counts the lines.

    Args:
        tokenizers: of the model.
        search: how translations are looked for.
        beam_size: hypotheses that are followed at a time.
        on_long: what becomes of a line of more than `longest` pieces: `split` or `cut`.
        longest: most pieces of a segment or a prefix.
    """

    def __init__(
        self,
        tokenizers: TokenizerPair,
        search: SearchConfig,
        *,
        beam_size: int,
        on_long: str,
        longest: int,
    ) -> None:
        self._tokenizers = tokenizers
        self._seed = search.seed
        self._budget = max(1, search.max_tokens // beam_size)  # source pieces
        self._on_long = on_long
        self._longest = longest
        self._lines_before = 0
        self._tag_check = TagCheck(tokenizers.source)

    def batches(self, window: Lines) -> list[list[Segment]]:
        """Its segments, those of about the same length together, longest first.

        Raises:
            DataError: a prefix has more pieces than a segment may have.
        """
        lines, prefixes, before, name = window
        if before is not None:
            self._lines_before = before
        if name is not None:
            self._tag_check.check(lines, self._lines_before + 1, name=name)
        segments = self._segments(lines, prefixes if any(prefixes) else [""] * len(lines))
        self._lines_before += len(lines)
        segments.sort(key=lambda segment: -len(segment.ids))
        lengths = [len(segment.ids) + 1 for segment in segments]
        return [
            segments[batch] for batch in token_batches(lengths, lengths, max_tokens=self._budget)
        ]

    def _segments(self, lines: Sequence[str], prefixes: Sequence[str]) -> list[Segment]:
        """The segments of all lines, in order."""
        source = self._tokenizers.source
        texts = [
            (index, each.number, each.text)
            for index, line in enumerate(lines)
            for each in text_lines(line, source)
        ]
        prefix_ids = self._encoded_prefixes(prefixes)
        self._check_prefixes(prefix_ids, {(index, place) for index, place, _ in texts})
        segments: list[Segment] = []
        last = -1  # the line of the last segment
        for (index, place, text), ids in zip(
            texts, source.encode([text for _, _, text in texts]), strict=True
        ):
            number = self._lines_before + index + 1
            for within, (part_ids, goes_on) in enumerate(self._parts(ids, text, number)):
                is_first = index != last
                part = 0 if is_first else segments[-1].part + 1
                seed = random_key("sample", self._seed, number, part)
                beginning: list[int] = []
                if len(prefix_ids[index]) > 1:  # a prefix of several lines begins line by line
                    if within == 0 and place < len(prefix_ids[index]):
                        beginning = prefix_ids[index][place]
                elif is_first:
                    beginning = prefix_ids[index][0]
                segments.append(
                    Segment(index, part, number, part_ids, seed, beginning, place, goes_on)
                )
                last = index
        return segments

    def _encoded_prefixes(self, prefixes: Sequence[str]) -> list[list[list[int]]]:
        """The ids of each line of each prefix."""
        if not any(prefixes):
            return [[[]]] * len(prefixes)
        target = self._tokenizers.target
        texts = [prefix.split("\n") for prefix in prefixes]
        numbers = [n for n, text in enumerate(texts, self._lines_before + 1) for _ in text]
        encoded = target.encode([line for text in texts for line in text])
        for number, ids in zip(numbers, encoded, strict=True):
            if len(ids) > self._longest:
                found = f"{len(ids)} pieces, more than {self._longest}"
                raise DataError(f"line {number}: the target prefix has {found}")
            if target.unk_id in ids:
                logger.warning("line %d: the target prefix has unknown characters", number)
        rows = iter(encoded)
        return [[next(rows) for _ in text] for text in texts]

    def _check_prefixes(
        self, prefix_ids: Sequence[Sequence[Sequence[int]]], with_text: set[tuple[int, int]]
    ) -> None:
        """Refuse a prefix of several lines with text where the source has a tag alone, or none."""
        for index, rows in enumerate(prefix_ids):
            for place, ids in enumerate(rows):
                if len(rows) > 1 and ids and (index, place) not in with_text:
                    number = self._lines_before + index + 1
                    raise DataError(
                        f"line {number}: line {place + 1} of the target prefix has text, line "
                        f"{place + 1} of the source has none to translate"
                    )

    def _parts(self, ids: list[int], line: str, line_number: int) -> list[Part]:
        """Return the parts of a line: none of a blank one, several of an over-long one."""
        longest = self._longest
        if not ids or is_blank(line):
            return []
        if len(ids) <= longest:
            return [Part(ids)]
        what = "split" if self._on_long == "split" else "cut"
        found = f"line {line_number} has {len(ids)} pieces, more than {longest}"
        logger.warning("%s: %s", found, what)
        if self._on_long == "cut":
            return [Part(ids[: self._whole_characters(ids, longest)])]
        tokenizer = self._tokenizers.source
        spans = tokenizer.encode_spans([line])[0]
        return split_line(line, ids, spans, longest, tag=tokenizer.tag_length(line))

    def _whole_characters(self, ids: Sequence[int], most: int) -> int:
        """Return how many of the first `most` ids end with a whole character."""
        pieces, end = self._tokenizers.source.pieces, most
        while end > 1 and _CONTINUATION_BYTE.fullmatch(pieces[ids[end]]):
            end -= 1
        return end
