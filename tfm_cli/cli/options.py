"""Flags made from the settings of `config.py`, so that name, bound and help stand once."""

import dataclasses
import os
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TextIO, get_args, get_origin

import typer
from typer.core import TyperGroup

from tfm_cli.config.settings import NORMALIZATION_RULES
from tfm_cli.config.validation import coerce
from tfm_cli.device import DECODING_PRECISIONS
from tfm_cli.errors import ConfigError

WORKERS: Any = typer.Option(
    metavar="N",
    min=0,
    max=1024,
    show_default=False,
    help="Processes that work side by side on a CPU, sharing the weights; 0 takes one for "
    "each core, once there is work for several. [default: 0]",
)


def _no_cpu_threads(value: int | None) -> None:
    if value is not None:
        raise typer.BadParameter(
            "a process computes with one thread; use `--workers N` for N cores"
        )


# Scripts that were written for 0.1.0 get to know what to write instead.
NO_CPU_THREADS: Any = typer.Option(
    "--cpu-threads", hidden=True, callback=_no_cpu_threads, metavar="N"
)
PRECISION: Any = typer.Option(
    metavar="NAME",
    show_default=False,
    help="Arithmetic of the matrix products: auto (fp32 on CPUs; bf16 on GPUs that have it), fp32, "
    "bf16, fp16 on GPUs, int8 on CPUs. [default: auto]",
)


class CommandGroup(TyperGroup):
    """A command with subcommands; without arguments it prints its help and ends with success."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments that stand before the subcommand."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit
        return super().parse_args(ctx, args)


_METAVARS: dict[type, str] = {int: "N", float: "X"}


def flag(
    section: type,
    name: str,
    *names: str,
    shown: bool = True,
    extra: str = "",
    metavar: str = "",
    auto: bool = False,
) -> Any:
    """A Typer option with the help, bounds and default of a setting.

    Args:
        section: a dataclass of `config.py`.
        name: the setting's name in it.
        names: the flag's names, main one first, aliases after; by default `--name`.
        shown: whether `--help` shows the built-in default; presets may have another.
        extra: a sentence to add to the setting's help.
        metavar: what help calls the value; by default N, X or NAME, by its type.
        auto: whether the number 0 is also spelled `auto`.
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
    # A field's type is a class here; dataclasses allow a string as well.
    metavar = metavar or _METAVARS.get(field.type, "NAME")  # type: ignore[arg-type]
    bounds: dict[str, Any] = {}
    if auto:
        bounds = {"parser": _number_or_auto}
    elif field.type in (int, float):
        # An open end is let through here, and refused with the other settings.
        bounds = {
            "min": _first_given(field.metadata["ge"], field.metadata["gt"]),
            "max": _first_given(field.metadata["le"], field.metadata["lt"]),
        }
    declared = names or (f"--{name.replace('_', '-')}",)
    return typer.Option(*declared, help=text, metavar=metavar, show_default=False, **bounds)


def _first_given(*bounds: float | None) -> float | None:
    return next((bound for bound in bounds if bound is not None), None)


def _number_or_auto(text: str) -> int:
    if text == "auto":
        return 0
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"wanted a whole number or `auto`, got `{text}`") from None


def rule_name(rule: str) -> str:
    """Return a normalization rule as the settings spell it: `nmt-nfkc` is `nmt_nfkc`."""
    spelled = rule.replace("-", "_")
    return spelled if spelled in NORMALIZATION_RULES else rule


def check_precision(name: str) -> None:
    """Refuse an arithmetic that there is not, before seconds pass in loading."""
    if name not in DECODING_PRECISIONS:
        listed = ", ".join(f"`{one}`" for one in DECODING_PRECISIONS)
        raise ConfigError(f"`--precision` must be one of {listed}, got `{name}`")


def check_setting(section: type, name: str, value: object) -> None:
    """Refuse, by the flag's name, a value that a setting of `config.py` cannot have."""
    field = {f.name: f for f in dataclasses.fields(section)}[name]
    _, complaint = coerce(value, field.type, field.metadata)
    if complaint:
        raise ConfigError(f"`--{name.replace('_', '-')}` {complaint}")


# What a command must not write to: what it reads.


def refuse_overwriting(
    output: str | Path, read: Iterable[str | Path], *, option: str = "--output"
) -> None:
    """Refuse an output that is a file which is read, by whatever name, link or redirection.

    Args:
        output: where the command writes; `-` is standard output.
        read: what it reads; `-` is standard input.
        option: by which the output is named.
    """
    place = _identity(output, sys.stdout)
    if place is None:
        return
    for path in read:
        if _identity(path, sys.stdin) == place:
            name = "standard output" if str(output) == "-" else str(output)
            same = "standard input" if str(path) == "-" else f"`{path}`"
            raise ConfigError(
                f"{name}: is the same file as {same}, which is read",
                hint=f"name another one with `{option}`",
            )


def model_files(path: Path) -> list[Path]:
    """The files of a model directory that are read; or the path itself, if it is a file."""
    from tfm_cli.files.layout import CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILE

    if not path.is_dir():
        return [path]
    return [path / name for name in (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES)]


def _identity(path: str | Path, standard: TextIO | None) -> tuple[int, int] | None:
    """What two names of the same plain file have in common; None for anything else."""
    try:
        if str(path) != "-":
            status = os.stat(path)  # noqa: PTH116 - a path with a NUL is a ValueError here
        elif standard is None:
            return None
        else:
            status = os.fstat(standard.fileno())
    except (OSError, ValueError):  # it is not there, or has no descriptor
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


# Values of the command line, taken for what they plainly are.
#
# Typer asks pydantic, whose import takes longer than a line takes to translate. What is not plainly
# of the type that is wanted, a mistake above all, is left to Typer, whose words for it are shown.
#
# Of Typer 0.29, whose parameters look for what reads their values in `_runtime_param`.

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
