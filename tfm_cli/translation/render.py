"""How a translation is written: a line of text, columns, Moses n-best lines, or a JSON object."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tfm_cli.translation.input_lines import InputLine
from tfm_cli.translation.translation import Candidate, Translation


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How translations are to be written."""

    kind: Literal["text", "json"] = "text"
    n_best: int = 1
    with_score: bool = False  # before a line of text; n-best lists and JSON have it anyway
    word_scores: bool = False  # behind it


def rendered(line: InputLine, translation: Translation, index: int, form: Form) -> Iterator[str]:
    """The lines for one line of input, whose index from 0 is for n-best lists."""
    if form.kind == "json":
        return as_json(line, translation, form)
    if form.n_best > 1:
        return as_n_best(translation, index, form)
    return as_text(line, translation, form)


def as_text(line: InputLine, translation: Translation, form: Form) -> Iterator[str]:
    """The translation: `[columns<TAB>][score<TAB>]translation[ ||| WordScores= …]`."""
    best = translation.candidates[0]
    # A translation with a tab in it would be two columns.
    text = best.text.replace("\t", " ") if line.columns else best.text
    if form.word_scores:
        text = f"{text} ||| {_word_scores(best)}"
    score = [f"{best.score:.4f}"] if form.with_score else []
    yield "\t".join([*line.columns, *score, text])


def as_n_best(translation: Translation, index: int, form: Form) -> Iterator[str]:
    """Lines of Moses' n-best format: `index ||| text ||| features ||| score`, index from 0.

    Scores of the pieces stand before the features, as Marian writes them.
    """
    for candidate in translation.candidates:
        fields = [str(index), candidate.text]
        if form.word_scores:
            fields.append(_word_scores(candidate))
        fields += [f"logprob={candidate.log_probability:.4f}", f"{candidate.score:.4f}"]
        yield " ||| ".join(fields)


def as_json(line: InputLine, translation: Translation, form: Form) -> Iterator[str]:
    """One object a line: source, translation, score, and all candidates where n-best is asked.

    Of JSON input it has all fields as they were, but for those that are written here.
    """
    best = translation.candidates[0]
    given = {"source": translation.source} if line.fields is None else line.fields
    fields: dict[str, Any] = dict(given)
    fields |= {"translation": best.text, "score": round(best.score, 4)}
    if form.word_scores:
        fields["log_probability"] = round(best.log_probability, 4)
        fields |= _pieces(best)
    if form.n_best > 1:
        fields["n_best"] = [
            {
                "translation": candidate.text,
                "score": round(candidate.score, 4),
                "log_probability": round(candidate.log_probability, 4),
                **(_pieces(candidate) if form.word_scores else {}),
            }
            for candidate in translation.candidates
        ]
    text = json.dumps(fields, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can spell
        text = json.dumps(fields)
    yield text


def _pieces(candidate: Candidate) -> dict[str, Any]:
    scores = [round(score, 4) for score in candidate.word_scores]
    return {"pieces": candidate.pieces, "word_scores": scores}


def _word_scores(candidate: Candidate) -> str:
    """Log-probabilities of the pieces and of </s>, as Marian names them."""
    return " ".join(["WordScores=", *(f"{score:.4f}" for score in candidate.word_scores)])
