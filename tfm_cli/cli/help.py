"""The text of `--help`: plain, at most 80 columns wide, with the options under headings."""

import inspect
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from tfm_cli.cli.options import Option
from tfm_cli.config.validation import allowed_range

_MAX_WIDTH = 80
_MIN_WIDTH = 40
_MAX_NAME_WIDTH = 28
_NO_BREAK = "\xa0"

Rows = Sequence[tuple[str, str]]
HELP_ROW = ("-h, --help", "Show this message.")


def command_help(usage: str, documentation: str, options: Iterable[Option]) -> str:
    """Return the help of a command.

    Args:
        usage: the first line.
        documentation: the docstring of the command.
        options: in the order of the help, grouped by heading.
    """
    sections: dict[str, list[tuple[str, str]]] = {}
    for option in options:
        if not option.is_hidden:
            sections.setdefault(option.heading, []).append((_names(option), _text(option)))
    heading = next(reversed(sections), "Options")
    sections.setdefault(heading, []).append(HELP_ROW)
    return page(usage, documentation, sections.items())


def page(usage: str, documentation: str, sections: Iterable[tuple[str, Rows]]) -> str:
    """Return a help text: usage, documentation, and sections of two columns."""
    width = max(_MIN_WIDTH, min(_MAX_WIDTH, shutil.get_terminal_size().columns))
    blocks = [usage]
    for paragraph in inspect.cleandoc(documentation).split("\n\n"):
        is_example = paragraph.startswith("Example:")
        blocks.append(f"  {paragraph}" if is_example else _filled(paragraph, width, indent="  "))
    for heading, rows in sections:
        column = min(max(len(name) for name, _ in rows), _MAX_NAME_WIDTH) + 4
        lines = [f"{heading}:"]
        for name, text in rows:
            lines += _row(name, text, column, width)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def summary(documentation: str) -> str:
    """Return the first line of a docstring, without its full stop."""
    return inspect.cleandoc(documentation).partition("\n")[0].removesuffix(".")


def _row(name: str, text: str, column: int, width: int) -> list[str]:
    """Return the lines of a name and its text, which is below a name that is too long."""
    filled = _filled(text, width, indent=" " * column)
    name = f"  {name}"
    if len(name) + 2 > column:
        return [name, filled] if text else [name]
    return [name.ljust(column) + filled[column:]]


def _filled(text: str, width: int, *, indent: str) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ).replace(_NO_BREAK, " ")


def _names(option: Option) -> str:
    """Return the flags, short ones first, and the name of the value."""
    if not option.flags:
        return f"{option.metavar}..." if option.is_list else option.metavar
    if "/" in option.flags[0]:
        return ", ".join(option.flags).replace("/", " / ")
    flags = sorted(option.flags, key=lambda flag: flag.startswith("--"))
    value = _value_name(option)
    return f"{', '.join(flags)} {value}" if value else ", ".join(flags)


def _value_name(option: Option) -> str:
    if option.kind is bool or option.metavar:
        return option.metavar
    if option.bounds["choices"] and _fits(option):
        return "|".join(map(str, option.bounds["choices"]))
    return {int: "N", float: "X"}.get(option.kind, "NAME")


def _fits(option: Option) -> bool:
    """Return True if the choices are short enough to be shown as the name of the value."""
    return not option.is_list and len("|".join(map(str, option.bounds["choices"]))) <= 16


def _text(option: Option) -> str:
    """Return the help of an option, with its choices, default and range in brackets."""
    facts = []
    choices = option.bounds["choices"]
    if choices and option.metavar != "NAME" and not _fits(option):
        facts.append("any of " * option.is_list + ", ".join(map(str, choices)))
    if option.is_required:
        facts.append("required")
    if option.shown_default and option.shown_default != "False":
        facts.append(f"default: {'on' if option.kind is bool else option.shown_default}")
    if bounds := allowed_range(option.kind, option.bounds):
        facts.append(bounds)
    if not facts:
        return option.help
    unbroken = [fact if len(fact) > 30 else fact.replace(" ", _NO_BREAK) for fact in facts]
    return f"{option.help} [{'; '.join(unbroken)}]".strip()
