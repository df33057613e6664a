"""How a translation is written: a line of text, columns, Moses n-best lines, or a JSON object."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tfm_cli.errors import ConfigError
from tfm_cli.translation.input_format import InputLine
from tfm_cli.translation.result import Candidate, Translation
from tfm_cli.translation.segments import on_one_line, restored


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How translations are to be written."""

    kind: Literal["text", "json"] = "text"
    n_best: int = 1
    with_score: bool = False  # before a line of text; n-best lists and JSON have it anyway
    word_scores: bool = False  # behind it
    # Behind it as well: weights, the weightiest source word of each target word, or the pairs of
    # more than a weight.
    alignment: Literal["soft", "hard"] | float | None = None


def rendered(line: InputLine, translation: Translation, index: int, form: Form) -> Iterator[str]:
    """The lines for one line of input, whose index from 0 is for n-best lists."""
    if form.kind == "json":
        return as_json(line, translation, form)
    if form.n_best > 1:
        return as_n_best(translation, index, form)
    return as_text(line, translation, form)


def as_text(line: InputLine, translation: Translation, form: Form) -> Iterator[str]:
    """The translation: `[columns<TAB>][score<TAB>]translation[ ||| 0-0 …][ ||| WordScores= …]`."""
    best = translation.candidates[0]
    # A translation with a tab in it would be two columns.
    text = best.text.replace("\t", " ") if line.columns else on_one_line(best.text)
    text = " ||| ".join([text, *_extras(best, form)])
    score = [f"{best.score:.4f}"] if form.with_score else []
    yield "\t".join([*line.columns, *score, text])


def as_n_best(translation: Translation, index: int, form: Form) -> Iterator[str]:
    """Lines of Moses' n-best format: `index ||| text ||| features ||| score`, index from 0.

    Alignments and scores of the pieces stand before the features, as Marian writes them.
    """
    for candidate in translation.candidates:
        fields = [str(index), on_one_line(candidate.text), *_extras(candidate, form)]
        fields += [f"logprob={candidate.log_probability:.4f}", f"{candidate.score:.4f}"]
        yield " ||| ".join(fields)


def as_json(line: InputLine, translation: Translation, form: Form) -> Iterator[str]:
    """One object a line: source, translation, score, and all candidates where n-best is asked.

    Of JSON input it has all fields as they were, but for those that are written here.
    """
    best = translation.candidates[0]
    given = {"source": translation.source} if line.fields is None else line.fields
    fields: dict[str, Any] = dict(given)
    fields |= {"translation": restored(best.text, line.breaks), "score": round(best.score, 4)}
    if form.word_scores:
        fields["log_probability"] = round(best.log_probability, 4)
    fields |= _more(best, form)
    if form.n_best > 1:
        fields["n_best"] = [
            {
                "translation": restored(candidate.text, line.breaks),
                "score": round(candidate.score, 4),
                "log_probability": round(candidate.log_probability, 4),
                **_more(candidate, form),
            }
            for candidate in translation.candidates
        ]
    text = json.dumps(fields, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can spell
        text = json.dumps(fields)
    yield text


def written_fields(form: Form) -> frozenset[str]:
    """Return the names of the fields that are written to JSON, whatever the input has there."""
    names = {"translation", "score"}
    names |= {"n_best"} if form.n_best > 1 else set()
    names |= {"alignment"} if form.alignment is not None else set()
    names |= {"log_probability", "pieces", "word_scores"} if form.word_scores else set()
    return frozenset(names)


def _more(candidate: Candidate, form: Form) -> dict[str, Any]:
    """Fields of JSON that are there where they were asked for."""
    fields: dict[str, Any] = {}
    if form.alignment == "soft":
        fields["alignment"] = [[round(weight, 4) for weight in row] for row in candidate.alignment]
    elif form.alignment is not None:
        fields["alignment"] = alignment_pairs(candidate.alignment, form.alignment)
    if form.word_scores:
        fields["pieces"] = candidate.pieces
        fields["word_scores"] = [round(score, 4) for score in candidate.word_scores]
    return fields


def _extras(candidate: Candidate, form: Form) -> list[str]:
    """Fields of text that are there where they were asked for, as Marian writes them."""
    fields = []
    if form.alignment == "soft":
        rows = (",".join(f"{weight:.4f}" for weight in row) for row in candidate.alignment)
        fields.append(" ".join(rows))
    elif form.alignment is not None:
        pairs = alignment_pairs(candidate.alignment, form.alignment)
        fields.append(" ".join(f"{source}-{target}" for source, target in pairs))
    if form.word_scores:
        scores = (f"{score:.4f}" for score in candidate.word_scores)
        fields.append(" ".join(["WordScores=", *scores]))
    return fields


def alignment_kind(name: str) -> Literal["soft", "hard"] | float:
    """How alignments are to be written, by what Marian's flag takes.

    Raises:
        ConfigError: it is neither `soft` nor `hard` nor a weight.
    """
    for kind in ("soft", "hard"):
        if name == kind:
            return kind
    with contextlib.suppress(ValueError):
        if 0 <= float(name) < 1:
            return float(name)
    wanted = "wanted soft, hard, or a number of at least 0 and below 1"
    raise ConfigError(f"unknown alignment `{name}`, {wanted}")


def alignment_pairs(
    weights: Sequence[Sequence[float]], which: Literal["hard"] | float
) -> list[tuple[int, int]]:
    """Source and target words that belong together, both from 0, in order of the source.

    Args:
        weights: of each target word's source words.
        which: `hard` for the weightiest source word of each target word, the first of equals; a
            number for the pairs of more than this weight.
    """
    if which == "hard":
        best = [
            (row.index(max(row)), target)
            for target, row in enumerate(map(list, weights))
            if any(row)
        ]
        return sorted(best)
    pairs = [
        (source, target)
        for target, row in enumerate(weights)
        for source, weight in enumerate(row)
        if weight > which
    ]
    return sorted(pairs)
