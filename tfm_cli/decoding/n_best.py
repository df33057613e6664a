"""N-best lists of different texts: hypotheses that spell the same text otherwise are left out."""

from collections.abc import Callable, Sequence

from tfm_cli.decoding.interface import Hypothesis

Search = Callable[[Sequence[int], int], list[list[Hypothesis]]]

_WIDEST = 256  # rows of the widest search for texts that are missing: all that the engine follows


def different_texts(
    search: Search,
    texts_of: Callable[[Sequence[Hypothesis]], list[str]],
    *,
    segments: int,
    count: int,
    beam_size: int,
) -> list[list[Hypothesis]]:
    """Return the `count` best hypotheses of each segment that have different texts, best first.

    A tokenizer can spell one text in several ways; of these the best counts. Segments that lack
    texts are searched again with a beam that is twice as wide, until there are enough, a search
    finds fewer hypotheses than its beam could hold, or it would have more than 256 rows.

    Args:
        search: gives the hypotheses of the segments with these indices, best first, found with a
            beam of a given size. It may give none where memory cannot hold a wider beam.
        texts_of: gives the text of each of the hypotheses. Blanks that differ make no other text.
        segments: number of segments.
        count: hypotheses that are wanted of each.
        beam_size: of the first search, at least `count`.
    """
    found: list[dict[str, Hypothesis]] = [{} for _ in range(segments)]
    lacking: Sequence[int] = range(segments)
    while lacking:
        some = search(lacking, beam_size)
        texts = iter(texts_of([each for hypotheses in some for each in hypotheses]))
        exhausted = set()
        for segment, hypotheses in zip(lacking, some, strict=True):
            by_text = found[segment]
            for each in hypotheses:
                text = " ".join(next(texts).split())
                if text not in by_text or each.score > by_text[text].score:
                    by_text[text] = each
            if len(hypotheses) < beam_size:
                exhausted.add(segment)
        beam_size *= 2
        if beam_size > _WIDEST:
            break
        lacking = [
            segment
            for segment in lacking
            if len(found[segment]) < count and segment not in exhausted
        ]
    return [
        sorted(by_text.values(), key=lambda hypothesis: -hypothesis.score)[:count]
        for by_text in found
    ]
