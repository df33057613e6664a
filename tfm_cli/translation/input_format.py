"""What stands on a line of input: text, columns, or a JSON object."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from tfm_cli.errors import DataError
from tfm_cli.translation.segments import unified

_SOURCE_FIELDS = ("source", "text")  # ours, and Sockeye's
_PREFIX_FIELD = "target_prefix"
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # an escape of JSON may spell one without the other


@dataclass(frozen=True, slots=True)
class InputLine:
    """What is to be translated, and what comes out beside the translation."""

    source: str
    target_prefix: str = ""  # what the translation begins with
    columns: tuple[str, ...] = ()
    fields: Mapping[str, Any] | None = None  # None where the input is no JSON
    breaks: tuple[str, ...] = ()  # what the line feeds of a source of several lines stand for
    repeated: tuple[str, ...] = ()  # names that an object has more than once
    has_nul: tuple[str, ...] = ()  # fields from which NUL characters were removed
    has_surrogates: tuple[str, ...] = ()  # fields with half of a surrogate pair


def from_forced(line: str, place: str) -> InputLine:
    """The source and, behind a tab, what its translation begins with.

    Args:
        line: of the input.
        place: what messages call it.

    Raises:
        DataError: there are more columns.
    """
    columns = line.split("\t")
    if len(columns) > 2:
        message = f"{place}: has {len(columns)} columns, wanted `source<TAB>target prefix`"
        raise DataError(message, hint="use `--tsv` to keep other columns")
    return InputLine(columns[0], "".join(columns[1:]))


def from_columns(line: str, place: str, *, number: int, forced: bool) -> InputLine:
    """The source in one of the columns, all of which are kept; a blank line has none.

    Args:
        line: of the input.
        place: what messages call it.
        number: of the column of the source, from 1.
        forced: whether the column behind it, if there is one, is what the translation begins with.

    Raises:
        DataError: there are fewer columns.
    """
    if not line:
        return InputLine("")
    columns = line.split("\t")
    if len(columns) < number:
        plural = "" if len(columns) == 1 else "s"
        message = f"{place}: has {len(columns)} column{plural}, but column {number} is the source"
        raise DataError(message)
    prefix = columns[number] if forced and len(columns) > number else ""
    return InputLine(columns[number - 1], prefix, tuple(columns))


def from_json(line: str, place: str) -> InputLine:
    """The `source` or `text` of an object, and its `target_prefix`; a blank line is blank text.

    Args:
        line: of the input.
        place: what messages call it.

    Raises:
        DataError: it is no object, or has no such source, or a field of the three is no string; or
            the prefix has text on a line where the source has none.
    """
    if not line.strip():
        return InputLine("")
    repeated: list[str] = []
    try:
        fields = json.loads(
            line, parse_constant=_refuse, object_pairs_hook=partial(_table, repeated=repeated)
        )
        json.dumps(fields, allow_nan=False)  # what cannot be written again is found out here
    except json.JSONDecodeError as error:
        message = f"{place}: is no JSON object: character {error.colno}: {error.msg}"
        raise DataError(message) from error
    except ValueError as error:  # numbers that are none, or have too many digits
        reason = str(error).partition(";")[0]  # the rest is advice for programmers
        raise DataError(f"{place}: has a number that cannot be kept: {reason}") from error
    except RecursionError as error:
        raise DataError(f"{place}: has objects or lists nested too deeply") from error
    if not isinstance(fields, dict):
        raise DataError(f"{place}: is no JSON object")
    name = next((name for name in _SOURCE_FIELDS if name in fields), "")
    if not name:
        raise DataError(f"{place}: has neither `source` nor `text`")
    prefix = fields.get(_PREFIX_FIELD)
    prefix = "" if prefix is None else prefix  # programs write null for what they do not have
    texts = {name: fields[name], _PREFIX_FIELD: prefix}
    for field, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{place}: `{field}` is no string")
    source, breaks = unified(fields[name].replace("\0", ""))
    prefix, _ = unified(prefix.replace("\0", ""))
    _check_prefix(source, prefix, place)
    return InputLine(
        source,
        prefix,
        fields=fields,
        breaks=breaks,
        repeated=tuple(dict.fromkeys(repeated)),
        has_nul=tuple(field for field, text in texts.items() if "\0" in text),
        has_surrogates=tuple(field for field, text in texts.items() if _SURROGATE.search(text)),
    )


def _check_prefix(source: str, prefix: str, place: str) -> None:
    """Refuse a prefix of several lines that does not fit the lines of its source."""
    if "\n" not in prefix:
        return
    lines = source.split("\n")
    for number, each in enumerate(prefix.split("\n"), 1):
        if each.strip() and not (number <= len(lines) and lines[number - 1].strip()):
            told = f"line {number} of `{_PREFIX_FIELD}` has text, line {number} of the source none"
            raise DataError(f"{place}: {told}")


def _table(pairs: list[tuple[str, Any]], *, repeated: list[str]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated += [name for name, count in counts.items() if count > 1]
    return table


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"`{constant}` is no JSON")
