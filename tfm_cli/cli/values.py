"""Values of the command line, taken for what they plainly are.

Typer asks pydantic, whose import takes longer than a line takes to translate. What is not plainly
of the type that is wanted, a mistake above all, is left to Typer, whose words for it are shown.

Of Typer 0.29, whose parameters look for what reads their values in `_runtime_param`.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?[0-9]{1,17}(\.[0-9]{1,17})?(e-?[0-9]{1,2})?")
# What Typer's own options of a path are unless a command says something else.
_USUAL_PATH = {
    "exists": False, "file_okay": True, "dir_okay": True, "writable": False, "readable": True,
    "resolve_path": False, "allow_dash": False, "path_type": None,
}  # fmt: skip


def take_plainly(command: Any) -> Any:
    """Return a command that, like its subcommands, takes the values of its parameters plainly."""
    typers = command.get_params
    command.get_params = lambda ctx: plain_parameters(typers(ctx))
    for subcommand in getattr(command, "commands", {}).values():
        take_plainly(subcommand)
    return command


def plain_parameters(parameters: list[Any]) -> list[Any]:
    """Return parameters of a command, `--help` among them, that take their values plainly."""
    for parameter in parameters:
        if parameter._runtime_param is None:
            parameter._runtime_param = _PlainValues(parameter)
    return parameters


class _PlainValues:
    """Reads the values of a parameter."""

    def __init__(self, parameter: Any) -> None:
        self._parameter = parameter

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value as the type that the command wants."""
        descriptor = self._parameter.type_descriptor
        is_list = get_origin(descriptor.annotation) is list
        kind = get_args(descriptor.annotation)[0] if is_list else descriptor.annotation
        takes_several = param.multiple or param.nargs == -1
        if value is None:
            return () if takes_several else None
        if is_list and takes_several and isinstance(value, list | tuple):
            found = [_plain(each, kind, descriptor.parameter_info) for each in value]
            if None not in found:
                return found
        elif not is_list and not takes_several:
            found_one = _plain(value, kind, descriptor.parameter_info)
            if found_one is not None:
                return found_one
        self._parameter._runtime_param = None  # from here on as Typer does it
        return self._parameter.get_runtime_param().coerce(value, param=param, ctx=ctx)


def _plain(value: Any, kind: Any, info: Any) -> Any:
    """Return a value as a type; None if it is not plainly one."""
    if info.parser is not None or info.clamp:
        return None
    if kind is str:
        return value if isinstance(value, str) else None
    if kind in (int, float):
        number = _number(value, kind)
        is_low = number is not None and info.min is not None and number < info.min
        is_high = number is not None and info.max is not None and number > info.max
        return None if is_low or is_high else number
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else None
    if kind is Path:
        return _path(value, info)
    return None


def _number(value: Any, kind: type) -> Any:
    if type(value) is kind:
        return value
    spelling = _WHOLE if kind is int else _DECIMAL
    if isinstance(value, str) and spelling.fullmatch(value):
        return kind(value)
    return None


def _path(value: Any, info: Any) -> Path | None:
    if any(getattr(info, name) != usual for name, usual in _USUAL_PATH.items()):
        return None
    if not isinstance(value, str | Path):
        return None
    exists = os.path.exists(value)  # noqa: PTH110 - unlike Path's, it takes a name that is too long
    if exists and not os.access(value, os.R_OK):
        return None
    return Path(value)
