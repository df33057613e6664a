"""Formats of lines: input as text, columns or JSON, output also as Moses n-best lists."""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn

from tfm_cli.console import counted
from tfm_cli.errors import ConfigError, DataError, plain_reason
from tfm_cli.translation.assembly import Candidate, Translation
from tfm_cli.translation.segments import on_one_line, restored, unified

_SOURCE_FIELDS = ("source", "text")  # as in the output of `tfm translate`, and as in Sockeye
_PREFIX_FIELD = "target_prefix"
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # a JSON escape may spell a lone surrogate


class InputLine(NamedTuple):
    """A source text, with everything else on its line that the output may need.

    Attributes:
        source: text to translate, with a line feed for each line break.
        target_prefix: beginning of the translation; may be empty.
        columns: all columns of the line, if the input has columns.
        fields: all fields of the JSON object; None if the input is not JSON.
        breaks: the line breaks that the line feeds in `source` replace; empty if all are LF.
        repeated: names that occur more than once in the object.
        has_nul: fields from which NUL characters were removed.
        has_surrogates: fields with lone surrogates.
        error: reason why the line cannot be parsed; its source is blank then.
    """

    source: str
    target_prefix: str = ""
    columns: tuple[str, ...] = ()
    fields: Mapping[str, Any] | None = None
    breaks: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    has_nul: tuple[str, ...] = ()
    has_surrogates: tuple[str, ...] = ()
    error: str = ""


def from_text(line: str, position: str) -> InputLine:
    """Return a line that is a source as a whole."""
    return InputLine(line)


def from_forced(line: str, position: str) -> InputLine:
    """Parse a source, optionally followed by a tab and a target prefix.

    Args:
        line: the input line.
        position: file and line, for messages.

    Raises:
        DataError: there are more than two columns.
    """
    columns = line.split("\t")
    if len(columns) > 2:
        message = f"{position}: has {len(columns)} columns, expected `source<TAB>target prefix`"
        raise DataError(message, hint="use `--tsv` to keep other columns")
    return InputLine(columns[0], "".join(columns[1:]))


def from_columns(line: str, position: str, *, number: int, forced: bool) -> InputLine:
    """Parse a line of columns, one of which is the source; a blank line has no columns.

    Args:
        line: the input line.
        position: file and line, for messages.
        number: number of the source column, from 1.
        forced: the next column, if there is one, is the target prefix.

    Raises:
        DataError: there are fewer columns.
    """
    if not line:
        return InputLine("")
    columns = line.split("\t")
    if len(columns) < number:
        message = f"has {counted(len(columns), 'column')}, but column {number} is the source"
        raise DataError(f"{position}: {message}")
    prefix = columns[number] if forced and len(columns) > number else ""
    return InputLine(columns[number - 1], prefix, tuple(columns))


def from_json(line: str, position: str) -> InputLine:
    """Parse an object with `source` or `text` and optionally `target_prefix`.

    A blank line stands for a blank source.

    Args:
        line: the input line.
        position: file and line, for messages.

    Raises:
        DataError: the line is not an object, has no source, or one of these fields is not a string;
            or the prefix has text on a line where the source has none.
    """
    if not line.strip():
        return InputLine("")
    repeated: list[str] = []
    try:
        fields = json.loads(
            line, parse_constant=_refuse, object_pairs_hook=partial(_table, repeated=repeated)
        )
        json.dumps(fields, allow_nan=False)  # fail now if the fields cannot be written again
    except json.JSONDecodeError as error:
        message = f"{position}: is not a JSON object: {plain_reason(error)}"
        raise DataError(message) from error
    except ValueError as error:  # NaN, infinity, or too many digits
        message = f"{position}: has a number that cannot be kept: {plain_reason(error)}"
        raise DataError(message) from error
    except RecursionError as error:
        raise DataError(f"{position}: has objects or lists nested too deeply") from error
    if not isinstance(fields, dict):
        raise DataError(f"{position}: is not a JSON object")
    name = next((name for name in _SOURCE_FIELDS if name in fields), "")
    if not name:
        raise DataError(f"{position}: has neither `source` nor `text`")
    prefix = fields.get(_PREFIX_FIELD)
    prefix = "" if prefix is None else prefix  # programs write null for a missing value
    texts = {name: fields[name], _PREFIX_FIELD: prefix}
    for field, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{position}: `{field}` is not a string")
    source, breaks = unified(fields[name].replace("\0", ""))
    prefix, _ = unified(prefix.replace("\0", ""))
    _check_prefix(source, prefix, position)
    return InputLine(
        source,
        prefix,
        fields=fields,
        breaks=breaks,
        repeated=tuple(dict.fromkeys(repeated)),
        has_nul=tuple(field for field, text in texts.items() if "\0" in text),
        has_surrogates=tuple(field for field, text in texts.items() if _SURROGATE.search(text)),
    )


