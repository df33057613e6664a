"""Which text a tokenizer does not know, and the characters that are the cause."""

from collections import Counter
from collections.abc import Iterator, Sequence

from tfm_cli.tokenizer import Tokenizer

_MAX_KINDS = 1 << 16  # as many are told apart; beyond, the rarest are forgotten


class UnknownPieces:
    """Counts unknown pieces of one side of a corpus.

    Attributes:
        count: unknown pieces so far.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.count = 0
        self._tokenizer = tokenizer
        special = {tokenizer.unk_id, tokenizer.eos_id, tokenizer.start_id, *tokenizer.banned_ids}
        text = (piece for i, piece in enumerate(tokenizer.pieces) if i not in special)
        self._known = set("".join(text))
        self._causes: Counter[str] = Counter()

    def add(self, lines: Sequence[str], encoded: Sequence[Sequence[int]]) -> None:
        """Count the unknown pieces of lines, whose ids are given."""
        unk_id = self._tokenizer.unk_id
        some = [index for index, ids in enumerate(encoded) if unk_id in ids]
        if not some:
            return
        written = self._tokenizer.encode_pieces([lines[index] for index in some])
        for index, pieces in zip(some, written, strict=True):
            for number, piece in zip(encoded[index], pieces, strict=True):
                if number == unk_id:
                    self.count += 1
                    self._causes.update(self._causes_in(piece))
        if len(self._causes) > _MAX_KINDS:
            self._causes = Counter(dict(self._causes.most_common(_MAX_KINDS // 2)))

    def _causes_in(self, piece: str) -> Iterator[str]:
        for word in piece.split("▁"):  # neighbours that are unknown are one piece
            unknown = [character for character in word if character not in self._known]
            # A tokenizer of words may know all characters of a word, but not the word.
            yield from unknown or ([word] if word else [])

    def commonest(self, number: int) -> list[tuple[str, int]]:
        """What causes them most often: characters, or words whose characters are all known."""
        # Equal counts by their text, so that the report is the same each time.
        return sorted(self._causes.items(), key=lambda cause: (-cause[1], cause[0]))[:number]
