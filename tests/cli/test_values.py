"""Values of flags mean what they mean to Typer, without the time that pydantic takes."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from tfm_cli.cli.options import take_plainly

SEEN: list[Any] = []


def command(
    files: Annotated[list[Path], typer.Argument()],
    whole: Annotated[int, typer.Option(min=-5, max=100)] = 3,
    number: Annotated[float | None, typer.Option(min=0)] = None,
    word: Annotated[str, typer.Option()] = "a",
    kind: Annotated[Literal["one", "two"], typer.Option()] = "one",
    several: Annotated[list[str] | None, typer.Option()] = None,
    present: Annotated[Path | None, typer.Option(exists=True)] = None,
    parsed: Annotated[int, typer.Option(parser=lambda text: int(text, 16))] = 1,
    yes: Annotated[bool, typer.Option("--yes/--no")] = False,
) -> None:
    SEEN.append([files, whole, number, word, kind, several, present, parsed, yes])


app = typer.Typer(rich_markup_mode=None, add_completion=False)
app.command()(command)


def outcome(arguments: list[str], *, plainly: bool) -> tuple[Any, ...]:
    SEEN.clear()
    built = typer.main.get_command(app)
    if plainly:
        take_plainly(built)
    result: Any = CliRunner()
    done = result.invoke(app, arguments) if not plainly else _invoked(built, arguments)
    return done.exit_code, done.output, repr(SEEN)


def _invoked(built: Any, arguments: list[str]) -> Any:
    from unittest.mock import patch

    with patch("typer.testing._get_command", lambda _: built):
        return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        "", "a", "a b", "/root", "a --whole 7", "a --whole -5", "a --whole -6", "a --whole 101",
        "a --whole 0", "a --whole 007", "a --whole +7", "a --whole 7.0", "a --whole 1_0",
        "a --whole ٣", "a --whole x", "a --whole 99999999999999999999", "a --number 1",
        "a --number 1.5", "a --number .5", "a --number 5.", "a --number 1e-3", "a --number 1E3",
        "a --number -1", "a --number nan", "a --number inf", "a --number 1e400", "a --number x",
        "a --number 0.30000000000000004", "a --word é", "a --word=", "a --kind two", "a --kind Two",
        "a --kind three", "a --several x --several y", "a --present /", "a --present /no/such",
        "a --parsed ff", "a --parsed xy", "a --yes", "a --no", "a --whole", "a --none",
    ],
)  # fmt: skip
def test_value_is_what_typer_takes_it_for(arguments: str) -> None:
    wanted = outcome(arguments.split(), plainly=False)

    assert outcome(arguments.split(), plainly=True) == wanted
    assert outcome(arguments.split(), plainly=True) == wanted


def test_commands_do_not_import_pydantic(tmp_path: Path) -> None:
    """It would take longer than a line takes to translate."""
    code = (
        "import sys; from tfm_cli.cli import app\n"
        "try: app()\n"
        "except SystemExit: assert 'pydantic' not in sys.modules, 'imported'"
    )
    for arguments in (
        ["--version"],
        ["translate", "--model", tmp_path, "--beam-size", "2", "--length-penalty", "0.6"],
        ["evaluate", tmp_path / "none", "-m", "bleu", "chrf"],
        ["tokenize", "encode", "--model", tmp_path],
        ["check", "--source", "none", "--target", "none"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], input=b"", capture_output=True
        )
        assert done.returncode == 0, done.stderr
