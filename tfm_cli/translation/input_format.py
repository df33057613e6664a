"""Parsing of input lines: text, columns, or a JSON object."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

from tfm_cli.errors import DataError
from tfm_cli.translation.segments import unified

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
    """

    source: str
    target_prefix: str = ""
    columns: tuple[str, ...] = ()
    fields: Mapping[str, Any] | None = None
    breaks: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    has_nul: tuple[str, ...] = ()
    has_surrogates: tuple[str, ...] = ()


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
        plural = "" if len(columns) == 1 else "s"
        message = f"has {len(columns)} column{plural}, but column {number} is the source"
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
        message = f"{position}: is not a JSON object: character {error.colno}: {error.msg}"
        raise DataError(message) from error
    except ValueError as error:  # NaN, infinity, or too many digits
        reason = str(error).partition(";")[0]  # the rest is advice for Python programmers
        raise DataError(f"{position}: has a number that cannot be kept: {reason}") from error
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
