"""What stands on a line of input: text, columns, or a JSON object."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from tfm_cli.errors import DataError

_SOURCE_FIELDS = ("source", "text")  # ours, and Sockeye's
_PREFIX_FIELD = "target_prefix"


@dataclass(frozen=True, slots=True)
class InputLine:
    """What is to be translated, and what comes out beside the translation."""

    source: str
    target_prefix: str = ""  # what the translation begins with
    columns: tuple[str, ...] = ()
    fields: Mapping[str, Any] | None = None  # None where the input is no JSON


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
        DataError: it is no object, or has no such source, or a field of the three is no string.
    """
    if not line.strip():
        return InputLine("")
    try:
        fields = json.loads(line, parse_constant=_refuse)
        json.dumps(fields, allow_nan=False)  # what cannot be written again is found out here
    except json.JSONDecodeError as error:
        message = f"{place}: is no JSON object: character {error.colno}: {error.msg}"
        raise DataError(message) from error
    except ValueError as error:  # numbers that are none, or have too many digits
        raise DataError(f"{place}: has a number that cannot be kept: {error}") from error
    except RecursionError as error:
        raise DataError(f"{place}: has objects or lists nested too deeply") from error
    if not isinstance(fields, dict):
        raise DataError(f"{place}: is no JSON object")
    name = next((name for name in _SOURCE_FIELDS if name in fields), "")
    if not name:
        raise DataError(f"{place}: has neither `source` nor `text`")
    prefix = fields.get(_PREFIX_FIELD)
    prefix = "" if prefix is None else prefix  # programs write null for what they do not have
    for field, text in ((name, fields[name]), (_PREFIX_FIELD, prefix)):
        if not isinstance(text, str):
            raise DataError(f"{place}: `{field}` is no string")
    return InputLine(_segment(fields[name]), _segment(prefix), (), fields)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"`{constant}` is no JSON")


def _segment(text: str) -> str:
    """Text as a line can hold it."""
    return text.replace("\n", " ").replace("\0", "")
