"""A line that holds both sides of a pair: columns, or a JSON object."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tfm_cli.corpus.corpus_files import Format
from tfm_cli.errors import DataError
from tfm_cli.mended import Mended

Pair = tuple[str, str]


def pairs_of(
    lines: Iterable[str], held: Format, mended: Mended, *, name: str, num_lines: int = 0
) -> Iterator[Pair]:
    """The pair of each line, in order; a blank line is a pair of blanks.

    Args:
        lines: text without line feeds.
        held: `tsv` or `jsonl`.
        mended: counts lines with more than two columns, and objects with a name twice.
        name: what messages call the file.
        num_lines: those before the first of `lines`.

    Raises:
        DataError: a line has no two columns, or is no object with both sides; with its number.
    """
    for number, line in enumerate(lines, start=num_lines + 1):
        if not line.strip():
            yield "", ""
        elif held == "tsv":
            columns = line.split("\t")
            if len(columns) < 2:
                raise _error(name, number, "has 1 column, wanted source<TAB>target")
            if len(columns) > 2:
                mended.add("columns", number)
            yield columns[0], columns[1]
        else:
            yield _from_object(line, mended, name, number)


def _from_object(line: str, mended: Mended, name: str, number: int) -> Pair:
    wanted = "wanted an object with `source` and `target`"
    is_repeated = False

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal is_repeated
        fields = dict(pairs)
        is_repeated = is_repeated or len(fields) < len(pairs)
        return fields

    try:
        found = json.loads(line, object_pairs_hook=table)
    except json.JSONDecodeError as error:
        reason = f"{error.msg[:1].lower()}{error.msg[1:]}".removesuffix(" at")
        told = f"is no JSON: {reason} at character {error.pos + 1}"
        raise _error(name, number, told) from error
    except (RecursionError, ValueError) as error:  # nested too deep, a number of too many digits
        raise _error(name, number, f"cannot be understood as JSON, {wanted}") from error
    if not isinstance(found, dict):
        raise _error(name, number, f"is no object, {wanted}")
    if is_repeated:
        mended.add("repeated", number)
    missing = [f"`{side}`" for side in ("source", "target") if side not in found]
    if missing and "translation" in found:
        told = "has `translation`, which does not say which language is the source"
        raise _error(name, number, f"{told}, {wanted}")
    if missing:
        raise _error(name, number, f"lacks {' and '.join(missing)}, {wanted}")
    for side in ("source", "target"):
        if not isinstance(found[side], str):
            raise _error(name, number, f"`{side}` is no string")
    return _one_line(found["source"]), _one_line(found["target"])


def _one_line(text: str) -> str:
    """Text without line feeds, and with U+FFFD for half a surrogate pair, which JSON can spell."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\n", " ").replace("\0", "")


def _error(name: str, number: int, told: str) -> DataError:
    return DataError(f"{name}:{number}: {told}")
