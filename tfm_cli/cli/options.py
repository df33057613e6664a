"""Flags made from the settings of `config.py`, so that name, bound and help stand once."""

import dataclasses
from typing import Any

import typer


def flag(section: type, name: str, *names: str, shown: bool = True, extra: str = "") -> Any:
    """A Typer option with the help, bounds and default of a setting.

    Args:
        section: a dataclass of `config.py`.
        name: the setting's name in it.
        names: the flag's names, main one first, aliases after; by default `--name`.
        shown: whether `--help` shows the built-in default; presets may have another.
        extra: a sentence to add to the setting's help.
    """
    field = {f.name: f for f in dataclasses.fields(section)}[name]
    text = str(field.metadata["help"])
    if field.metadata["choices"]:
        listed = ", ".join(str(choice) for choice in field.metadata["choices"])
        text = f"{text.rstrip('.')} ({listed})."
    if shown and field.default not in ((), ""):
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(default)
        text = f"{text} [default: {default}]"
    if extra:
        text = f"{text} {extra}"
    bounds = {}
    if field.type in (int, float):
        bounds = {"min": field.metadata["ge"], "max": field.metadata["le"]}
    declared = names or (f"--{name.replace('_', '-')}",)
    return typer.Option(*declared, help=text, show_default=False, **bounds)
