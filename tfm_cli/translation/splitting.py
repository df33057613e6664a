"""Where a line that is too long for the model is cut."""

_SENTENCE_ENDS = (".", "!", "?", ";")  # where a blank follows
_WIDE_ENDS = ("。", "！", "？")  # whatever follows


def best_cut(pieces: list[str]) -> int:
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
