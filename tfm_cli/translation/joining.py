"""What was found for the segments of lines becomes a translation of each line."""

from collections.abc import Iterable, Sequence

from tfm_cli.decoding.hypothesis import Hypothesis
from tfm_cli.tokenizer import Tokenizer
from tfm_cli.translation.alignment import Aligner
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
    aligner: Aligner | None = None,
) -> list[Translation]:
    """The translation of each line.

    Args:
        lines: a window.
        batches: its segments.
        found: the hypotheses of each segment of each batch.
        target: turns pieces into text.
        n_best: translations of a line.
        word_scores: note the pieces and their log-probabilities.
        aligner: says which words became which; None to leave it.
    """
    parts: list[dict[int, list[Hypothesis]]] = [{} for _ in lines]  # by line, then by part
    sources: list[dict[int, list[int]]] = [{} for _ in lines]
    for batch, hypotheses in zip(batches, found, strict=True):
        for segment, of_segment in zip(batch, hypotheses, strict=True):
            parts[segment.line][segment.part] = of_segment
            sources[segment.line][segment.part] = segment.ids
    # By line, candidate and part: the i-th best of each part together.
    chosen = [
        [
            [some[min(rank, len(some) - 1)] for _, some in sorted(of_line.items())]
            for rank in range(n_best)
        ]
        for of_line in parts
    ]
    translations = [
        _joined_line(line, candidates, target, word_scores=word_scores)
        for line, candidates in zip(lines, chosen, strict=True)
    ]
    if aligner is None:
        return translations
    by_line = [[ids for _, ids in sorted(of_line.items())] for of_line in sources]
    return aligner.aligned(translations, by_line, chosen)


def _joined_line(
    line: str, candidates: list[list[Hypothesis]], target: Tokenizer, *, word_scores: bool
) -> Translation:
    """The translation of a line from the hypotheses of its parts, by candidate."""
    if not candidates[0]:  # a blank line
        return Translation(line, (Candidate("", 0.0, 0.0),) * len(candidates), 0)
    done = []
    for chosen in candidates:
        texts = target.decode([list(h.ids) for h in chosen])
        score = sum(h.score for h in chosen) / len(chosen)
        total = sum(h.log_probability for h in chosen)
        pieces: list[str] = []
        if word_scores:
            ids = [i for h in chosen for i in (*h.ids, target.eos_id)]
            pieces = [target.pieces[i] for i in ids]
        scores = tuple(score for h in chosen for score in h.piece_scores)
        text = " ".join(filter(None, texts))
        done.append(Candidate(text, score, total, tuple(pieces), scores))
    num_pieces = sum(len(hypothesis.ids) + 1 for hypothesis in candidates[0])
    return Translation(line, tuple(done), num_pieces)
