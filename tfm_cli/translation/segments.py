"""What of the lines is translated in one go: a line, a part of an over-long one, or nothing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tfm_cli.corpus.batching import random_key
from tfm_cli.errors import DataError
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.translation.splitting import split

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """A line, or a part of an over-long one."""

    line: int  # index within the window
    part: int  # index within the line
    ids: list[int]
    seed: int
    prefix: list[int]  # what the translation begins with


@dataclass(frozen=True, slots=True)
class Segmenter:
    """Makes segments of lines.

    Args:
        tokenizers: of the model.
        longest: most pieces of a segment.
        on_long: whether a longer line is `split` or `cut`.
        seed: of what is drawn by chance.
    """

    tokenizers: TokenizerPair
    longest: int
    on_long: str
    seed: int

    def segments(
        self, lines: Sequence[str], prefixes: Sequence[str], first_number: int
    ) -> list[list[Segment]]:
        """The segments of each line: none for a blank one, several for an over-long one.

        Args:
            lines: the window.
            prefixes: what the translation of each line begins with, or none at all.
            first_number: what messages call the first line.

        Raises:
            DataError: a prefix has more pieces than a segment may have.
        """
        prefix_ids: list[list[int]] = [[]] * len(lines)
        if any(prefixes):
            prefix_ids = self._encoded_prefixes(prefixes, first_number)
        encoded = self.tokenizers.source.encode(lines)
        return [
            [
                Segment(line, part, part_ids, seed, [] if part else prefix_ids[line])
                for part, part_ids in enumerate(self._parts(ids, lines[line], number))
                for seed in [random_key("sample", self.seed, number, part)]
            ]
            for line, ids in enumerate(encoded)
            for number in [first_number + line]
        ]

    def _encoded_prefixes(self, prefixes: Sequence[str], first_number: int) -> list[list[int]]:
        target = self.tokenizers.target
        encoded = target.encode(prefixes)
        for number, ids in enumerate(encoded, first_number):
            if len(ids) > self.longest:
                found = f"{len(ids)} pieces, more than {self.longest}"
                raise DataError(f"line {number}: the target prefix has {found}")
            if target.unk_id in ids:
                logger.warning("line %d: the target prefix has unknown characters", number)
        return encoded

    def _parts(self, ids: list[int], line: str, line_number: int) -> list[list[int]]:
        longest = self.longest
        if not ids or not line.strip():
            return []
        if len(ids) <= longest:
            return [ids]
        what = "split" if self.on_long == "split" else "cut"
        found = f"line {line_number} has {len(ids)} pieces, more than {longest}"
        logger.warning("%s: %s", found, what)
        if self.on_long == "cut":
            return [ids[:longest]]
        tokenizer = self.tokenizers.source
        pieces = tokenizer.encode_pieces([line])[0]
        return split(ids, pieces, longest, tag=1 if tokenizer.language_tag(line) else 0)
