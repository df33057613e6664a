"""What of a text is lost between encoding and decoding: characters changed, pieces unknown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tfm_cli.corpus.line_counts import LineCounts, Place
from tfm_cli.tokenizer import Tokenizer, plain_blanks

# Shares that call for a warning; below them, what was found is a note.
MAX_CHANGED = 0.01  # of lines: no translation of the model can be equal to these
MAX_UNKNOWN = 0.001  # of pieces: each is text that the model cannot see or write

# Where a tokenizer is from: learned by the run, named for it, or that of a trained model.
Origin = Literal["learned", "named", "model"]

_CONTEXT = 8  # characters that are shown before and after what was changed


@dataclass(slots=True)
class RoundTrip(LineCounts):
    """Counts of what one side of a corpus loses; a class because it is added to.

    Attributes:
        lines: lines that were encoded, and `pieces` those of them all.
        changed: lines that decoding does not give back, and the first of them.
        unknown: unknown pieces, and the first line that has any.
    """

    lines: int = 0
    pieces: int = 0
    changed: int = 0
    unknown: int = 0
    first_changed: Place | None = None
    first_unknown: Place | None = None

    def add(
        self,
        tokenizer: Tokenizer,
        lines: Sequence[str],
        encoded: Sequence[Sequence[int]],
        *,
        place: Callable[[int], tuple[int, int]],
    ) -> None:
        """Count some lines.

        Args:
            tokenizer: of this side.
            lines: the text.
            encoded: its ids.
            place: gives the file of a line, by its index in the corpus, and its number there.
        """
        self.lines += len(lines)
        self.pieces += sum(map(len, encoded))
        unk_id = tokenizer.unk_id
        with_unknown = [index for index, ids in enumerate(encoded) if unk_id in ids]
        self.unknown += sum(list(encoded[index]).count(unk_id) for index in with_unknown)
        if with_unknown and self.first_unknown is None:
            first = with_unknown[0]
            (pieces,) = tokenizer.encode_pieces([lines[first]])
            text = pieces[list(encoded[first]).index(unk_id)].removeprefix("▁")
            self.first_unknown = Place(*place(first), text[: 2 * _CONTEXT])
        changed = tokenizer.not_restored(lines, encoded)
        self.changed += len(changed)
        if changed and self.first_changed is None:
            first, text = changed[0]
            shown = _difference(plain_blanks(lines[first]), plain_blanks(text))
            self.first_changed = Place(*place(first), *shown)

    def is_explained(self, tokenizer: Tokenizer) -> bool:
        """Return True if unknown pieces are why lines are changed, which need not be told twice."""
        return self.unknown > 0 and not tokenizer.changes_characters


def advice_on_unknown(origin: Origin) -> str:
    """Return what can be done about unknown pieces."""
    if origin == "model":
        return (
            "the vocabulary of a trained model cannot grow: replace this text on both sides, leave "
            "its pairs out, or train a new model"
        )
    if origin == "named":
        return "learn the tokenizer with `--byte-fallback` or a higher character coverage"
    return "set `tokenizer.byte_fallback` to true, or `tokenizer.character_coverage` higher"


def advice_on_changed(origin: Origin, tokenizer: Tokenizer) -> str:
    """Return what can be done about lines that are not given back."""
    if tokenizer.changes_characters:
        if origin == "model":
            return (
                "the model reads and writes text in this form; train a new one to keep it as it is"
            )
        if origin == "named":
            return "learn the tokenizer with `--normalization-rule-name identity`"
        return "set `tokenizer.normalization_rule_name` to `identity`"
    return "write another character for `▁`, which stands for a blank in SentencePiece"


def _difference(line: str, restored: str) -> tuple[str, str]:
    """Return what two texts have where they differ first, and a little around it."""
    begin = _num_alike(line, restored)
    num_alike = _num_alike(line[begin:][::-1], restored[begin:][::-1])
    before = max(0, begin - _CONTEXT)
    shown = []
    for text in (line, restored):
        end = min(len(text) - num_alike, begin + _CONTEXT) + _CONTEXT
        shown.append(text[before:end])
    return shown[0], shown[1]


def _num_alike(text: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
