"""The command line: commands, their help, and the report of errors with an exit code."""

import atexit
import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ClassVar

import typer

import tfm_cli
from tfm_cli.cli.commands import CommandGroup, Commands, UsageError, usage_problem
from tfm_cli.console import hangup_safe_stream, visible, visible_message, wrapped_for_terminal
from tfm_cli.errors import (
    END_SIGNALS,
    INSTALL_TORCH,
    ConfigError,
    Interrupted,
    OutOfTime,
    ReportedElsewhere,
    ResourceError,
    TfmError,
)

_REPORT = "if it persists, please report it together with the command and the lines above"


class Cli(CommandGroup):
    """The group of all commands, which reports every failure and ends with its exit code."""

    members: ClassVar[Commands] = {
        "train": ("train", "COMMAND"),
        "translate": ("translate", "COMMAND"),
        "evaluate": ("evaluate", "COMMAND"),
        "score": ("score", "COMMAND"),
        "average": ("average", "COMMAND"),
        "plot": ("plot", "COMMAND"),
        "explain": ("explain", "COMMAND"),
        "check": ("check", "COMMAND"),
        "sample": ("sample", "COMMAND"),
        "info": ("info", "COMMAND"),
        "pack": ("pack", "PACK"),
        "unpack": ("pack", "UNPACK"),
        "tokenize": ("tokenize", "TokenizeGroup"),
        "shortlist": ("shortlist", "COMMAND"),
        "import": ("convert", "IMPORT"),
        "export": ("convert", "EXPORT"),
    }

    option_rows = (
        ("-V, --version", "Print the version and the CPU engine."),
        ("--install-completion", "Install completion for the current shell."),
        ("--show-completion", "Print the completion script of the current shell."),
    )

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        """Parse the command line; print the output of `--help` and `--version`."""
        with _failures_reported():
            return super().make_context(*arguments, **more)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments up to the name of a command; `version` is `--version`.

        Raises:
            ConfigError: an argument follows `version`.
        """
        if args[:1] == ["version"]:
            if args[1:] and not args[1].startswith("-"):
                raise ConfigError(f"unexpected argument `{args[1]}`")
            args = ["--version", *args[1:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with _failures_reported():
            return super().invoke(ctx)


@contextlib.contextmanager
def _failures_reported() -> Iterator[None]:
    """Convert an exception inside the block to a message on stderr and an exit code."""
    try:
        yield
    except (Interrupted, OutOfTime) as stop:
        _say(visible_message(str(stop)))
        raise typer.Exit(stop.exit_code) from stop
    except ReportedElsewhere as silent:
        raise typer.Exit(silent.exit_code) from silent
    except TfmError as error:
        _say(f"error: {visible_message(str(error))}")
        if error.hint:
            _say(f"hint: {visible_message(error.hint)}")
        raise typer.Exit(error.exit_code) from error
    except BrokenPipeError as gone:
        raise typer.Exit(0) from gone  # the reader has closed the pipe
    except KeyboardInterrupt as stop:
        after_key = sys.stderr is not None and sys.stderr.isatty()  # the terminal shows ^C
        _say("\ninterrupted" if after_key else "interrupted")
        raise typer.Exit(130) from stop
    except (typer.Exit, typer.Abort):
        raise
    except UsageError as error:
        _say(f"error: {visible_message(usage_problem(error))}")
        if error.ctx is not None:
            _say(f"hint: `{error.ctx.command_path} --help` lists the options")
        raise typer.Exit(ConfigError.exit_code) from error
    except Exception as bug:  # the boundary: everything else is a bug
        if problem := _resource_problem(bug):
            _say(f"error: {problem}")
            if isinstance(bug, ImportError) and (bug.name or "").partition(".")[0] == "torch":
                _say(f"hint: {INSTALL_TORCH}")
            raise typer.Exit(ResourceError.exit_code) from bug
        _say(visible(traceback.format_exc()).removesuffix("\n"), wraps=False)
        _say(f"error: this is a bug in tfm {tfm_cli.__version__}; {_REPORT}")
        raise typer.Exit(70) from bug


def _say(text: str, *, wraps: bool = True) -> None:
    """Write a message to standard error; if its reader has gone, the exit code still tells."""
    with contextlib.suppress(OSError):
        typer.echo(wrapped_for_terminal(text) if wraps else text, err=True)


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "failed to map segment",
    "cannot map zero-fill pages",
)


def _resource_problem(bug: Exception) -> str:
    """Return the message for an exception caused by a lack of resources; empty for a bug."""
    words = visible_message(str(bug))
    if isinstance(bug, ImportError):
        name, path = bug.name or "", Path(bug.path or "")
        if path.suffix in (".so", ".pyd", ".dylib"):  # its name lacks the package
            name = f"{path.parent.name}.{name}"
        if name.partition(".")[0] == "tfm_cli":
            return ""
        # NumPy's message is a page long, with the reason after these words.
        reason = str(bug).partition("Original error was:")[2] or str(bug)
        words = visible_message(reason.strip().partition("\n")[0])
        return (
            f"{f'`{visible_message(name)}`' if name else 'a library'} cannot be imported: {words}"
        )
    if isinstance(bug, OSError) and bug.errno in _DISK_FULL:
        return f"cannot write: {bug.strerror}"
    if isinstance(bug, OSError) and bug.errno in (errno.EMFILE, errno.ENFILE):
        return f"cannot open more files: {bug.strerror}"
    if isinstance(bug, RuntimeError) and "can't start new thread" in words:
        return f"cannot start a thread or process: {words}"
    # PyTorch's error has this name or, on a CPU, one of these messages; PyTorch may be missing.
    is_named = isinstance(bug, MemoryError) or type(bug).__name__ == "OutOfMemoryError"
    if is_named or (
        isinstance(bug, (RuntimeError, OSError))
        and any(each in words.lower() for each in _OUT_OF_MEMORY)
    ):
        return f"out of memory: {words}".removesuffix(": ")
    return ""


def _hyphens(name: str) -> str:
    """Return the name of a flag with hyphens, so that `--beam_size` is `--beam-size`."""
    return name.replace("_", "-")  # the leading hyphens are not part of the name


def _print_version(requested: bool) -> None:
    if requested:
        from tfm_cli.native import library

        typer.echo(f"tfm {tfm_cli.__version__}\n{visible_message(library.description())}")
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
        typer.Option("--version", "-V", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Neural machine translation: raw text in, raw text out.

    Train a Transformer on parallel text, translate with it, and score the translations.
    """


