"""Where a line that is too long for the model is cut into segments."""

_SENTENCE_ENDS = (".", "!", "?", ";")  # where a blank follows
_WIDE_ENDS = ("。", "！", "？")  # whatever follows


def split(ids: list[int], pieces: list[str], longest: int) -> list[list[int]]:
    """The ids in parts of at most `longest`, cut after sentences or between words if possible.

    Args:
        ids: of the line.
        pieces: the same as text.
        longest: most ids of a part, at least 1.
    """
    parts, start = [], 0
    while len(ids) - start > longest:
        end = start + _best_cut(pieces[start : start + longest + 1])
        parts.append(ids[start:end])
        start = end
    return [*parts, ids[start:]]


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
