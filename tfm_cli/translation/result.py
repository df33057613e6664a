"""What became of a line: its translation, and how good the model thinks it is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One translation of a line."""

    text: str
    score: float  # length-normalised log-probability; 0 for a blank line
    log_probability: float
    pieces: tuple[str, ...] = ()  # with </s>, of each part of a split line; where asked
    word_scores: tuple[float, ...] = ()  # log-probability of each piece
    # Where asked: of each word of the text, how much of it came from each word of the line. What
    # is missing to 1 came from none.
    alignment: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Translation:
    """What became of one line."""

    source: str
    candidates: tuple[Candidate, ...]  # best first, at least one
    num_pieces: int  # pieces written for the best one, </s> included

    @property
    def text(self) -> str:
        """The best translation; empty for a blank line."""
        return self.candidates[0].text
