"""The command line: the only place with typer, exit codes and the standard streams."""

import logging
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import tfm_cli
from tfm_cli.errors import Interrupted, TfmError

_ISSUES = "if it persists, please report it together with the command and the lines above"


class Cli(TyperGroup):
    """The one place where an exception becomes words on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - the type is vendored by Typer
        """Run a command; every kind of failure gets its message and exit code here."""
        try:
            return super().invoke(ctx)
        except Interrupted as stop:
            typer.echo(str(stop), err=True)
            raise typer.Exit(stop.exit_code) from stop
        except TfmError as error:
            typer.echo(f"error: {error}", err=True)
            if error.hint:
                typer.echo(f"hint: {error.hint}", err=True)
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError as gone:
            # The reader has all it wanted. What Python still holds for stdout must not be
            # written at exit, or it would complain then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from gone
        except KeyboardInterrupt as stop:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from stop
        except (typer.Exit, typer.Abort):
            raise
        except Exception as bug:
            if type(bug).__module__.startswith("typer."):  # usage errors, shown by Typer itself
                raise
            traceback.print_exc()
            typer.echo(f"error: this is a bug in tfm {tfm_cli.__version__}; {_ISSUES}", err=True)
            raise typer.Exit(70) from bug


def _hyphens(name: str) -> str:
    """Take `--beam_size` for `--beam-size`: both habits are common."""
    return name.replace("_", "-")  # Click hands the name over without its hyphens


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tfm {tfm_cli.__version__}")
        raise typer.Exit


SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": _hyphens}

app = typer.Typer(
    cls=Cli,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Neural machine translation: raw text in, raw text out.

    Train a Transformer on parallel text, translate with it, and score the translations.
    """


def _register() -> None:
    from tfm_cli.cli import evaluate, evaluate_usage, tokenize, train, translate

    app.add_typer(tokenize.app, name="tokenize")
    app.command("train")(train.train)
    app.command("translate")(translate.translate)
    app.command("evaluate", cls=evaluate_usage.EvaluateCommand)(evaluate.evaluate)


_register()


def main() -> None:
    """Run `tfm`; UTF-8 on every stream whatever the locale says."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    logging.captureWarnings(True)
    app(prog_name="tfm")
