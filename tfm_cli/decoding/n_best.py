"""N-best lists of distinct texts: one hypothesis for each text, even if several spell it."""

from collections.abc import Callable, Sequence

from tfm_cli.decoding.interface import Hypothesis

Search = Callable[[Sequence[int], int], list[list[Hypothesis]]]

_MAX_BEAM_SIZE = 256  # of a repeated search; the maximum of the native engine


def different_texts(
    search: Search,
    texts_of: Callable[[Sequence[Hypothesis]], list[str]],
    *,
    segments: int,
    count: int,
    beam_size: int,
) -> list[list[Hypothesis]]:
    """Return the `count` best hypotheses of each segment with distinct texts, best first.

    Several hypotheses may spell one text; only the best of them is returned. Segments with too few
    texts are searched again with a beam twice as wide, until there are enough, a search finds
    fewer hypotheses than its beam size, or the beam would exceed 256.

    Args:
        search: returns the hypotheses of the segments with these indices, best first, for a given
            beam size. The list of a segment may be empty if memory cannot hold a wider beam.
        texts_of: returns the text of each hypothesis. Texts that differ in whitespace are equal.
        segments: number of segments.
        count: number of hypotheses of each segment.
        beam_size: of the first search, at least `count`.
    """
    found: list[dict[str, Hypothesis]] = [{} for _ in range(segments)]
    incomplete: Sequence[int] = range(segments)
    while incomplete:
        some = search(incomplete, beam_size)
        texts = iter(texts_of([each for hypotheses in some for each in hypotheses]))
        exhausted = set()
        for segment, hypotheses in zip(incomplete, some, strict=True):
            by_text = found[segment]
            for each in hypotheses:
                text = " ".join(next(texts).split())
                if text not in by_text or each.score > by_text[text].score:
                    by_text[text] = each
            if len(hypotheses) < beam_size:
                exhausted.add(segment)
        beam_size *= 2
        if beam_size > _MAX_BEAM_SIZE:
            break
        incomplete = [
            segment
            for segment in incomplete
            if len(found[segment]) < count and segment not in exhausted
        ]
    return [
        sorted(by_text.values(), key=lambda hypothesis: -hypothesis.score)[:count]
        for by_text in found
    ]