def main() -> None:
    """Run `tfm`, with UTF-8 on every stream in every locale."""
    if sys.stderr is None:  # the caller has closed it
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    elif sys.stderr.isatty():
        sys.stderr = hangup_safe_stream(sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    logging.captureWarnings(True)
    signal.signal(signal.SIGTERM, _raise_interrupted)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # `nohup` ignores it
        signal.signal(signal.SIGHUP, _raise_interrupted)
    code: object = 0
    try:
        _run()
    except SystemExit as end:
        code = end.code
    # The exception is freed by now, and with it objects that it kept, such as worker processes.
    _exit_early(code)
    raise SystemExit(code)


def _run() -> None:
    try:
        app(prog_name="tfm")
    finally:
        _flush_stdout()
        for number in END_SIGNALS:  # a handler that raises during exit would print a traceback
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)


def _exit_early(code: object) -> None:
    """Exit the process without freeing its objects one by one.

    Freeing them takes a tenth of the time of translating one line. With PyTorch, a debugger or a
    profiler the process exits normally, since they may have work to do at exit.
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


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:  # the shell and the system each send one
        signal.signal(number, signal.SIG_IGN)
    message = "hung up" if number == signal.SIGHUP else "terminated"
    raise Interrupted(message, signal_number=number)


def _flush_stdout() -> None:
    """Flush standard output; if that fails, discard its buffer, so that Python reports no error."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
