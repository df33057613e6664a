"""What was found for the segments of lines becomes a translation of each line."""

from collections.abc import Iterable, Sequence

from tfm_cli.decoding.hypothesis import Hypothesis
from tfm_cli.tokenizer import Tokenizer
from tfm_cli.translation.segments import Segment
from tfm_cli.translation.translation import Candidate, Translation


def joined(
    lines: Sequence[str],
    batches: Iterable[Sequence[Segment]],
    found: Iterable[Sequence[list[Hypothesis]]],
    target: Tokenizer,
    *,
    n_best: int,
    word_scores: bool,
) -> list[Translation]:
    """The translation of each line.

    Args:
        lines: a window.
        batches: its segments.
        found: the hypotheses of each segment of each batch.
        target: turns pieces into text.
        n_best: translations of a line.
        word_scores: note the pieces and their log-probabilities.
    """
    parts: list[dict[int, list[Hypothesis]]] = [{} for _ in lines]  # by line, then by part
    for batch, hypotheses in zip(batches, found, strict=True):
        for segment, of_segment in zip(batch, hypotheses, strict=True):
            parts[segment.line][segment.part] = of_segment
    return [
        _joined_line(
            line, [of_line[part] for part in range(len(of_line))], target,
            n_best=n_best, word_scores=word_scores,
        )
        for line, of_line in zip(lines, parts, strict=True)
    ]  # fmt: skip


def _joined_line(
    line: str,
    parts: list[list[Hypothesis]],
    target: Tokenizer,
    *,
    n_best: int,
    word_scores: bool,
) -> Translation:
    """The translation of a line from its parts' hypotheses, the i-th best of each together."""
    if not parts:
        return Translation(line, (Candidate("", 0.0, 0.0),) * n_best, 0)
    candidates = []
    for rank in range(n_best):
        chosen = [hypotheses[min(rank, len(hypotheses) - 1)] for hypotheses in parts]
        texts = target.decode([list(h.ids) for h in chosen])
        score = sum(h.score for h in chosen) / len(chosen)
        total = sum(h.log_probability for h in chosen)
        pieces: list[str] = []
        if word_scores:
            ids = [i for h in chosen for i in (*h.ids, target.eos_id)]
            pieces = [target.pieces[i] for i in ids]
        scores = tuple(score for h in chosen for score in h.piece_scores)
        text = " ".join(filter(None, texts))
        candidates.append(Candidate(text, score, total, tuple(pieces), scores))
    num_pieces = sum(len(hypotheses[0].ids) + 1 for hypotheses in parts)
    return Translation(line, tuple(candidates), num_pieces)
