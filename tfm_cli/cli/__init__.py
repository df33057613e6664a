"""The command line: the only place with typer, exit codes and the standard streams."""

import atexit
import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

import tfm_cli
from tfm_cli.cli.options import CommandGroup, plain_parameters, take_plainly
from tfm_cli.console import lasting_terminal, told, visible
from tfm_cli.errors import (
    END_SIGNALS,
    INSTALL_TORCH,
    Interrupted,
    OutOfTime,
    ResourceError,
    TfmError,
    ToldElsewhere,
)

_ISSUES = "if it persists, please report it together with the command and the lines above"


# Each command by its name, in the order of `--help`: its module in this package, and what is in it.
_COMMANDS = {
    "check": ("check", "check"),
    "train": ("train", "train"),
    "translate": ("translate", "translate"),
    "evaluate": ("evaluate", "evaluate"),
    "import": ("convert", "import_model"),
    "export": ("convert", "export_model"),
    "shortlist": ("shortlist", "shortlist"),
    "tokenize": ("tokenize", "app"),
}


class Cli(CommandGroup):
    """Runs commands; every kind of failure gets its message and exit code here.

    A command is imported when it is asked for: the others would take longer than `tfm --version`.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options that stand before a command."""
        return plain_parameters(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name; None if there is none."""
        if cmd_name in _COMMANDS and cmd_name not in self.commands:
            self.commands[cmd_name] = _command(cmd_name)
        return self.commands.get(cmd_name)

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        """Parse the command line; what `--help` and `--version` print is written here."""
        with _told():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with _told():
            return super().invoke(ctx)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The one place where an exception becomes words on stderr and an exit code."""
    try:
        yield
    except (Interrupted, OutOfTime) as stop:
        typer.echo(told(str(stop)), err=True)
        raise typer.Exit(stop.exit_code) from stop
    except ToldElsewhere as silent:
        raise typer.Exit(silent.exit_code) from silent
    except TfmError as error:
        typer.echo(f"error: {told(str(error))}", err=True)
        if error.hint:
            typer.echo(f"hint: {told(error.hint)}", err=True)
        raise typer.Exit(error.exit_code) from error
    except BrokenPipeError as gone:
        raise typer.Exit(0) from gone  # the reader has all it wanted
    except KeyboardInterrupt as stop:
        after_key = sys.stderr is not None and sys.stderr.isatty()  # which shows ^C
        typer.echo("\ninterrupted" if after_key else "interrupted", err=True)
        raise typer.Exit(130) from stop
    except (typer.Exit, typer.Abort):
        raise
    except Exception as bug:  # the boundary: all else is a bug of ours
        if type(bug).__module__.startswith("typer."):  # usage errors, shown by Typer itself
            if isinstance(message := getattr(bug, "message", None), str):
                bug.message = told(message)  # type: ignore[attr-defined] # it has one
            raise
        if lack := _lack(bug):
            typer.echo(f"error: {lack}", err=True)
            if isinstance(bug, ImportError) and (bug.name or "").partition(".")[0] == "torch":
                typer.echo(f"hint: {INSTALL_TORCH}", err=True)
            raise typer.Exit(ResourceError.exit_code) from bug
        typer.echo(visible(traceback.format_exc()), nl=False, err=True)
        typer.echo(f"error: this is a bug in tfm {tfm_cli.__version__}; {_ISSUES}", err=True)
        raise typer.Exit(70) from bug


def _command(name: str) -> Any:
    """Return a command, imported and made ready to parse its arguments."""
    module_name, attribute = _COMMANDS[name]
    module = importlib.import_module(f"tfm_cli.cli.{module_name}")
    found = getattr(module, attribute)
    group = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        group.add_typer(found, name=name)
    else:
        group.command(name, cls=getattr(module, "COMMAND_CLASS", None))(found)
    return take_plainly(typer.main.get_group(group).commands[name])


_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "failed to map segment",
    "cannot map zero-fill pages",
)


