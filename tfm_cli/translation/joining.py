"""What was found for the segments of lines becomes a translation of each line."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tfm_cli.decoding.hypothesis import Hypothesis
from tfm_cli.tokenizer import Tokenizer
from tfm_cli.translation.alignment import Aligner
from tfm_cli.translation.seams import join_texts
from tfm_cli.translation.segments import Segment
from tfm_cli.translation.shortfall import ShortfallWatch
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
    watch: ShortfallWatch | None = None,
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
        watch: warns of translations that are far too short; None to leave it.
    """
    parts: dict[int, dict[int, list[Hypothesis]]] = {}  # by line, then by part; none of blank lines
    sources: dict[int, dict[int, Segment]] = {}
    for batch, hypotheses in zip(batches, found, strict=True):
        for segment, of_segment in zip(batch, hypotheses, strict=True):
            parts.setdefault(segment.line, {})[segment.part] = of_segment
            sources.setdefault(segment.line, {})[segment.part] = segment
    # By line, candidate and part: the i-th best of each part together.
    chosen = {
        line: [
            [some[min(rank, len(some) - 1)] for _, some in sorted(of_line.items())]
            for rank in range(n_best)
        ]
        for line, of_line in parts.items()
    }
    segments = {
        line: [segment for _, segment in sorted(of_line.items())]
        for line, of_line in sources.items()
    }
    blank = Translation("", (Candidate("", 0.0, 0.0),) * n_best, 0)
    translations = [
        _joined_line(line, segments[index], chosen[index], target, word_scores=word_scores)
        if index in chosen
        else (_blank_line(blank, line) if line else blank)
        for index, line in enumerate(lines)
    ]
    if watch is not None:
        for line in sorted(chosen):
            watch.look(
                segments[line][0].number,
                lines[line],
                translations[line].text,
                source_tokens=sum(len(segment.ids) for segment in segments[line]),
                target_tokens=sum(len(hypothesis.ids) for hypothesis in chosen[line][0]),
            )
    if aligner is None:
        return translations
    every, nothing = range(len(lines)), [list[Hypothesis]()] * n_best
    parts_of = [segments.get(line, []) for line in every]
    return aligner.aligned(translations, parts_of, [chosen.get(line, nothing) for line in every])


def _blank_line(blank: Translation, line: str) -> Translation:
    """The translation of a line, or of lines, without text."""
    text = "\n" * line.count("\n")
    candidates = tuple(replace(candidate, text=text) for candidate in blank.candidates)
    return replace(blank, source=line, candidates=candidates)


def _joined_line(
    line: str,
    segments: list[Segment],
    candidates: list[list[Hypothesis]],
    target: Tokenizer,
    *,
    word_scores: bool,
) -> Translation:
    """The translation of a line from the hypotheses of its parts, by candidate."""
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
        by_line: list[list[tuple[str, bool]]] = [[] for _ in range(line.count("\n") + 1)]
        for segment, text in zip(segments, texts, strict=True):
            by_line[segment.text_line].append((text, segment.goes_on))
        text = "\n".join(
            join_texts([text for text, _ in some], [goes_on for _, goes_on in some])
            for some in by_line
        )
        done.append(Candidate(text, score, total, tuple(pieces), scores))
    num_pieces = sum(len(hypothesis.ids) + 1 for hypothesis in candidates[0])
    return Translation(line, tuple(done), num_pieces)