def with_errors(
    parse: Callable[[str, str], InputLine], *, has_columns: bool = False
) -> Callable[[str, str], InputLine]:
    """Return a parser that returns the error of a line instead of raising it.

    Args:
        parse: a parser such as `from_json`.
        has_columns: keep the columns of such a line.
    """

    def parse_line(line: str, position: str) -> InputLine:
        try:
            return parse(line, position)
        except DataError as error:
            columns = tuple(line.split("\t")) if has_columns else ()
            reason = str(error).removeprefix(f"{position}: ")
            return InputLine("", columns=columns, error=reason)

    return parse_line


def _check_prefix(source: str, prefix: str, position: str) -> None:
    """Raise a DataError if a prefix has text on a line where its source has none."""
    if "\n" not in prefix:
        return
    lines = source.split("\n")
    for number, each in enumerate(prefix.split("\n"), 1):
        if each.strip() and not (number <= len(lines) and lines[number - 1].strip()):
            message = f"line {number} of `{_PREFIX_FIELD}` has text, line {number} of the source"
            raise DataError(f"{position}: {message} none")


def _table(pairs: list[tuple[str, Any]], *, repeated: list[str]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated += [name for name, count in counts.items() if count > 1]
    return table


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"`{constant}` is not JSON")


# Formatting of translations.


class OutputFormat(NamedTuple):
    """The format of the output.

    Attributes:
        kind: lines of text, or a JSON object on each line.
        n_best: candidates of each line.
        with_score: write the score before a line of text; n-best lists and JSON always have it.
        word_scores: write the log-probability of each token.
        alignment: `soft` writes all weights, `hard` the source word with the largest weight for
            each target word, a number the pairs with more than this weight; None writes nothing.
    """

    kind: Literal["text", "json"] = "text"
    n_best: int = 1
    with_score: bool = False
    word_scores: bool = False
    alignment: Literal["soft", "hard"] | float | None = None


def format_translation(
    line: InputLine, translation: Translation, index: int, output_format: OutputFormat
) -> Iterator[str]:
    """Yield the output lines of one input line.

    Args:
        line: the input line.
        translation: its translation.
        index: index of the line from 0, which n-best lists contain.
        output_format: the format of the output.
    """
    if line.error and (output_format.kind == "json" or output_format.n_best == 1):
        return as_error(line, index, output_format)
    if output_format.kind == "json":
        return as_json(line, translation, output_format)
    if output_format.n_best > 1:
        return as_n_best(translation, index, output_format)
    return as_text(line, translation, output_format)


def as_error(line: InputLine, index: int, output_format: OutputFormat) -> Iterator[str]:
    """Yield the answer to a line that cannot be parsed: an object, or its columns and blanks."""
    if output_format.kind == "json":
        yield json_line({"error": line.error, "line": index + 1})
    else:
        yield "\t".join([*line.columns, *([""] if output_format.with_score else []), ""])


def as_text(
    line: InputLine, translation: Translation, output_format: OutputFormat
) -> Iterator[str]:
    """Yield a line `[columns<TAB>][score<TAB>]translation[ ||| 0-0 …][ ||| WordScores= …]`."""
    best = translation.candidates[0]
    # A tab would split the translation into two columns.
    text = best.text.replace("\t", " ") if line.columns else on_one_line(best.text)
    text = " ||| ".join([text, *_extras(best, output_format)])
    score = [f"{best.score:.4f}"] if output_format.with_score else []
    yield "\t".join([*line.columns, *score, text])


def as_n_best(translation: Translation, index: int, output_format: OutputFormat) -> Iterator[str]:
    """Yield lines of Moses' n-best format: `index ||| text ||| features ||| score`.

    The index counts from 0. Alignments and word scores precede the features, as in Marian.
    """
    for candidate in translation.candidates:
        fields = [str(index), on_one_line(candidate.text), *_extras(candidate, output_format)]
        fields += [f"logprob={candidate.log_probability:.4f}", f"{candidate.score:.4f}"]
        yield " ||| ".join(fields)


