"""Tiers of tests: `make check` runs tests without a marker, `make test` those marked `slow` too.

`make torture` runs tests marked `torture`. Every oracle has a case outside of `torture`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def representative(
    names: str | tuple[str, ...],
    cases: Iterable[Any],
    *,
    count: int = 1,
    ids: Sequence[str] | Callable[[Any], object] | None = None,
) -> pytest.MarkDecorator:
    """Parametrize a test as pytest does, all but the first `count` cases marked `torture`."""
    values = [(case,) if isinstance(names, str) else tuple(case) for case in cases]
    marked = [pytest.param(*value, marks=pytest.mark.torture) for value in values[count:]]
    return pytest.mark.parametrize(
        names, [*(pytest.param(*value) for value in values[:count]), *marked], ids=ids
    )
