"""Conversion of declared commands to Typer's, which keep their own parsing and help."""

import functools
import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from tfm_cli.cli.options import Command, Option, flags_of, setting_names
from tfm_cli.config.validation import suggestion
from tfm_cli.errors import ConfigError

UsageError: Any = typer.BadParameter.__base__

# By name, in the order of the help: a module in this package, and an attribute of it.
Commands = Mapping[str, tuple[str, str]]


class DeclaredCommand(TyperCommand):
    """A command whose values and help follow its declaration."""

    declared: tuple[Option, ...] = ()

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, `--help` among them."""
        return [_adopt(each, self._declarations()) for each in super().get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; an error of an unknown flag notes how the flag was typed."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            flag, normalized = getattr(error, "option_name", None), ctx.token_normalize_func
            typed = [word.partition("=")[0] for word in given if word.startswith("--")]
            error.typed = next((word for word in typed if normalized(word) == flag), flag)
            raise

    def get_usage(self, ctx: Any) -> str:
        """Return the first line of the help."""
        names = []
        for each in self.declared:
            if not each.flags:
                name = f"{each.metavar}..." if each.is_list else each.metavar
                names.append(name if each.is_required else f"[{name}]")
        return " ".join([f"Usage: {ctx.command_path} [OPTIONS]", *names])

    def get_help(self, ctx: Any) -> str:
        """Return the help."""
        from tfm_cli.cli.help import command_help

        return command_help(self.get_usage(ctx), self.help or "", self.declared)

    def _declarations(self) -> dict[str, Option]:
        return {each.parameter: each for each in self.declared}


class CommandGroup(TyperGroup):
    """A group of commands, each of which is imported when it is needed.

    Without arguments it prints its help and exits with 0.
    """

    members: ClassVar[Commands] = {}
    option_rows: tuple[tuple[str, str], ...] = ()  # names and texts, for the help

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return list(self.members)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name; None if there is none."""
        if cmd_name not in self.members:
            return None
        return _imported(cmd_name, *self.members[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name and the command that the arguments begin with, and the rest of them.

        Raises:
            ConfigError: there is no such command.
        """
        if args[0] not in self.members and not args[0].startswith("-"):
            raise ConfigError(
                f"`{args[0]}`: no such command{suggestion(args[0], self.members)}",
                hint=f"`{ctx.command_path} --help` lists the commands",
            )
        return super().resolve_command(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options that precede a command."""
        return [_adopt(each, {}) for each in super().get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments up to the name of a command; `help train` is `train --help`."""
        if args[:1] == ["help"]:
            args = [*(arg for arg in args if arg != "help"), "--help"]
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit
        return super().parse_args(ctx, args)

    def get_usage(self, ctx: Any) -> str:
        """Return the first line of the help."""
        return f"Usage: {ctx.command_path} [OPTIONS] COMMAND [ARGS]..."

    def get_help(self, ctx: Any) -> str:
        """Return the help, with the first sentence of each command."""
        from tfm_cli.cli.help import HELP_ROW, page, summary

        rows = []
        for name in self.list_commands(ctx):
            rows.append((name, summary(self.get_command(ctx, name).help or "")))
        return page(
            self.get_usage(ctx),
            self.help or "",
            [("Commands", rows), ("Options", [*self.option_rows, HELP_ROW])],
        )


def usage_problem(error: Any) -> str:
    """Return the message for an error that Typer found in the command line."""
    message, flag = str(error.message).removesuffix("."), getattr(error, "option_name", "")
    typed = getattr(error, "typed", None) or flag
    if type(error).__name__ == "NoSuchOption":
        return f"`{typed}`: no such option{_instead(flag, error)}"
    if type(error).__name__ == "BadOptionUsage":
        return f"`{typed}` takes no value" if "not take" in message else f"`{typed}` needs a value"
    if match := re.fullmatch(r"Got unexpected extra argument\S* \((.*)\)", message):
        return f"unexpected argument `{match[1]}`"
    return message[:1].lower() + message[1:]


def _instead(flag: str, error: Any) -> str:
    """Return what an unknown flag may stand for: one of the same command, or a setting."""
    declared = getattr(getattr(error.ctx, "command", None), "declared", ())
    if any(each.flag == "--set" for each in declared):
        for setting in setting_names():
            if flag in flags_of(setting):
                return f"; it is a setting: `--set {setting}=VALUE`"
    return suggestion(flag, error.possibilities or ())


@functools.cache
def _imported(name: str, module_name: str, attribute: str) -> Any:
    """Return a command as Typer's object."""
    module = importlib.import_module(f"tfm_cli.cli.{module_name}")
    found = getattr(module, attribute)
    return typer_command(found, name) if isinstance(found, Command) else typer_group(found, name)


def typer_command(command: Command, name: str) -> Any:
    """Return a declared command as Typer's object."""
    options = tuple(command.all_options())

    def callback(**values: Any) -> None:
        command.run(command.options(options, values))

    parameters = [
        inspect.Parameter(
            each.parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(each),
        )
        for each in options
    ]
    # Typer derives the parameters of a command from the signature of its function.
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parser = command.parser or DeclaredCommand
    kind = type(parser.__name__, (parser,), {"declared": options})
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(name, cls=kind, help=command.run.__doc__)(callback)
    return typer.main.get_command(app)


def typer_group(kind: type[CommandGroup], name: str) -> Any:
    """Return a group of commands as Typer's object."""
    app = typer.Typer(
        name=name, cls=kind, help=kind.__doc__, rich_markup_mode=None, add_completion=False
    )
    app.callback()(_nothing)
    return typer.main.get_command(app)


def _nothing() -> None:
    """Do nothing before a command of a group."""


def _annotation(option: Option) -> Any:
    """Return the annotation from which Typer derives a parameter and its completion."""
    kind = option.kind if option.kind in (bool, Path) else str
    if option.is_list:
        kind = list[str]
    if not option.flags:
        return Annotated[kind | None, typer.Argument(metavar=option.metavar)]
    choices = option.bounds["choices"] or option.completions

    def matching(incomplete: str) -> list[str]:
        return [str(choice) for choice in choices if str(choice).startswith(incomplete)]

    return Annotated[
        kind | None,
        typer.Option(
            *option.flags, hidden=option.is_hidden, autocompletion=matching if choices else None
        ),
    ]


def _adopt(parameter: Any, declared: Mapping[str, Option]) -> Any:
    """Return a parameter of Typer whose value is processed by its declaration instead of Typer.

    Typer converts values by means of pydantic, whose import takes longer than a line takes to
    translate, and its error messages differ from those for settings in files.
    """
    if "process_value" not in vars(parameter):
        process = _process_own if parameter.name in declared else _process_flag
        option = declared.get(parameter.name)
        parameter.process_value = functools.partial(
            process, parameter, option or parameter.process_value
        )
    return parameter


def _process_own(parameter: Any, option: Option, ctx: Any, value: Any) -> Any:
    return None if ctx.resilient_parsing else option.read(value)


def _process_flag(parameter: Any, process: Any, ctx: Any, value: Any) -> Any:
    """Call the callback of a flag such as `--help`; leave anything else to Typer."""
    if isinstance(value, str) or parameter.callback is None:
        return process(ctx, value)
    return parameter.callback(ctx, parameter, value is True)