def _lack(bug: Exception) -> str:
    """Return what the machine lacks, where that is no bug; else nothing."""
    words = told(str(bug))
    if isinstance(bug, ImportError):
        name, path = bug.name or "", Path(bug.path or "")
        if path.suffix in (".so", ".pyd", ".dylib"):  # whose name says nothing of its package
            name = f"{path.parent.name}.{name}"
        if name.partition(".")[0] == "tfm_cli":
            return ""
        # NumPy writes a page about it, with the reason under this title.
        reason = str(bug).partition("Original error was:")[2] or str(bug)
        words = told(reason.strip().partition("\n")[0])
        return f"{f'`{told(name)}`' if name else 'a library'} cannot be imported: {words}"
    if isinstance(bug, OSError) and bug.errno in _NOT_WRITTEN:
        return f"cannot write: {bug.strerror}"
    if isinstance(bug, OSError) and bug.errno in (errno.EMFILE, errno.ENFILE):
        return f"cannot open more files: {bug.strerror}"
    if isinstance(bug, RuntimeError) and "can't start new thread" in words:
        return f"cannot start a thread or process: {words}"
    # Torch's own is told by its name or, on a CPU, its words, since torch may not be there.
    named = isinstance(bug, MemoryError) or type(bug).__name__ == "OutOfMemoryError"
    if named or (
        isinstance(bug, (RuntimeError, OSError))
        and any(each in words.lower() for each in _OUT_OF_MEMORY)
    ):
        return f"out of memory: {words}".removesuffix(": ")
    return ""


def _hyphens(name: str) -> str:
    """Take `--beam_size` for `--beam-size`: both habits are common."""
    return name.replace("_", "-")  # Click hands the name over without its hyphens


def _version(wanted: bool) -> None:
    if wanted:
        from tfm_cli.native import library

        typer.echo(f"tfm {tfm_cli.__version__}\n{told(library.description())}")
        raise typer.Exit


SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": _hyphens}

app = typer.Typer(
    cls=Cli,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the version and the CPU engine.",
        ),
    ] = False,
) -> None:
    """Neural machine translation: raw text in, raw text out.

    Train a Transformer on parallel text, translate with it, and score the translations.
    """


def main() -> None:
    """Run `tfm`; UTF-8 on every stream whatever the locale says."""
    if sys.stderr is None:  # closed by the caller: what nobody reads goes nowhere
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    elif sys.stderr.isatty():
        sys.stderr = lasting_terminal(sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    logging.captureWarnings(True)
    signal.signal(signal.SIGTERM, _ended_by_signal)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # else `nohup` had it ignored
        signal.signal(signal.SIGHUP, _ended_by_signal)
    code: object = 0
    try:
        _run()
    except SystemExit as end:
        code = end.code
    # Only out here is let go of what the exception held, such as processes that translate.
    _end_at_once(code)
    raise SystemExit(code)


def _run() -> None:
    try:
        app(prog_name="tfm")
    finally:
        _let_go_of_stdout()
        for number in END_SIGNALS:  # while Python exits, a handler that raises prints a traceback
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)


def _end_at_once(code: object) -> None:
    """End the process where nothing is left to do but to take apart what is in memory.

    A tenth of the time that a single line takes to translate goes there. PyTorch may have more to
    do at the end, and so may a debugger or a profiler.
    """
    is_watched = sys.gettrace() is not None or sys.getprofile() is not None
    others = [thread for thread in threading.enumerate() if not thread.daemon]
    if "torch" in sys.modules or is_watched or len(others) > 1 or not isinstance(code, int):
        return
    atexit._run_exitfuncs()
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
    os._exit(code)


def _ended_by_signal(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:  # which comes from the shell and once more from the system
        signal.signal(number, signal.SIG_IGN)
    told = "hung up" if number == signal.SIGHUP else "terminated"
    raise Interrupted(told, signal_number=number)


def _let_go_of_stdout() -> None:
    """Write what Python still holds; what cannot be written must not make it complain at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
