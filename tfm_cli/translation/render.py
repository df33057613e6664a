"""How a translation is written: a line of text, Moses n-best lines, or a JSON object."""

import json
from collections.abc import Iterator

from tfm_cli.translation.translator import Translation


def as_text(translation: Translation, *, with_score: bool) -> Iterator[str]:
    """The translation alone, or `score<TAB>translation`."""
    best = translation.candidates[0]
    yield f"{best.score:.4f}\t{best.text}" if with_score else best.text


def as_n_best(translation: Translation, index: int) -> Iterator[str]:
    """Lines of the Moses n-best format: `index ||| text ||| features ||| score`, index from 0."""
    for candidate in translation.candidates:
        features = f"logprob={candidate.log_probability:.4f}"
        yield f"{index} ||| {candidate.text} ||| {features} ||| {candidate.score:.4f}"


def as_json(translation: Translation, *, n_best: int) -> Iterator[str]:
    """One object a line: source, translation, score, and all candidates where n-best is asked."""
    best = translation.candidates[0]
    fields: dict[str, object] = {
        "source": translation.source,
        "translation": best.text,
        "score": round(best.score, 4),
    }
    if n_best > 1:
        fields["n_best"] = [
            {
                "translation": candidate.text,
                "score": round(candidate.score, 4),
                "log_probability": round(candidate.log_probability, 4),
            }
            for candidate in translation.candidates
        ]
    yield json.dumps(fields, ensure_ascii=False)
