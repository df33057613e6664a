"""Where a line that is too long for the model is cut into segments."""

_SENTENCE_ENDS = (".", "!", "?", ";")  # where a blank follows
_WIDE_ENDS = ("。", "！", "？")  # whatever follows


def split(ids: list[int], pieces: list[str], longest: int, *, tag: int = 0) -> list[list[int]]:
    """The ids in parts of at most `longest`, cut after sentences or between words if possible.

    Args:
        ids: of the line.
        pieces: the same as text.
        longest: most ids of a part, more than `tag`.
        tag: how many at the start say the target language, which each part must do.
    """
    head, room = ids[:tag], longest - tag
    start, parts = tag, []
    while len(ids) - start > room:
        end = start + _best_cut(pieces[start : start + room + 1])
        parts.append(head + ids[start:end])
        start = end
    return [*parts, head + ids[start:]]


def _best_cut(pieces: list[str]) -> int:
    """Where to cut before the last of these pieces: after a sentence, else between words.

    A cut in the first half is no good, since the parts would become too many.
    """
    places = range(max(1, len(pieces) // 2), len(pieces))
    word_starts = [i for i in places if pieces[i].startswith("▁")]
    after_sentence = [
        i
        for i in places
        if pieces[i - 1].endswith(_WIDE_ENDS)
        or (pieces[i].startswith("▁") and pieces[i - 1].endswith(_SENTENCE_ENDS))
    ]
    return (after_sentence or word_starts or places)[-1]
