"""The translation of a line, with its candidates and their scores."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One translation of a line.

    Attributes:
        text: the translation.
        score: length-normalized log-probability; 0 for a blank line.
        log_probability: sum over all tokens.
        pieces: the pieces of the text, with </s> after each segment; empty unless requested.
        word_scores: log-probability of each piece.
        alignment: for each word of the text, its attention to each word of the line; empty unless
            requested. A row sums to at most 1.
    """

    text: str
    score: float
    log_probability: float
    pieces: tuple[str, ...] = ()
    word_scores: tuple[float, ...] = ()
    alignment: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Translation:
    """The translation of one line."""

    source: str
    candidates: tuple[Candidate, ...]  # best first, at least one
    num_tokens: int  # tokens of the best candidate, </s> included

    @property
    def text(self) -> str:
        """Return the best translation; "" for a blank line."""
        return self.candidates[0].text
