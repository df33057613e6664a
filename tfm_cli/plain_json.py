"""JSON that others wrote: names once, finite numbers, not nested deeply."""

import json
import math
from typing import Any

_MAX_DEPTH = 8


def parse_json(content: bytes, *, max_depth: int = _MAX_DEPTH) -> Any:
    """What JSON in UTF-8 says; a mark of the encoding before it is left out.

    Raises:
        ValueError: it is none, has a name twice in one object, has a number that is none or is not
            finite, or is nested deeper than `max_depth`.
    """
    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {max_depth} levels") from error
    _check_depth(value, max_depth)
    return value


def parse_object(content: bytes, *, max_depth: int = _MAX_DEPTH) -> dict[str, Any]:
    """The same, of an object.

    Raises:
        ValueError: as `parse_json`, or it is something else.
    """
    value = parse_json(content, max_depth=max_depth)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _check_depth(value: Any, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict | list):
                inner += each.values() if isinstance(each, dict) else each
        level = inner
    if not any(isinstance(each, dict | list) for each in level):
        return
    raise ValueError(f"it is nested deeper than {max_depth} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name `{name[:60]}` occurs twice")
            seen.add(name)
    return table


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is no finite number")
    return value
