"""A setting: its default, its bounds and what it means, as a field of a dataclass."""

from dataclasses import field
from typing import Any

# Of what is counted: more than anybody will see, and few enough for 64 bits.
MOST = 10**12

Value = bool | int | float | str | tuple[str, ...] | tuple[float, ...]


def opt(
    default: Value,
    help_text: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Value, ...] | None = None,
    may_change: bool = False,
    before: Value | None = None,
    decided: bool = False,
) -> Any:
    """A field of a section.

    Args:
        default: the built-in default, which a preset, file, `--set` or flag replaces.
        help_text: one sentence, used for the flag's help as well.
        ge: smallest legal number; gt: legal numbers are above it; le, lt: the same from above.
        choices: the legal values, where they are few.
        may_change: a run may be resumed with another value, since it alters no result that was
            already reached. All other settings must stay as they were.
        before: the value that models and runs of formats before 3 have, which lack the setting.
        decided: `auto` is replaced by what suits the text when a run begins, and saved as that; a
            run that is resumed keeps it.
    """
    metadata = {
        "help": help_text,
        "ge": ge,
        "gt": gt,
        "le": le,
        "lt": lt,
        "choices": choices,
        "may_change": may_change,
        "before": before,
        "decided": decided,
    }
    return field(default=default, metadata=metadata)