def as_json(
    line: InputLine, translation: Translation, output_format: OutputFormat
) -> Iterator[str]:
    """Yield a JSON object with source, translation and score, and all candidates of an n-best list.

    Other fields of JSON input are copied.
    """
    best = translation.candidates[0]
    given = {"source": translation.source} if line.fields is None else line.fields
    fields: dict[str, Any] = dict(given)
    fields |= {"translation": restored(best.text, line.breaks), "score": round(best.score, 4)}
    if output_format.word_scores:
        fields["log_probability"] = round(best.log_probability, 4)
    fields |= _more(best, output_format)
    if output_format.n_best > 1:
        fields["n_best"] = [
            {
                "translation": restored(candidate.text, line.breaks),
                "score": round(candidate.score, 4),
                "log_probability": round(candidate.log_probability, 4),
                **_more(candidate, output_format),
            }
            for candidate in translation.candidates
        ]
    yield json_line(fields)


def json_line(fields: Mapping[str, Any]) -> str:
    """Return a JSON object on one line, as text that UTF-8 can encode."""
    text = json.dumps(fields, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can spell
        text = json.dumps(fields)
    return text


def word_scores_field(scores: Sequence[float]) -> str:
    """Return the log-probabilities of tokens as Marian writes them: `WordScores= …`."""
    return " ".join(["WordScores=", *(f"{score:.4f}" for score in scores)])


def replaced_fields(output_format: OutputFormat) -> frozenset[str]:
    """Return the names of the JSON fields that the output replaces if the input has them."""
    names = {"translation", "score"}
    names |= {"n_best"} if output_format.n_best > 1 else set()
    names |= {"alignment"} if output_format.alignment is not None else set()
    names |= {"log_probability", "pieces", "word_scores"} if output_format.word_scores else set()
    return frozenset(names)


def _more(candidate: Candidate, output_format: OutputFormat) -> dict[str, Any]:
    """Return the optional JSON fields of a candidate."""
    fields: dict[str, Any] = {}
    if output_format.alignment == "soft":
        fields["alignment"] = [[round(weight, 4) for weight in row] for row in candidate.alignment]
    elif output_format.alignment is not None:
        fields["alignment"] = alignment_pairs(candidate.alignment, output_format.alignment)
    if output_format.word_scores:
        fields["pieces"] = candidate.pieces
        fields["word_scores"] = [round(score, 4) for score in candidate.word_scores]
    return fields


def _extras(candidate: Candidate, output_format: OutputFormat) -> list[str]:
    """Return the optional fields of a text line, in Marian's format."""
    fields = []
    if output_format.alignment == "soft":
        rows = (",".join(f"{weight:.4f}" for weight in row) for row in candidate.alignment)
        fields.append(" ".join(rows))
    elif output_format.alignment is not None:
        pairs = alignment_pairs(candidate.alignment, output_format.alignment)
        fields.append(" ".join(f"{source}-{target}" for source, target in pairs))
    if output_format.word_scores:
        fields.append(word_scores_field(candidate.word_scores))
    return fields


def alignment_kind(name: str) -> Literal["soft", "hard"] | float:
    """Parse the value of Marian's `--alignment`: `soft`, `hard`, or a weight from 0 to below 1.

    Raises:
        ConfigError: the value is none of these.
    """
    for kind in ("soft", "hard"):
        if name == kind:
            return kind
    with contextlib.suppress(ValueError):
        if 0 <= float(name) < 1:
            return float(name)
    expected = "expected soft, hard, or a number of at least 0 and below 1"
    raise ConfigError(f"unknown alignment `{name}`, {expected}")


def alignment_pairs(
    weights: Sequence[Sequence[float]], kind: Literal["hard"] | float
) -> list[tuple[int, int]]:
    """Return the pairs of aligned source and target words, counted from 0, in source order.

    Args:
        weights: weights of the source words for each target word, (J, I).
        kind: `hard` selects the source word with the largest weight for each target word, the
            first of several; a number selects the pairs with more than this weight.
    """
    if kind == "hard":
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
        if weight > kind
    ]
    return sorted(pairs)
