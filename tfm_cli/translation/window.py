"""What is translated together: some lines of an input."""

from collections.abc import Sequence
from typing import NamedTuple


class Lines(NamedTuple):
    """A window; without lines it stands for a pause of the input."""

    lines: Sequence[str]
    prefixes: Sequence[str] = ()  # what each translation begins with, empty for none
    before: int | None = None  # lines of the input; None: those that were translated so far
    # What messages call the input; "" for nothing; None where its tags were checked before.
    name: str | None = None
