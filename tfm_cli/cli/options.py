"""Flags made from the settings of `config.py`, so that name, bound and help stand once."""

import dataclasses
from typing import Any

import typer
from typer.core import TyperGroup

from tfm_cli.config import DECODING_PRECISIONS, NORMALIZATION_RULES
from tfm_cli.configcheck import coerce
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
